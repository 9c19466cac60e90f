import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from distiller.token_bytes import TokenBytes, byte_alphabet
from proxy.errors import BadInput
from tests.distiller.test_projection import LONG, SIDES, Side, position, projected
from tests.distiller.toy import SPECIAL, build_tokenizer

TEXTS = ["The printer is on fire", "printers print", "हिन्दी में लिखो", "fire 😀🔥 नमस्ते"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(TEXTS).backend_tokenizer


@pytest.fixture(scope="module")
def tokens(tokenizer) -> TokenBytes:
    return TokenBytes(tokenizer)


def test_the_alphabet_is_the_one_tokenizers_use():
    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("a é\n漢")[0][0]
    assert bytes(alphabet[character] for character in spelled) == "a é\n漢".encode()


@given(text=st.text(alphabet="The printer 😀🔥नमस्ते漢é\n", max_size=20))
def test_the_pieces_of_a_text_are_its_bytes_and_the_first_is_known(tokenizer, tokens, text: str):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(tokens.piece(token) for token in ids) == text.encode()
    assert tokens.first(text.encode()) == (ids[0] if ids else None)


def test_every_token_begins_with_itself_even_inside_a_character(tokenizer, tokens):
    own = {token: tokens.piece(token) for token in range(tokenizer.get_vocab_size())}
    assert [own.pop(token) for token in range(len(SPECIAL))] == [None] * len(SPECIAL)
    assert {token: tokens.first(piece) for token, piece in own.items()} == {token: token for token in own}
    assert any(not _is_text(piece) for piece in own.values() if len(piece) > 1)


def test_text_that_spells_a_special_token_begins_with_none(tokens):
    assert tokens.first(SPECIAL[1].encode()) is None


def test_half_a_character_after_text_that_goes_on_does_not_matter(tokenizer, tokens):
    text = b"printer on" + "😀".encode()[:2]
    assert tokens.first(text) == tokenizer.encode("printer on").ids[0]


def test_a_normaliser_that_changes_the_beginning_is_noticed(tokenizer):
    changing = Tokenizer.from_str(tokenizer.to_str())
    changing.normalizer = normalizers.Lowercase()
    assert TokenBytes(changing).first(b"The") is None
    assert TokenBytes(changing).first(b"the") is not None


def test_the_padding_of_others_is_not_in_the_way(tokenizer):
    padded = Tokenizer.from_str(tokenizer.to_str())
    padded.enable_padding(direction="left", length=9)
    assert TokenBytes(padded).first(b"printer") == tokenizer.encode("printer").ids[0]


def test_added_tokens_write_their_text(tokenizer):
    more = Tokenizer.from_str(tokenizer.to_str())
    more.add_tokens(["<label>"])
    tokens = TokenBytes(more)
    added = more.token_to_id("<label>")
    assert tokens.piece(added) == b"<label>"
    assert tokens.first(b"<label>x") == added


@pytest.mark.parametrize("model", [models.WordLevel({"a": 0}, unk_token="a"), models.BPE({"\u2581a": 0, "a": 1}, [])])
def test_other_kinds_of_tokenizers_are_refused(model):
    with pytest.raises(BadInput, match="choose another"):
        TokenBytes(Tokenizer(model))


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_one_cache_serves_every_teacher_and_mixes_none_up():
    text, tokenizer = "the printer is unhappy 漢字", build_tokenizer(LONG).backend_tokenizer
    student = Side(tokenizer)
    teachers = [[position(token, {token: 0.8, b" is": 0.1}) for token in side.pieces(text)] for side in SIDES.values()]
    found, looked_up = [], []
    for _ in range(2):
        found.append([projected(teacher, text, student) for teacher in teachers])
        looked_up.append(student.bytes.first.cache_info().misses)
    assert looked_up[0] == looked_up[1] > 0
    assert found[0] == found[1] == [projected(teacher, text, Side(tokenizer)) for teacher in teachers]
    assert len({len(one.unseen) for one in found[0]}) == len(teachers)  # Each cuts the text in its own way.
