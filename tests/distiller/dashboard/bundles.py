"""Students on disk for tests: real bundles with little in them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distiller.bundle import Bundle, seal
from distiller.settings import Settings
from tests.router.conftest import TASK


def sealed(
    home: Settings, answers: Sequence[Mapping[str, Any]] = (), learned: Sequence[str] = (), weights: str = "w",
    losses: Sequence[float] = (), **manifest: Any,
) -> Bundle:  # fmt: skip
    """A student with the given holdout lines, each {"exchange", "teacher", "text", "verdict"}."""
    folder = home.folder / "making"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_text(weights)
    (folder / "lineage.json").write_text(json.dumps({"snapshot": 3, "exchanges": list(learned)}))
    lines = [{"confidence": 0.9, "finished": True, "logprobs": [-0.1]} | dict(line) for line in answers]
    (folder / "holdout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "losses.json").write_text(json.dumps(list(losses)))
    leaks = {"clean": True, "train": len(learned), "holdout": len(lines), "exact": {"rows": 0, "examples": []}}
    (folder / "leak_report.json").write_text(json.dumps(leaks))
    holdout = {"rows": len(lines), "student": 0.9, "base": 0.25, "base_rows": 4, "majority": 0.5}
    card = {"base": "/models/smol", "engine": "vllm", "data_until": "2026-11-20T00:00:00+00:00"}
    told = {"task": TASK, "kind": "adapter", "snapshot": 3, "holdout": holdout, "card": card, "evaluator": "label"}
    told |= {"settings": {"rank": 16, "epochs": 3}, "threshold": {"coverage": 0.75, "value": 0.6}, "tried": []}
    return seal(folder, home.students, told | manifest)
