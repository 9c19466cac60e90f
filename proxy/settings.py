"""Owns how one TOML file becomes typed settings, and the settings of the proxy, the spool and the log.

Must not know what the other layers set: they bring their own frozen dataclasses and call `parse`.
A key nobody declared is refused at start, with the key that was probably meant.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from proxy.errors import BadInput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """`[proxy]`: where clients connect, and what of them is asked.

    `context_tokens` and `answer_tokens` bound, for budgets, a call to a model that the price map does not know.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    max_body_mb: int = 64
    drain_seconds: float = 0.0
    keys: bool = False
    context_tokens: int = 200_000
    answer_tokens: int = 32_768


@dataclass(frozen=True, slots=True)
class DeploymentSettings:
    """`[[teacher.deployments]]`: a further URL that answers the same models, without the `/v1`, and its key."""

    url: str = ""
    key_env: str = ""
    client_keys: bool = False
    """Send clients' own keys to this URL too; it has to be said, as the key was meant for another host."""


@dataclass(frozen=True, slots=True)
class SunsetSettings:
    """`[[teacher.sunsets]]`: a model, as clients name it, that ends; from `shutdown` (UTC) on `successor` answers."""

    model: str = ""
    shutdown: date | None = None
    successor: str = ""


@dataclass(frozen=True, slots=True)
class NamedTeacherSettings:
    """`[teacher.named.NAME]`: a further teacher with a key of its own, or none; `url` comes without the `/v1`.

    `model` is asked in the place of the one that the client named; empty: that one.
    """

    url: str = ""
    key_env: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class TaskTeachersSettings:
    """`[teacher.tasks.NAME]`: which values of what lead this task's requests to which named teacher.

    `by` is "language", "header.NAME", or "metadata.KEY" of the body. `usual` are the languages that stay with the usual
    teacher, which the others are told from; empty: English.
    """

    by: str = "language"
    teachers: dict[str, str] = field(default_factory=dict)
    usual: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """`[teacher]`: who answers unless a candidate was proved; `url` comes without the `/v1`.

    `logprobs_share` is the share of chat requests that also ask for log-probabilities, in [0, 1]. `named` are further
    teachers, and `tasks` say which requests they get.
    """

    url: str = "https://api.openai.com"
    key_env: str = ""
    translate: tuple[str, ...] = ()
    connect_timeout: float = 10.0
    read_timeout: float = 600.0
    stream_usage: bool = True
    logprobs_share: float = 0.0
    retries: int = 0
    deployments: tuple[DeploymentSettings, ...] = ()
    sunsets: tuple[SunsetSettings, ...] = ()
    named: dict[str, NamedTeacherSettings] = field(default_factory=dict)
    tasks: dict[str, TaskTeachersSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """`[admin]`: where operators and Prometheus connect; `token_env` names the variable with the token."""

    host: str = "127.0.0.1"
    port: int = 8081
    token_env: str = ""


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """`[spool]`: when a segment closes (bytes, seconds), days to keep ingested ones, high-water mark (MB)."""

    rotate_mb: int = 16
    rotate_seconds: float = 2.0
    keep_days: int = 7
    min_free_mb: int = 512


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`[log]`: DuckLake catalog and data path; empty means SQLite and Parquet under the home folder; days to keep."""

    catalog: str = ""
    data: str = ""
    keep_days: int = 0


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """`[logging]`: how messages look on stderr, text or json, and from which level on they are shown."""

    format: str = "text"
    level: str = "warning"


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """`[telemetry]`: whether exchanges become OpenTelemetry spans; the OTEL_* variables say where they go."""

    spans: bool = False


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables; BadInput when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no settings file {path}: copy deploy/stillroom.toml there, or pass --config FILE") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder: --config wants a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from None


def parse(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build the frozen dataclass `cls` from a TOML table; BadInput names the key, its place and the remedy."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        place = f"{where}.{key}" if where else key
        if key not in fields:
            raise BadInput(_unknown(place, key, list(fields)))
        values[key] = _convert(hints[key], value, place)
    return cls(**values)


def _unknown(place: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
    return f"unknown setting {place!r}: {hint}"


def _convert(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise BadInput(f"setting {place!r} must be a table: write [{place}]")
        return parse(typing.cast(type[Any], hint), value, place)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin in (dict, types.MappingProxyType, Mapping) and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if origin is types.UnionType:  # `X | None`: TOML has no null, so a value that is there is an X.
        return _convert(arguments[0], value, place)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    wanted = "list" if origin is tuple else getattr(hint, "__name__", str(hint))
    raise BadInput(f"setting {place!r} must be of type {wanted}, not {type(value).__name__} ({value!r})")
