"""Owns the choice of how a small student is loaded, by the kind its folder says it is. Knows no server and no training.

small.json           {"kind": "head", ...}: what the kind needs to answer
*.safetensors        its weights; nothing that could hold code
"""

from collections.abc import Callable
from pathlib import Path

from distiller import cascade, encoder, head, labels
from distiller.bundle import MANIFEST, read_manifest
from distiller.embedding import Encoders
from distiller.predict import Predict, read_facts
from proxy.errors import BadInput


def load_small(folder: Path, encoders: Encoders) -> Predict:
    """The student in `folder`, ready to answer; BadInput where it cannot be read, or reads another encoder."""
    kinds: dict[str, Callable[[], Predict]] = {
        "head": lambda: head.load(folder, encoders),
        "encoder": lambda: encoder.load(folder),
        labels.KIND: lambda: labels.load(folder, encoders),
        cascade.KIND: lambda: cascade.load(folder, lambda part: load_small(part, encoders)),
    }
    kind = read_facts(folder)["kind"]
    if kind not in kinds:
        raise BadInput(f"{folder} holds a student of kind {kind!r}, and there are only {', '.join(kinds)}")
    return kinds[kind]()


def load_sealed(folder: Path, encoders: Encoders) -> Predict:
    """The same of a student in its bundle, which says where the models are that it reads: kinds read different ones."""
    if (folder.parent / MANIFEST).is_file():
        card = read_manifest(folder.parent)["card"]
        for model in (card["base"], *card.get("reads", ())):
            encoders.add(Path(model))
    return load_small(folder, encoders)
