from pathlib import Path

import pytest

from distiller.bundle import seal
from distiller.embedding import Encoders
from distiller.predict import write_facts
from distiller.small import load_sealed, load_small
from proxy.errors import BadInput
from tests.distiller.queues import asking, toy_encoder, toy_head


def test_a_head_is_loaded_by_what_its_folder_says(tmp_path: Path) -> None:
    encoder = toy_encoder(tmp_path / "encoder")
    toy_head(encoder, tmp_path / "small")
    (answer,) = load_small(tmp_path / "small", Encoders([encoder]))([asking("refund my money")])
    assert answer.text == "billing"


def test_a_sealed_one_brings_the_model_it_reads(tmp_path: Path) -> None:
    encoder = toy_encoder(tmp_path / "encoder")
    toy_head(encoder, tmp_path / "made" / "small")
    with pytest.raises(BadInput, match="which is not in no folder"):
        load_sealed(tmp_path / "made" / "small", Encoders([]))
    sealed = seal(tmp_path / "made", tmp_path / "students", {"card": {"base": str(encoder)}})
    (answer,) = load_sealed(sealed.path / "small", Encoders([]))([asking("refund my money")])
    assert answer.text == "billing"


def test_what_is_no_small_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no small student"):
        load_small(tmp_path, Encoders([]))
    write_facts(tmp_path, "forest", {})
    with pytest.raises(BadInput, match="kind 'forest', and there are only head"):
        load_small(tmp_path, Encoders([]))
