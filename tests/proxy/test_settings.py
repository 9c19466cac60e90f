from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import BadInput
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings, parse, read_toml


@dataclass(frozen=True, slots=True)
class Inner:
    size: int = 1
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Outer:
    name: str = ""
    inner: Inner = field(default_factory=Inner)
    many: dict[str, Inner] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    limit: float | None = None


def test_an_empty_table_is_the_defaults() -> None:
    assert parse(ProxySettings, {}) == ProxySettings()


def test_nested_tables_lists_and_maps_become_their_types() -> None:
    table = {"inner": {"size": 3}, "many": {"a": {"rate": 2}}, "words": ["x", "y"]}
    assert parse(Outer, table) == Outer("", Inner(3), {"a": Inner(rate=2.0)}, ("x", "y"))


def test_what_may_be_left_out_may_be_given() -> None:
    assert (parse(Outer, {}).limit, parse(Outer, {"limit": 2}).limit) == (None, 2.0)


def test_a_whole_number_is_taken_for_a_float() -> None:
    seconds = parse(SpoolSettings, {"rotate_seconds": 3}).rotate_seconds
    assert (seconds, type(seconds)) == (3.0, float)


@pytest.mark.parametrize(
    ("cls", "table", "message"),
    [
        (ProxySettings, {"prot": 1}, "unknown setting 'prot': did you mean 'port'?"),
        (
            ProxySettings,
            {"zzz": 1},
            "unknown setting 'zzz': known here: answer_tokens, context_tokens, drain_seconds, host, keys, "
            "max_body_mb, port, workers",
        ),
        (ProxySettings, {"port": "80"}, "setting 'port' must be of type int, not str ('80')"),
        (ProxySettings, {"port": True}, "setting 'port' must be of type int, not bool (True)"),
        (ProxySettings, {"port": 80.0}, "setting 'port' must be of type int, not float (80.0)"),
        (SpoolSettings, {"rotate_seconds": True}, "setting 'rotate_seconds' must be of type float, not bool (True)"),
        (TeacherSettings, {"translate": "a/"}, "setting 'translate' must be of type list, not str ('a/')"),
        (TeacherSettings, {"translate": ["a/", 1]}, "setting 'translate[1]' must be of type str, not int (1)"),
        (Outer, {"inner": 5}, "setting 'inner' must be a table: write [inner]"),
        (Outer, {"limit": "x"}, "setting 'limit' must be of type float, not str ('x')"),
        (Outer, {"inner": {"sise": 5}}, "unknown setting 'inner.sise': did you mean 'size'?"),
        (Outer, {"many": {"a": {"rate": "x"}}}, "setting 'many.a.rate' must be of type float, not str ('x')"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(cls: type[Any], table: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        parse(cls, table)
    assert str(raised.value) == message


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[proxy]\nhost = "ü"\n', encoding="utf-8")
    assert read_toml(file) == {"proxy": {"host": "ü"}}


@pytest.mark.parametrize("content", [b"proxy = ", b"\xff"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.toml is not TOML"):
        read_toml(file)


def test_a_missing_file_says_what_to_copy_and_a_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"copy deploy/stillroom\.toml there"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="is a folder"):
        read_toml(tmp_path)
