"""Owns which language a text is in, told offline by py3langid's model, an extra.

Must not know what follows from it. The model is loaded at most once a process, in about half a second and 100 MB, and
only where somebody asks; a text takes less than a millisecond of an idle core, however long it is. It guesses: of
short spoken commands (median 35 characters, eight languages) it told 87 %, none as another one of those but 0.2 %.
"""

import importlib
import importlib.util
from collections.abc import Collection
from functools import cache
from typing import Any

from proxy.errors import BadInput

MOST = 1000
"""Characters looked at: the last ones, as the end of a message is what it is about."""
SURE = 0.95
"""Of the languages it may be in, how likely the first must be: below, as of most single words, none is told."""
LIKELY = 0.5
"""From this chance on, among all languages the model knows, a text is in that one, whether it may be or not."""
_LIBRARY = "py3langid"
_NO_WORDS = "zxx"  # what the model says of code, numbers and the like


def require_languages() -> None:
    """BadInput where what tells languages is not installed."""
    if importlib.util.find_spec(_LIBRARY) is None:
        raise BadInput(
            "teacher.tasks go by language, which needs an extra that is not installed: "
            "pip install 'stillroom[languages]'"
        )


class Languages:
    """Tells languages by their codes (ISO 639, such as "de"), as far as texts are long enough for that."""

    def __init__(self, model: Any) -> None:
        """`model` ranks all languages it knows by their chances for a text, the likeliest first."""
        self._model = model
        self.known = frozenset(model.labels) - {_NO_WORDS}

    def __call__(self, text: str, among: Collection[str]) -> str | None:
        """The text's language; None where it cannot be told, or is in none.

        Its languages may be those `among`; what is likely in another one is told as that.
        """
        chances = self._model.rank(text[-MOST:])
        first, chance = chances[0]
        if first not in among and chance >= LIKELY:
            return None if first == _NO_WORDS else str(first)
        here = [(code, chance) for code, chance in chances if code in among]
        whole = sum(chance for _, chance in here)
        return str(here[0][0]) if here and here[0][1] > 0 and here[0][1] >= SURE * whole else None


@cache
def load_languages() -> Languages:
    """The model, loaded; BadInput where it is not installed."""
    require_languages()
    library: Any = importlib.import_module(f"{_LIBRARY}.langid")
    return Languages(library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True))
