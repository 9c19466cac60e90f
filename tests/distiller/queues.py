"""A task with a closed set of labels, and a head that learned it: what tests of small students share."""

from pathlib import Path

from distiller.head import HeadFacts, train_head
from distiller.predict import Prompt
from tests.distiller.toy_encoder import build_toy_encoder

QUEUES = {
    "billing": ("charged twice", "refund my money", "invoice is wrong", "card was declined"),
    "shipping": ("parcel never came", "track my delivery", "courier lost it", "wrong address"),
    "login": ("forgot my password", "cannot sign in", "account is locked", "reset link fails"),
}
OPENINGS = ("hello", "please help", "urgent", "hi there", "my problem today", "again")


def asking(text: str) -> Prompt:
    return [{"role": "system", "content": ""}, {"role": "user", "content": text}]


def queue_rows() -> list[tuple[Prompt, str]]:
    return [
        (asking(f"{opening} {text}"), label)
        for opening in OPENINGS
        for label, texts in QUEUES.items()
        for text in texts
    ]


def toy_encoder(folder: Path) -> Path:
    texts = [prompt[-1]["content"] for prompt, _ in queue_rows()]
    build_toy_encoder(folder, texts, width=64, layers=1, positions=512, spread=0.02, pieces=512, letters=1000)
    return folder


def toy_head(encoder: Path, folder: Path) -> HeadFacts:
    return train_head(encoder, queue_rows(), folder, seed=0, threads=1, on_progress=lambda done, of: None)
