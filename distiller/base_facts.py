"""Owns what the configured base model makes of a task, before it is trained: tokens, fertility, memory.

Must not load weights, nor fetch a model from the network: of one that is not here nothing is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distiller.base import DEFAULT_BASE, compute_dtype, resolve_base
from distiller.curate import Recorded
from distiller.engine_memory import EngineMemory, engine_memory
from distiller.fertility import Fertility, Spelled, Tokens, by_group, fertility, tokens
from distiller.settings import Settings
from proxy.errors import BadInput, Unavailable
from proxy.log import Log

BFLOAT16, FLOAT32 = 2, 4  # bytes


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """None is unknown, and `why` says why."""

    base: str
    tokens: Tokens | None
    fertility: Fertility | None
    memory: EngineMemory | None
    why: str
    languages: Mapping[str, Spelled] = field(default_factory=dict)
    """Of each language, or teacher, where there are several."""


def base_facts(log: Log, rows: Sequence[Recorded], settings: Settings) -> BaseFacts:
    """Of `[distiller] base` on these rows; BadInput where its folder is no model or its tokenizer cannot be read."""
    name, options = settings.distiller.base, settings.distiller
    try:
        folder = local_folder(name, settings.folder / "bases")
    except Unavailable as error:
        return BaseFacts(name, None, None, None, str(error))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"the tokenizer of {name} cannot be read: {str(error).splitlines()[0]}") from None
    memory, why = _memory(folder, settings)
    lengths, spelled = tokens(tokenizer, rows, options.max_tokens), by_group(tokenizer, rows)
    return BaseFacts(name, lengths, fertility(log, tokenizer, rows), memory, why, spelled)


def local_folder(name: str, cache: Path) -> Path:
    """Where the base model is; Unavailable where it would have to be fetched."""
    if name == DEFAULT_BASE or Path(name).is_dir():
        return resolve_base(name, cache)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, cache_dir=cache, local_files_only=True))
    except HFValidationError:
        raise BadInput(f"{name} is neither a folder nor a model id of the form owner/name") from None
    except LocalEntryNotFoundError:
        raise Unavailable(f"the base model {name} is not here yet: a first distillation fetches it") from None


def _memory(folder: Path, settings: Settings) -> tuple[EngineMemory | None, str]:
    """For as many sequences at once as the workers send."""
    serving = settings.serving
    bfloat16 = serving.device == "gpu" or compute_dtype() == "bfloat16"
    at_once = settings.router.candidate_concurrency * settings.proxy.workers
    try:
        return engine_memory(folder, BFLOAT16 if bfloat16 else FLOAT32, serving.max_model_len, at_once), ""
    except BadInput as error:
        return None, str(error)
