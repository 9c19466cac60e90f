from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from distiller.encoder_net import Network, collate, load_encoder, read
from distiller.extraction import learn
from tests.distiller.toy_encoder import build_toy_encoder

TEXTS = ["play jazz by ann", "rate the book", "weather in rome today"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    build_toy_encoder(folder, TEXTS)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def network(folder):
    form = learn([(text, f'{{"kind": "{text[0]}", "what": "{text.split()[1]}"}}') for text in TEXTS] * 2).form
    torch.manual_seed(0)
    return Network(load_encoder(folder), form).eval()


def test_units_are_cut_from_the_text_itself(tokenizer):
    text = "Rate  Élan!"
    reading = read(tokenizer, text, 64)
    assert [text[start:end] for start, end in reading.units] == ["Rate", "Élan", "!"]
    assert all(first < last for first, last in reading.tokens)
    assert len(read(tokenizer, "\ud83d play", 64).units) == 2


def test_what_is_past_the_limit_has_no_units(tokenizer):
    reading = read(tokenizer, "play jazz " * 30, 8)
    assert len(reading.ids) == 8
    assert reading.cut
    assert not read(tokenizer, "play jazz", 8).cut
    assert max(last for _, last in reading.tokens) < 8


def test_only_unknown_words_are_hashed(tokenizer):
    reading = read(tokenizer, "play 热 by ann", 64)
    assert list(reading.hashed) == [1]


def test_a_row_scores_the_same_beside_longer_ones(network, tokenizer):
    torch.nn.init.normal_(network.hashes.weight)
    readings = [read(tokenizer, text, 64) for text in ("play 热", "rate the 热热 book by ann ann ann", "")]
    with torch.no_grad():
        together = network(collate(readings, 0))
        for row, reading in enumerate(readings):
            classes, tags = network(collate([reading], 0))
            torch.testing.assert_close(together[0][0][row], classes[0][0], atol=1e-4, rtol=0)
            torch.testing.assert_close(together[1][row, : len(reading.units)], tags[0], atol=1e-4, rtol=0)


def test_scores_are_probabilities(network, tokenizer):
    with torch.no_grad():
        classes, tags = network(collate([read(tokenizer, text, 64) for text in TEXTS], 0))
    torch.testing.assert_close(classes[0].exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(tags.exp().sum(-1), torch.ones(tags.shape[:2]))


def test_the_letters_of_an_unknown_word_are_learned_at_its_place(network, tokenizer):
    reading = read(tokenizer, "play 热 by", 64)
    network(collate([reading], 0))[1][0, 1, 1].backward()
    touched = set(network.hashes.weight.grad.abs().sum(1).nonzero()[:, 0].tolist())
    assert touched == set(reading.hashed[1])


def test_without_its_letters_every_unknown_word_is_the_same(network, tokenizer):
    torch.nn.init.normal_(network.hashes.weight)
    one, other = (read(tokenizer, f"play {word} by", 64) for word in ("热", "水"))
    blank = [replace(reading, hashed={}) for reading in (one, other)]
    with torch.no_grad():
        assert torch.equal(network(collate(blank[:1], 0))[1], network(collate(blank[1:], 0))[1])
        assert not torch.equal(network(collate([one], 0))[1], network(collate([other], 0))[1])
