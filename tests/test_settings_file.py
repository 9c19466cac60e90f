import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from distiller.settings import Settings, load_settings
from proxy.settings import NamedTeacherSettings, TaskTeachersSettings, parse, read_toml
from router.settings import Price, RivalSettings, TaskSettings

FILE = Path(__file__).parent.parent / "deploy" / "stillroom.toml"


def leaves(table: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Every setting by its dotted name; an empty table is one too."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        place = f"{where}.{key}" if where else key
        found |= leaves(value, place) if isinstance(value, dict) and value else {place: value}
    return found


def test_the_file_is_the_defaults() -> None:
    assert parse(Settings, read_toml(FILE)) == Settings()
    assert load_settings(FILE) == dataclasses.replace(Settings(), home=str(FILE.parent / "stillroom-data"))


def test_it_names_every_setting_there_is() -> None:
    defaults = leaves(dataclasses.asdict(Settings()))
    # Shown as comments: see below.
    for name in ("money.prices", "router.tasks", "router.rivals", "teacher.named", "teacher.tasks"):
        assert defaults.pop(name) == {}
    written = leaves(read_toml(FILE))
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()} == defaults
    assert {name: type(value) for name, value in written.items() if not isinstance(value, list)} == {
        name: type(value) for name, value in defaults.items() if not isinstance(value, tuple)
    }


def test_what_is_commented_out_is_valid_too() -> None:
    text = re.sub(r"^# (?=\[|\w+ = )", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    settings = parse(Settings, tomllib.loads(text))
    assert settings.money.prices == {"my-model": Price(input=2.5, output=10.0, cached_input=1.25)}
    assert settings.router.tasks == {"my-task": TaskSettings(aliases={"refund": "refunds"})}
    assert settings.teacher.named == {
        "german": NamedTeacherSettings("https://api.example.com", "GERMAN_KEY", "german-large")
    }
    assert settings.teacher.tasks == {"my-task": TaskTeachersSettings("language", {"de": "german"})}
    (rival,) = settings.router.rivals.values()
    assert rival == RivalSettings(("my-task",), "small-model", "https://api.example.com/v1", "RIVAL_API_KEY")


def test_every_setting_that_the_readme_names_exists() -> None:
    known = leaves(dataclasses.asdict(Settings()))
    tables = {name.partition(".")[0] for name in known if "." in name}
    text = (FILE.parent.parent / "README.md").read_text(encoding="utf-8")
    named = {f"{table}.{key}" for table, key in re.findall(r"`\[*(\w+)\.(\w+)", text) if table in tables}
    assert len(named) > 10
    shown = {"router.tasks", "router.rivals", "teacher.deployments", "teacher.named", "teacher.tasks"}
    assert named - known.keys() - shown == set()
