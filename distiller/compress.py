"""Owns having a merged model compressed for vLLM: by llm-compressor, in the Python it is installed in.

Must not know how the model was made or is proved. llm-compressor needs an older transformers and a newer
compressed-tensors than ours, so it cannot be imported here: `distiller.compressor` runs in a process of its own.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distiller.bundle import Bundle
from distiller.examples import encode
from distiller.proposal import LINEAGE
from distiller.serving import last_line, without_secrets
from proxy.errors import Refused, Unavailable
from proxy.log import Log
from router.prompt import student_messages

SCHEMES = ("fp8", "w4a16")
FITTED = frozenset({"w4a16"})  # to rows
MOST_ROWS = 256
_SCRIPT = Path(__file__).with_name("compressor.py")
_VERSION = "import importlib.metadata; print(importlib.metadata.version('llmcompressor'))"
_OURS = ("*.safetensors", "config.json", "export.json")  # of the merged folder; the rest is how prompts are read
_ROWS = """
SELECT request, answer FROM exchanges WHERE id IN (SELECT unnest(CAST(? AS VARCHAR[]))) AND answer IS NOT NULL
ORDER BY id
"""
INSTALL = (
    "llm-compressor wants an environment of its own: python -m venv compressor && compressor/bin/pip install "
    "'stillroom[compress]', and export.compressor = the path of compressor/bin/python"
)


def installed(compressor: str) -> str:
    """Which llm-compressor the Python at this path has; Unavailable, with how to get one, where there is none."""
    if not compressor:
        raise Unavailable(f"export.compressor is not set; {INSTALL}")
    try:
        command = [compressor, "-I", "-c", _VERSION]
        told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"export.compressor {compressor} cannot be run ({error.strerror}); {INSTALL}") from None
    if told.returncode:
        raise Unavailable(f"export.compressor {compressor} has no llm-compressor; {INSTALL}")
    return told.stdout.strip()


def training_rows(log: Log, bundle: Bundle, tokenizer: Any, most: int = MOST_ROWS) -> list[list[int]]:
    """Token ids of exchanges the student learned from, as it read them: at most so many, evenly over time.

    None is of the holdout, which is to judge what is fitted to these. Refused where the log has none of them any more.
    """
    learned = json.loads((bundle.path / LINEAGE).read_text(encoding="utf-8"))["exchanges"]
    held = log.query(_ROWS, [learned])
    if not held:
        raise Refused(
            f"none of the {len(learned)} exchanges that {bundle.id} learned from is in the log: distill the task again"
        )
    static, limit = frozenset(bundle.manifest["card"]["static"]), bundle.manifest["settings"]["max_tokens"]
    asked = [(student_messages(json.loads(request)["messages"], static), answer) for request, answer in held]
    rows = [encode(tokenizer, messages, answer).input_ids for messages, answer in asked]
    short = [ids for ids in rows if len(ids) <= limit]  # what is longer was left out in training too
    return [short[place * len(short) // most] for place in range(most)] if len(short) > most else short


def compress(
    compressor: str, merged: Path, scheme: str, rows: Sequence[Sequence[int]], folder: Path, threads: int, log: Path
) -> None:
    """Write the model in `merged` to `folder`, which is there and empty, by one of `SCHEMES`; fitted to `rows`.

    `compressor` is a Python with llm-compressor, which writes to `log`. Unavailable, with what it said, when it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.exists() else 0
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder.parent) as scratch, log.open("ab") as out:
        told = Path(scratch) / "rows.json"
        told.write_text(json.dumps(rows), encoding="utf-8")
        # -I: what lies beside the script, or where our own Python looks, is not for this one.
        command = [compressor, "-I", str(_SCRIPT), str(merged), scheme, str(told), str(folder), str(threads)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=_environment(threads))
    if done.returncode:
        said = last_line(log, start)
        raise Unavailable(f"llm-compressor failed with code {done.returncode}: {said} (see {log})")
    for path in merged.iterdir():
        if not any(path.match(pattern) for pattern in _OURS):
            shutil.copyfile(path, folder / path.name)


def _environment(threads: int) -> dict[str, str]:
    """Ours without secrets; nothing may ask a hub."""
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
    return without_secrets() | own
