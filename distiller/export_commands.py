"""Owns the commands that take a student out of Stillroom: exporting it, and serving it on a CPU with llama.cpp.

Must not make or prove anything itself. Heavy imports wait inside the command, as in `stillroom`.
"""

import argparse
import os
import sys
from pathlib import Path

from distiller.command_tools import opened_log, show
from distiller.settings import load_settings
from proxy.errors import Unavailable


def export(arguments: argparse.Namespace) -> int:
    """Export a task's student, merged or in fewer bits for llama.cpp or vLLM, each proved in its engine."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # Libraries' own bars would break into ours.
    from distiller.export import MERGED, in_words
    from distiller.export import export as run
    from distiller.export_table import exports_table
    from distiller.terminal import progress
    from router.registry import newest

    settings = load_settings(arguments.config)
    log = opened_log(settings)
    candidate = newest(log, arguments.task, arguments.candidate)
    nothing = arguments.gguf is None and arguments.vllm is None and not arguments.merged
    kinds = [MERGED] if nothing or arguments.merged else []
    kinds += ["q8_0"] if nothing or arguments.gguf == [] else arguments.gguf or []
    kinds += ["fp8"] if arguments.vllm == [] else arguments.vllm or []
    target = arguments.to or settings.exports
    try:
        with progress(quiet=arguments.json) as on_progress:
            made = run(log, settings, candidate, list(dict.fromkeys(kinds)), target, on_progress)
    except OSError as error:
        raise Unavailable(f"the export cannot be written: {str(error).splitlines()[0]}") from None
    show(arguments, made, exports_table)
    for one in made:
        if not one.passed:
            print(f"stillroom: {in_words(one)}", file=sys.stderr)
    return 0 if all(one.passed for one in made) else 1


def edge(arguments: argparse.Namespace) -> int:
    """Serve an exported student on this machine's CPU with llama.cpp."""
    from distiller.edge import CARD, Running, serve

    settings = load_settings(arguments.config)
    folder = Path(arguments.task)
    if not (folder / CARD).is_file():
        folder = _exported(arguments)
    port = settings.edge.port if arguments.port is None else arguments.port
    serve(folder, port, Running(settings.edge.context, settings.edge.threads))
    return 0


def _exported(arguments: argparse.Namespace) -> Path:
    from distiller.edge import exported
    from router.registry import newest

    settings = load_settings(arguments.config)
    log = opened_log(settings, read_only=True)
    try:
        candidate = newest(log, arguments.task, arguments.candidate)
    finally:
        log.close()
    return exported(settings.exports, candidate.id)
