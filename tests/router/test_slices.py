import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Refused
from proxy.ids import ulid
from proxy.log import Log
from router.lifecycle import advance, promote, standing
from router.parity import parity
from router.registry import CANARY, Candidate
from router.settings import RouterSettings
from router.slices import FACETS, MOST, NONE, REST, Slice, behind, facets, lagging, language, members, slices
from tests.router.conftest import TASK, add_rows, chat, insert, judged, known


def compared(log: Log, candidate: Candidate, verdicts: Sequence[float], **columns: Any) -> list[tuple[str, float]]:
    """Covered verdicts on exchanges that are in the log, all with these columns."""
    text = str(columns.pop("text", "where is it"))
    exchanges = insert(log, [f"{text} {number}" for number in range(len(verdicts))], **columns)
    rows = list(zip(exchanges, verdicts, strict=True))
    given = {"candidate": candidate.id, "kind": "shadow", "covered": True}
    add_rows(log, "verdicts", [given | {"id": ulid(), "exchange": one, "verdict": score} for one, score in rows])
    return rows


def of(table: Sequence[Slice], facet: str) -> dict[str, Slice]:
    return {one.value: one for one in table if one.facet == facet}


def test_each_verdict_is_in_one_slice_of_each_facet(log: Log) -> None:
    candidate = known(log)
    rows = compared(log, candidate, [1.0, 0.0, 1.0], tenant="acme") + compared(log, candidate, [1.0], tenant=None)
    found = slices(log, [*rows, ("nowhere", 0.0)], 0.05, 0.05, 0.1)
    assert found.gone == 1
    assert [sum(one.n for one in of(found.table, facet).values()) for facet in FACETS] == [4] * len(FACETS)
    tenants = of(found.table, "tenant")
    assert (tenants["acme"].n, tenants["acme"].mean, tenants[NONE].n) == (3, pytest.approx(2 / 3), 1)


def test_members_are_told_by_place(log: Log) -> None:
    exchanges = [*insert(log, ["a", "b"], tenant="acme"), "nowhere", *insert(log, ["c"], tenant=None)]
    groups, gone = members(log, exchanges)
    assert gone == 1
    assert {value: places for (facet, value), places in groups.items() if facet == "tenant"} == {
        "acme": [0, 1], NONE: [3],
    }  # fmt: skip
    assert members(log, []) == ({}, 0)


def test_the_bound_is_the_parity_tests_at_a_share_of_alpha(log: Log) -> None:
    candidate = known(log)
    rows = compared(log, candidate, [1.0, 0.0] * 20, tenant="a") + compared(log, candidate, [1.0] * 9, tenant="b")
    found = slices(log, rows, 0.05, 0.05, 0.1).table
    again = parity([1.0, 0.0] * 20, 0.15, 0.05 / len(found))
    assert of(found, "tenant")["a"].upper == again.upper
    assert of(found, "tenant")["a"].behind == again.refuted


def test_a_slice_far_behind_is_found_though_the_whole_is_good(log: Log) -> None:
    candidate = known(log)
    compared(log, candidate, [1.0] * 600, tenant="many")
    assert lagging(log, candidate, 0.1) is None
    compared(log, candidate, [0.0] * 12, tenant="few")
    said = lagging(log, candidate, 0.1)
    assert said is not None
    assert "tenant few: at most 0." in said
    assert "below 0.85" in said
    assert lagging(log, candidate, 0.94) is None


def test_a_few_failures_are_no_evidence(log: Log) -> None:
    candidate = known(log)
    compared(log, candidate, [1.0] * 60, tenant="many")
    compared(log, candidate, [0.0] * 2, tenant="few")
    assert lagging(log, candidate, 0.1) is None


def test_nothing_compared_or_nothing_left_holds_nothing_back(log: Log) -> None:
    candidate = known(log)
    assert lagging(log, candidate, 0.1) is None
    judged(log, candidate, [0.0] * 60)
    assert lagging(log, candidate, 0.1) is None


def test_many_values_of_a_facet_share_the_last_slice(log: Log) -> None:
    candidate = known(log)
    rows = [row for number in range(MOST + 5) for row in compared(log, candidate, [1.0], tenant=f"t{number:02}")]
    tenants = of(slices(log, rows, 0.05, 0.05, 0.1).table, "tenant")
    assert len(tenants) == MOST + 1
    assert tenants[REST].n == 5


def test_the_worst_comes_first() -> None:
    table = [Slice("tenant", str(upper), 9, 0.1, upper, upper < 0.6) for upper in (0.9, 0.5, 0.2)]
    assert [one.upper for one in behind(table)] == [0.2, 0.5]


@pytest.mark.parametrize(
    ("size", "name"), [(0, "below 1 kB"), (1024, "1 to 4 kB"), (16383, "4 to 16 kB"), (16384, "16 kB or more")]
)
def test_lengths_are_fixed_beforehand(size: int, name: str) -> None:
    assert facets("{}", size, None)["length"] == name


def test_a_number_in_the_instructions_makes_no_new_template_but_a_word_does() -> None:
    def template(text: str) -> str:
        return facets(json.dumps({"messages": [{"role": "system", "content": text}]}), 0, None)["template"]

    assert template("Today is 2026-01-02. Say which queue.") == template("Today is 2025-11-30. Say which queue.")
    assert template("Say which queue.") != template("Say which team.")
    assert facets("{}", 0, None)["template"] == NONE


def test_tools_are_named_in_order() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("search", "book")]
    assert facets(json.dumps({"tools": tools}), 0, None)["tools"] == "book, search"


def test_language_is_of_the_conversation_not_of_the_instructions() -> None:
    request = json.dumps({"messages": chat("ich habe die Rechnung nicht von der Firma")})
    assert facets(request, 0, None)["language"] == "German"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("My order is late and I have not heard from you", "English"),
        ("Je n'ai pas re\u00e7u ma commande et je voudrais la facture avec les frais", "French"),
        ("No puedo entrar en mi cuenta y los datos del pedido est\u00e1n mal", "Spanish"),
        ("Eu n\u00e3o consigo acessar minha conta e o pedido n\u00e3o chegou", "Portuguese"),
        ("Non sono riuscito a pagare il conto della ditta", "Italian"),
        ("Ik heb het pakket niet van de winkel gekregen", "Dutch"),
        ("\u0413\u0434\u0435 \u043c\u043e\u0439 \u0437\u0430\u043a\u0430\u0437", "Cyrillic script"),
        ("\u6ce8\u6587\u306f\u3069\u3053\u3067\u3059\u304b", "Japanese"),
        ("\u6211\u7684\u8ba2\u5355\u5728\u54ea\u91cc", "Chinese"),
        ("\uc8fc\ubb38 \uc5b4\ub514", "Korean"),
        ("refund", "Latin script"),
        ("12 + 3", NONE),
        ("", NONE),
    ],
)
def test_language_is_a_light_guess(text: str, wanted: str) -> None:
    assert language(text) == wanted


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["system", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "tools", "role", "content", "function", "name", "text"]), inner)
    ),
    max_leaves=20,
)


@given(HOSTILE)
def test_no_body_is_too_strange(body: Any) -> None:
    found = facets(json.dumps(body), 10, None)
    assert tuple(found) == FACETS
    assert all(value.encode() for value in found.values())


def test_what_is_no_json_has_a_length() -> None:
    assert facets("[" * 100_000, 100_000, "acme")["length"] == "16 kB or more"


def test_a_proof_with_a_slice_far_behind_moves_nothing_and_says_why(log: Log) -> None:
    candidate = known(log)
    for tenant, verdict, count in (("many", 1.0, 600), ("few", 0.0, 12)):
        exchanges = insert(log, ["a"] * count, tenant=tenant)
        given = {"candidate": candidate.id, "kind": "shadow", "verdict": verdict, "covered": True}
        add_rows(log, "verdicts", [given | {"id": ulid(), "exchange": one} for one in exchanges])
    assert advance(log, candidate, RouterSettings()) is None
    assert "held back: 1 of its slices" in str(standing(log, candidate, RouterSettings())["verdict"])
    with pytest.raises(Refused, match=r"held back: .*tenant few"):
        promote(log, TASK, RouterSettings())
    lenient = RouterSettings(slice_floor=0.9)
    assert promote(log, TASK, lenient).stage == CANARY
