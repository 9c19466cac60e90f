import dataclasses

import pytest

from distiller.dashboard.shown import HIDDEN, shown, written
from distiller.settings import Settings
from proxy.settings import AdminSettings, DeploymentSettings, LogSettings, TeacherSettings


def test_every_setting_is_there_and_what_was_changed_is_marked() -> None:
    found = shown(Settings(teacher=TeacherSettings(retries=2)))
    names = [setting.name for table in found.values() for setting in table]
    assert len(names) == len(set(names)) > 100
    assert {name.partition(".")[0] for name in names} == {field.name for field in dataclasses.fields(Settings)}
    assert [setting for table in found.values() for setting in table if setting.changed] == [
        next(setting for setting in found["teacher"] if setting.name == "teacher.retries")
    ]


def test_of_a_secret_only_its_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3cret-value")
    monkeypatch.delenv("OTHER_TOKEN", raising=False)
    settings = Settings(admin=AdminSettings(token_env="SOME_TOKEN", viewer_token_env="OTHER_TOKEN"))
    values = {setting.name: setting.value for setting in shown(settings)["admin"]}
    assert values["admin.token_env"] == "SOME_TOKEN (set)"
    assert values["admin.viewer_token_env"] == "OTHER_TOKEN (not set)"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("teacher.url", "https://api.openai.com/x", "https://api.openai.com/x"),
        ("teacher.url", "https://me:s3cret@api.example", f"https://{HIDDEN}@api.example"),
        ("teacher.url", "https://api.example/?key=s3cret#s3cret", f"https://api.example/?{HIDDEN}"),
        ("teacher.url", "https://me:s3/s3cret@api.example", f"https://me:s3/{HIDDEN}"),
        ("teacher.url", "https://[s3cret@x", f"https://{HIDDEN}"),
        ("notify.webhook", "https://hooks.example/services/s3cret", f"https://hooks.example/{HIDDEN}"),
        ("log.catalog", "postgres:dbname=a host=b password=s3cret", f"postgres:dbname=a host=b password={HIDDEN}"),
        ("log.catalog", "postgres:password='s3cret a' host=b", f"postgres:password={HIDDEN} host=b"),
        ("log.catalog", "postgres:postgresql://me:s3cret@b/a", f"postgres:postgresql://{HIDDEN}@b/a"),
        ("serving.args", ("--api-key", "s3cret", "--seed", "1"), f"[--api-key, {HIDDEN}, --seed, 1]"),
        ("serving.args", ("--api-key=s3cret",), f"[--api-key={HIDDEN}]"),
        ("a.b", True, "true"), ("a.b", None, ""), ("a.b", {"x": ("y",)}, "{x = [y]}"), ("a.b", 1.5, "1.5"),
    ],
)  # fmt: skip
def test_what_somebody_wrote_into_an_address_is_left_out(name: str, value: object, text: str) -> None:
    assert written(name, value) == text


def test_no_secret_of_a_whole_file_is_shown() -> None:
    settings = Settings(
        teacher=TeacherSettings(
            url="https://u:s3cret@a.example", deployments=(DeploymentSettings(url="https://b.example/?token=s3cret"),)
        ),
        log=LogSettings(catalog="postgres:password=s3cret"),
    )
    assert "s3cret" not in str(shown(settings))
