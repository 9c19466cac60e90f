"""Owns a student's tokens as bytes: what each token writes, and which token a string of bytes begins with.

Knows nothing of teachers, probabilities or models. Made for byte-level BPE, whose vocabulary spells every byte as one
printable character (Radford et al. 2019, GPT-2); SmolLM2, Qwen2 and Llama 3 are of that kind.
"""

from functools import lru_cache

from tokenizers import Tokenizer
from tokenizers.models import BPE

from proxy.errors import BadInput

CACHE = 1 << 18  # strings of bytes whose first token is remembered; the alternatives of one task repeat a lot


class TokenBytes:
    """The byte view of one tokenizer. Make one per tokenizer and keep it: it remembers what it looked up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises BadInput for a tokenizer that is not byte-level BPE."""
        if not isinstance(tokenizer.model, BPE):
            raise BadInput("soft labels need a base model with a byte-level BPE tokenizer: choose another base model")
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy, so that nobody's padding is in the way
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._model = self._tokenizer.model
        self._spelling = {byte: character for character, byte in byte_alphabet().items()}
        self._pieces = _pieces(self._tokenizer)
        self.first = lru_cache(maxsize=CACHE)(self._first)

    def piece(self, token: int) -> bytes | None:
        """The bytes a token writes; None for special tokens, which write none."""
        return self._pieces.get(token)

    def _first(self, text: bytes) -> int | None:
        """The token the student begins `text` with if nothing else follows; None where that cannot be said.

        Text is tokenized as far as it is valid UTF-8. What lies beyond cannot pass a pre-tokenizer: bytes are merged as
        they are where the first token reaches into it, as it does for text that begins inside a character.
        """
        readable = _readable(text)
        covered = len(readable.encode())
        ids = self._tokenizer.encode(readable, add_special_tokens=False).ids
        if covered < len(text):
            merged = [token.id for token in self._model.tokenize("".join(self._spelling[byte] for byte in text))]
            if merged and len(self._pieces.get(merged[0], b"")) > covered:
                ids = merged
        piece = self._pieces.get(ids[0]) if ids else None
        # A normaliser or a dummy prefix would begin with something else than `text` does.
        return ids[0] if piece and text.startswith(piece) else None


def byte_alphabet() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable Latin-1 as itself, every other byte as a character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _pieces(tokenizer: Tokenizer) -> dict[int, bytes]:
    alphabet = byte_alphabet()
    added = tokenizer.get_added_tokens_decoder()
    pieces = {token: each.content.encode() for token, each in added.items() if not each.special}
    try:
        for spelled, token in tokenizer.get_vocab(with_added_tokens=False).items():
            if token not in added:
                pieces[token] = bytes(alphabet[character] for character in spelled)
    except KeyError:
        raise BadInput("the base model's tokenizer does not spell bytes as GPT-2's does: choose another") from None
    return pieces


def _readable(text: bytes) -> str:
    """The longest beginning of `text` that is valid UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()
