"""Owns how messages for operators leave a process: one line each on stderr, as text or as JSON.

Must not know what is reported. Whatever a message holds, keys and secrets are taken out of it; of an exception only
what we or the system said is shown, for a library's text may quote a body.
"""

import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from types import TracebackType

from proxy.errors import BadInput, StillroomError
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor

FORMATS = ("text", "json")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
QUIET_SECONDS = 1.0
_ABOUT = "exchange %s"  # So begins every message about one exchange, with its id as the first argument.
_OURS = (StillroomError, OSError)
_Caught = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up(form: str, level: str, process: str) -> None:
    """Send every message of this process to stderr; `process` is its name there. BadInput for unknown words."""
    if form not in FORMATS:
        raise BadInput(f"logging.format must be one of {', '.join(FORMATS)}, not {form!r}")
    if level.upper() not in LEVELS:
        raise BadInput(f"logging.level must be one of {', '.join(LEVELS)}, not {level!r}")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(process) if form == "json" else TextLines(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").addFilter(Seldom())
    sys.excepthook = lambda *caught: logging.getLogger("stillroom").critical("the process ends", exc_info=caught)


class TextLines(logging.Formatter):
    """For people; an exception follows on lines of its own."""

    def __init__(self, process: str) -> None:
        """`process` is part of every line."""
        super().__init__(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s")
        self._redactor = Redactor(SECRETS_ONLY)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line, whatever somebody put into an argument."""
        text = self._redactor.text(super().formatMessage(record))
        return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

    def formatException(self, ei: _Caught) -> str:
        """Where it happened and what it was."""
        return self._redactor.text(_exception(ei[1]))


class JsonLines(TextLines):
    """For machines: `ts`, `level`, `logger`, `message`, `process`; `exchange` and `exception` where there is one."""

    def __init__(self, process: str) -> None:
        """`process` is part of every line."""
        super().__init__(process)
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object, without a line break."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": self._redactor.text(record.getMessage()),
            "process": self._process,
        }
        if isinstance(record.args, tuple) and record.args and str(record.msg).startswith(_ABOUT):
            line["exchange"] = str(record.args[0])
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Seldom(logging.Filter):
    """Of each place that logs one message a second, with the number of those left out since the last.

    For what any client can provoke as often as it likes.
    """

    def __init__(self) -> None:
        """Nothing was said yet."""
        super().__init__()
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is its turn."""
        place, now = (record.pathname, record.lineno), time.monotonic()
        last, left_out = self._said.get(place, (-QUIET_SECONDS, 0))
        if now - last < QUIET_SECONDS:
            self._said[place] = last, left_out + 1
            return False
        self._said[place] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more of these before)", ()
        return True


def _exception(error: BaseException | None) -> str:
    parts: list[str] = []
    while error is not None and len(parts) < 8:
        said = f": {error}" if isinstance(error, _OURS) else ""
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"{frames}{type(error).__name__}{said}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nafter:\n".join(parts)
