"""A task with a trained toy student, made once for all tests that export it: nobody changes what it returns."""

import atexit
import functools
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from distiller.bundle import Bundle
from distiller.distill import distill
from distiller.settings import DistillerSettings, EdgeSettings, Settings
from proxy.log import Log, open_log
from proxy.settings import LogSettings
from router.registry import Candidate, candidates
from tests.distiller.toy import build_toy
from tests.logs import migrated
from tests.router.conftest import TASK, insert

# A Python with llm-compressor, which cannot live beside what the tests need.
COMPRESSOR = os.environ.get("STILLROOM_COMPRESSOR", "")
needs_compressor = pytest.mark.skipif(
    not COMPRESSOR, reason="STILLROOM_COMPRESSOR is not set to a Python with stillroom[compress]"
)
ANSWERS = {"red": "stop", "amber": "wait", "green": "go"}


@dataclass(frozen=True)
class Exportable:
    home: Path
    config: Path
    base: Path
    settings: Settings
    bundle: Bundle
    candidate: Candidate

    def log(self) -> Log:
        return open_log(LogSettings(), self.home)

    def moved(self, home: Path) -> Path:
        """The settings file of another home with the same log and nothing exported."""
        shutil.copytree(self.home / "log", home / "log")
        with closing(sqlite3.connect(home / "log" / "catalog.sqlite")) as catalog, catalog:
            catalog.execute("UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'", [f"{home}/log/data/"])
        config = home.with_suffix(".toml")
        config.write_text(self.config.read_text().replace(str(self.home), str(home)))
        return config


@functools.cache
def exportable() -> Exportable:
    home = Path(tempfile.mkdtemp(prefix="stillroom-tests-"))
    atexit.register(shutil.rmtree, home)
    log = migrated(home)
    for place in range(150):
        colour = list(ANSWERS)[place % 3]
        insert(log, [f"lamp {place} is {colour}"], ANSWERS[colour])
    build_toy(home / "toy", [f"lamp is {colour} {answer}" for colour, answer in ANSWERS.items()])
    options = DistillerSettings(
        students=("adapter",), base=str(home / "toy"), min_exchanges=100, epochs=6, learning_rate=1e-2, control_rows=1,
        max_tokens=128, threads=1,
    )  # fmt: skip
    settings = Settings(home=str(home), distiller=options, edge=EdgeSettings(context=512, threads=1))
    done = distill(log, settings, TASK, lambda *_: None)
    (candidate,) = candidates(log)
    log.close()
    config = home / "stillroom.toml"
    config.write_text(f'home = "{home}"\n[distiller]\nthreads = 1\n[edge]\ncontext = 512\nthreads = 1\n')
    return Exportable(home, config, home / "toy", settings, done.bundle, candidate)
