import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import languages
from proxy.errors import BadInput
from proxy.languages import MOST, load_languages, require_languages

AMONG = ("de", "fr", "en")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Wo ist meine Bestellung geblieben?", "de"),
        ("WO IST MEINE BESTELLUNG GEBLIEBEN?", "de"),
        ("Je voudrais savoir où est ma commande.", "fr"),
        (unicodedata.normalize("NFD", "Je voudrais savoir où est passé mon colis égaré."), "fr"),
        ("Where has my order gone to?", "en"),
        ("Tengo una pregunta sobre la factura del mes pasado.", "es"),  # Likely, though nobody's.
        ("Рахунок за минулий місяць надійшов учора до мене.", "uk"),
        ("invoice", None),
        ("Rechnung", None),
        ("ok", None),
        ("", None),
        ("12345 67", None),
        ("\U0001f600" * 50, None),
        ('{"a": [1, 2, {"b": null}]}', None),
        ("\x00\ud800\udfff", None),
    ],
)
def test_a_language_is_told_where_there_is_enough_of_it(text: str, wanted: str | None) -> None:
    assert load_languages()(text, AMONG) == wanted


def test_a_text_that_nobody_maps_is_not_forced_into_what_somebody_does() -> None:
    galician = "Onde está o meu pedido? Hai xa dúas semanas que non sei nada del e quero o diñeiro de volta."
    assert load_languages()(galician, ("pt", "en")) != "pt"


def test_of_a_long_text_the_end_counts() -> None:
    german = "Ich habe eine Frage zu meiner letzten Rechnung. " * (MOST // 40)
    assert load_languages()("Where is my order? " * 10_000 + german, AMONG) == "de"


@given(st.text() | st.text(alphabet="\u0300\u200d\ufdfa\x00\ud800e", max_size=2000))
def test_any_text_is_told_the_same_twice_and_as_a_known_language(text: str) -> None:
    tell = load_languages()
    found = tell(text, AMONG)
    assert found == tell(text, AMONG)
    assert found is None or found in tell.known


def test_only_so_much_of_a_text_is_looked_at() -> None:
    looked: list[int] = []

    class Model:
        labels = ("de", "en")

        def rank(self, text: str) -> list[tuple[str, float]]:
            looked.append(len(text))
            return [("de", 0.97), ("en", 0.03)]

    assert languages.Languages(Model())("x" * 10_000_000, AMONG) == "de"
    assert looked == [MOST]


def test_what_is_not_installed_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    require_languages()
    monkeypatch.setattr(languages, "_LIBRARY", "no_such_library")
    with pytest.raises(BadInput, match=r"pip install 'stillroom\[languages\]'"):
        require_languages()
