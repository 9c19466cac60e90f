"""Owns vLLM for benchmarks: a model on this CPU, as Stillroom itself would start it. Must not know what is asked."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distiller.base import compute_dtype
from distiller.serving import EngineSettings, engine_command
from tests.bench.processes import Failed, running
from tests.deployment import up
from tests.servers import eventually, free_port

AT_ONCE = 8
_START_SECONDS = 900


@contextmanager
def vllm(model: Path, names: Sequence[str], log: Path, context: int) -> Iterator[int]:
    """The model under these names, with so many tokens of context; yields its port. Failed where it does not start."""
    port = free_port()
    more = ("--served-model-name", *names, "--max-num-seqs", str(AT_ONCE), "--seed", "0")
    command, environment = engine_command(
        EngineSettings(
            model, port, compute_dtype(), log, max_model_len=context, extra_args=more, max_loras=1, max_lora_rank=8
        )
    )
    environment = {**environment, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin would starve clients and proxy
    with running(command, os.sched_getaffinity(0), log, environment) as process:

        def answers() -> bool:
            if process.poll() is not None:
                raise Failed(f"vLLM did not start: {log.read_text()[-2000:]}")
            return up(f"http://127.0.0.1:{port}/health")

        eventually(answers, _START_SECONDS)
        yield port
