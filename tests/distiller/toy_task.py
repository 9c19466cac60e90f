"""A task that a toy can learn: what to do at a lamp, recorded in a real log."""

from pathlib import Path

from distiller.settings import DistillerSettings, Settings
from proxy.log import Log
from tests.distiller.toy import build_toy
from tests.distiller.toy_encoder import build_toy_encoder
from tests.logs import migrated
from tests.router.conftest import insert

ANSWERS = {"red": "stop", "amber": "wait", "green": "go"}


def toy_log(folder: Path) -> Log:
    """150 exchanges."""
    log = migrated(folder)
    for start in range(0, 150, 3):
        for place, (colour, answer) in enumerate(ANSWERS.items()):
            insert(log, [f"lamp {start + place} is {colour}"], answer)
    return log


def toy_settings(folder: Path) -> Settings:
    """With a toy as the base model; it is built anew."""
    base = folder / "toy"
    build_toy(base, [f"lamp is {colour} {answer}" for colour, answer in ANSWERS.items()])
    options = DistillerSettings(
        students=("adapter",), base=str(base), min_exchanges=100, epochs=6, learning_rate=1e-2, control_rows=4,
        max_tokens=128,
    )  # fmt: skip
    return Settings(home=str(folder), distiller=options)


def head_settings(folder: Path) -> Settings:
    """With a toy encoder, built anew, and a head on it for the student, which takes no time."""
    encoder = folder / "encoder"
    build_toy_encoder(encoder, [f"lamp is {colour} {answer}" for colour, answer in ANSWERS.items()])
    options = DistillerSettings(
        students=("head",), encoder=str(encoder), min_exchanges=100, control_rows=4, threads=1
    )  # fmt: skip
    return Settings(home=str(folder), distiller=options)
