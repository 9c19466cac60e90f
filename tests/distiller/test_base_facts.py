from dataclasses import replace
from pathlib import Path

import pytest

from distiller.base_facts import base_facts, local_folder
from distiller.dataset import newest
from distiller.settings import DistillerSettings, Settings
from proxy.errors import BadInput, Unavailable
from proxy.log import Log
from router.settings import RouterSettings
from tests.distiller.toy_task import toy_log, toy_settings
from tests.router.conftest import TASK


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


def test_a_base_that_is_here_is_measured_without_its_weights(log: Log, tmp_path: Path) -> None:
    settings = replace(toy_settings(tmp_path), router=RouterSettings(candidate_concurrency=3))
    found = base_facts(log, newest(log, TASK, 20)[1], settings)
    assert found.why == ""
    assert found.tokens is not None
    assert found.tokens.rows == 20
    assert found.memory is not None
    assert (found.memory.sequences, found.memory.tokens) == (3, settings.serving.max_model_len)
    assert found.fertility is None
    assert found.languages == {}
    log.query("UPDATE exchanges SET lang = CASE answer WHEN 'go' THEN 'de' ELSE 'en' END")
    assert set(base_facts(log, newest(log, TASK, 20)[1], settings).languages) == {"de", "en"}


def test_of_a_base_that_would_have_to_be_fetched_nothing_is_known(log: Log, tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path), distiller=DistillerSettings(base="owner/not-here"))
    found = base_facts(log, newest(log, TASK, 20)[1], settings)
    assert (found.tokens, found.fertility, found.memory) == (None, None, None)
    assert "owner/not-here is not here yet" in found.why
    with pytest.raises(Unavailable):
        local_folder("owner/not-here", tmp_path)
    with pytest.raises(BadInput, match="neither a folder nor"):
        local_folder("a/b/c", tmp_path)


def test_a_base_of_unknown_size_or_without_a_tokenizer(log: Log, tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    base = Path(settings.distiller.base)
    (base / "model.safetensors").unlink()
    found = base_facts(log, newest(log, TASK, 20)[1], settings)
    assert (found.memory, found.tokens is None) == (None, False)
    assert "its size is not known" in found.why
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BadInput, match="tokenizer"):
        base_facts(log, newest(log, TASK, 20)[1], settings)
