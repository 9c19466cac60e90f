"""The name of a task: what must not split it, what must, and what a strange body may not do."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.tasks import skeleton, task_of

PASSAGE_A = "Returns are free for 30 days.\nKeep the box, Maria says.\n\nOur shop in Lyon opens at nine."
PASSAGE_B = "The pump needs oil every spring. Use only grade B.\n\nIf it leaks, close the valve.\n\nCall Henk."


def chat(system: object, **more: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": "x"}],
        **more,
    }


def tool(name: str, properties: dict[str, Any], description: str = "Looks it up.") -> dict[str, Any]:
    spec = {"name": name, "description": description, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": spec}


# (template, first values, second values): the two fillings are one task.
SAME = [
    ("Summarise the call of {}.", "2026-03-04", "2025-12-24"),
    ("Summarise the call of {}.", "3/4/2026", "March 4, 2026"),
    ("Summarise the call of {}.", "4 March", "March 14, 2025"),
    ("Today is {}. Answer politely.", "Monday, March 4, 2026", "Friday, December 24, 2027"),
    ("The time is {}. Answer politely.", "10:30 AM", "14:05"),
    ("The time is {}. Answer politely.", "10:30 am UTC", "9:15 PM CET"),
    ("{} is the date of today. Answer politely.", "May 4, 2026", "2026-05-04"),
    ("Offer at most {} of discount.", "$1,200.50", "€15"),
    ("Offer at most {} of discount.", "5%", "12.5 percent"),
    ("This is the {} reminder.", "2nd", "31st"),
    ("The request is {}.", "550e8400-e29b-41d4-a716-446655440000", "deadbeef-cafe-4bad-8bad-c0ffee000001"),
    ("Look at ticket {} first.", "#A-48213", "TCK-99"),
    ("The account is {}.", "usr_8fj2k", "usr_99aab1"),
    ("Forward complaints to {}.", "maria.lopez@example.com", "j+x@mail.example.org"),
    ("Policies are at {} and apply.", "https://example.com/help?id=1", "http://docs.example.org/a/b"),
    ("Give the number {} to callers.", "+1 (415) 555-0199", "020 7946 0958"),
    ("You are assisting {}. Be brief.", "Maria", "John Smith"),
    ("You are the assistant of {}, a shop for tools.", "Acme Corp.", "Bolt & Nut Ltd."),
    ("You help {} with their garden.", "Ludwig van Beethoven", "María de la Cruz"),
    ("You help {} with their garden.", "Maria, John and Li", "Ann"),
    ("You help {} with their garden.", "J. Smith", "Dr. O'Brien-Jones"),
    ("Write to {}'s manager.", "Priya", "Jean-Luc"),
    ("{} asked for a refund. Draft the answer.", "Maria Lopez", "John Q. Smith"),
    ("{} parcel is late. Draft the answer.", "Maria's", "Bob's"),
    ("Draft the answer.\nCustomer: {}\nBe polite.", "Maria", "Acme Robotics Inc"),
    ("Draft the answer.\n- **Agent:** {}\n- **Plan:** Gold\nBe polite.", "Li Wei", "Tom"),
    ("Draft the answer.\nCity: {}", "Lyon", "New York"),
    ("Answer from the text.\n<context>{}</context>\nSay so if it is not there.", PASSAGE_A, PASSAGE_B),
    ('Answer.\n<document index="1">{}</document>\nBe brief.', PASSAGE_A, PASSAGE_B),
    ('Summarise the text.\n"""{}"""\nBe brief.', PASSAGE_A, PASSAGE_B),
    ("Summarise the text.\n```\n{}\n```\nBe brief.", PASSAGE_A, PASSAGE_B),
    ("Answer the question.\n\nContext:\n{}\n\nInstructions:\nBe brief.", PASSAGE_A, PASSAGE_B),
    ("Answer the question.\n\n## Retrieved documents\n{}", PASSAGE_A, PASSAGE_B),
    ("Answer the question using these passages:\n{}\n\nAnswer in two sentences.", PASSAGE_A, PASSAGE_B),
    ("Answer the question.\nSearch results:\n{}", PASSAGE_A, PASSAGE_B),
    ("Answer the question.\nRelevant policy sections:\n{}", PASSAGE_A, PASSAGE_B),
    ("Answer the question.\nKnowledge base: {}", "we open at nine", "the valve is blue"),
    ("Cite your sources.\n{}\nBe brief.", "[1] The sky is blue.\n[2] So is the sea.", "[1] Rain falls."),
    ("Score it.\nTeam members:\n{}\nBe fair.", "- Maria Lopez\n- John Smith", "- Ann Lee\n- Bo Derek\n- Cy Young"),
    ("Be{}brief.", "  ", "\n   "),
    ("Du hilfst {} und antwortest kurz.", "Frau Anna Schmidt", "Herr Jens Groß"),
]

# Two instructions that are different tasks.
DIFFERENT = [
    ("Translate the text to French.", "Translate the text to German."),
    ("Translate from Spanish to English.", "Translate from English to Spanish."),
    ("Summarize the ticket of Maria Lopez.", "Translate the ticket of Maria Lopez."),
    ("Summarize Acme's contract.", "Review Acme's contract."),
    ("Classify as billing, shipping or returns.", "Classify as bug, feature or question."),
    ("Choose one of: Billing, Shipping, Returns.", "Choose one of: Bug, Feature, Question."),
    ("Classify the mail as Spam or Ham.", "Classify the mail as Work or Private."),
    ("Categories:\n- Order Status\n- Refund Request", "Categories:\n- Password Reset\n- Account Deletion"),
    ("Categories:\n\n- Order Status\n- Refund Request", "Categories:\n\n- Password Reset\n- Account Deletion"),
    ("Rules:\n1. Be kind.\n2. Quote the law.", "Rules:\n1. Stay calm.\n2. Quote the law."),
    ('Reply "Approved" or "Denied".', 'Reply "Hot Dog" or "Not Hot Dog".'),
    ("Answer YES or NO.", "Answer TRUE or FALSE."),
    ("Answer with the label: OUT_OF_STOCK or IN_STOCK.", "Answer with the label: PAID or UNPAID."),
    ("Answer in JSON.", "Answer in XML."),
    ("Answer Positive or Negative.", "Answer High or Low."),
    ("Rate the answer P1 or P2.", "Rate the answer P3 or P4."),
    ("Convert the code from Python to Rust.", "Convert the code from Python to Java."),
    ("Extract the names of people.", "Extract the names of companies."),
    ("Answer in one sentence.", "Answer in one word."),
    ("Answer.\n\nContext:\nit rains\n\nAnswer in French.", "Answer.\n\nContext:\nit rains\n\nAnswer in German."),
    ("Task: Summarization\nBe brief.", "Task: Translation\nBe brief."),
    ('Output:\n```json\n{"team": "x"}\n```', 'Output:\n```json\n{"sentiment": "x"}\n```'),
    ('Answer as {"team":"x","priority":1}', 'Answer as {"mood":"x","priority":1}'),
    ("Schreibe eine Zusammenfassung und nicht mehr.", "Schreibe eine Antwort und nicht mehr."),
]

# What is known to fail, so that nobody believes otherwise: these split, though they are one task ...
SPLITS_WRONGLY = [
    ("Maria is a gold customer. Be kind.", "John is a gold customer. Be kind."),  # one capital at a sentence's start
    ("You are the assistant of NASA.", "You are the assistant of IBM."),  # ALL CAPS reads as a label
    ("You help maria with her garden.", "You help john with her garden."),  # names in lower case
    ("You help 李雷.", "You help 韩梅梅."),  # scripts without capitals
    ("Du hilfst Maria und antwortest kurz.", "Du hilfst Anna und antwortest kurz."),  # one capital in German
    ("Answer. The weather is sunny.", "Answer. The weather is rainy."),  # a variable that is an ordinary word
]
# ... and these do not split, though they are two.
MERGES_WRONGLY = [
    ("Rate it from 1 to 5.", "Rate it from 1 to 10."),  # a number that is the instruction
    ("Encode it as base64.", "Encode it as base32."),  # a digit inside a term
    ("Write in the voice of Shakespeare.", "Write in the voice of Hemingway."),  # a name that is the instruction
    ("Write a query for Postgres.", "Write a query for Oracle."),  # so for products
]


@pytest.mark.parametrize(("template", "one", "two"), SAME)
def test_what_changes_from_call_to_call_does_not_split_a_task(template: str, one: str, two: str) -> None:
    assert skeleton(template.format(one)) == skeleton(template.format(two))
    assert task_of(chat(template.format(one)), None) == task_of(chat(template.format(two)), None)


@pytest.mark.parametrize(("one", "two"), DIFFERENT)
def test_other_work_is_another_task(one: str, two: str) -> None:
    assert task_of(chat(one), None) != task_of(chat(two), None)


@pytest.mark.parametrize(("one", "two"), SPLITS_WRONGLY)
def test_known_wrong_splits(one: str, two: str) -> None:
    assert skeleton(one) != skeleton(two)


@pytest.mark.parametrize(("one", "two"), MERGES_WRONGLY)
def test_known_wrong_merges(one: str, two: str) -> None:
    assert skeleton(one) == skeleton(two)


NAMES = st.sampled_from(
    ["Maria", "John Smith", "Dr. Ana de Souza", "Acme Corp", "Jean-Luc Picard", "Li, Bo and Ann Lee"]
)
DATES = st.sampled_from(["2026-03-04", "3/4/2026", "March 4, 2026", "4 March", "Monday", "10:30 AM", "Tue, 5 Jan 2027"])
IDS = st.sampled_from(
    ["#A-48213", "TCK-99", "usr_8fj2k", "7f3e-11aa", "a.b@example.com", "https://example.com/x/1", "$12.50"]
)
SENTENCES = st.sampled_from(
    [
        "Returns take Five days.",
        "If it leaks, close the valve.",
        "Ask Henk.",
        "Prices rose 4% in May.",
        "\n\n",
        "It works.",
    ]
)
PASSAGES = st.lists(SENTENCES, min_size=1, max_size=8).map(" ".join).filter(lambda text: text.strip() != "")
TEMPLATES = [
    "You answer questions about orders for {name}. Today is {date}.\n\nThe order is {id}. Be brief and never guess.",
    "You triage tickets of {name}, received on {date}.\nTicket: {id}\nCustomer: {name}\n\nAnswer only with JSON.",
    "Tell {name} what is in the text.\n\n<context>\n{passage}\n</context>\n\nSay on {date} if {id} is not there.",
    "Reply to the client.\n```\n{passage}\n```\nSign as {name} and refer to {id}.",
    "Help.\nName: {name}\n\nRules:\n1. Be kind.\n2. Quote {id}.\n\nContext:\n{passage}\n\nOutput format:\nOne line.",
]
FILLING = st.fixed_dictionaries({"name": NAMES, "date": DATES, "id": IDS, "passage": PASSAGES})


@settings(max_examples=200, deadline=None)
@given(template=st.sampled_from(TEMPLATES), one=FILLING, two=FILLING)
def test_a_template_filled_twice_is_one_task(template: str, one: dict[str, str], two: dict[str, str]) -> None:
    assert skeleton(template.format(**one)) == skeleton(template.format(**two))


@settings(max_examples=60, deadline=None)
@given(filling=FILLING)
def test_templates_stay_apart_however_they_are_filled(filling: dict[str, str]) -> None:
    assert len({task_of(chat(template.format(**filling)), None) for template in TEMPLATES}) == len(TEMPLATES)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from('aB1 \n.:#-*<>/`"[]@€é\x00') | st.characters(), max_size=300))
def test_any_text_has_a_skeleton_and_a_valid_name(text: str) -> None:
    name = task_of(chat(text), None)
    assert re.fullmatch(r"untitled|[a-z0-9-]{1,48}-[0-9a-f]{8}", name)
    assert task_of(chat(text), name) == name  # and a client may send it back


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    [
        *'aA1 \n#-*>[<`"@:/€',
        "Aa ",
        "a-",
        "a.",
        "a@",
        "a:",
        "1 ",
        "<doc>",
        "<doc ",
        "```",
        "Context:\n\n",
        "- ",
        "a+a",
        "Context:\nx\n\n#",
        "one of Aa, ",
        "Maria and ",
        "Aa van ",
        "classify as ",
        "Key: Value\n",
        "[1] x\n",
        "https://",
        "Categories:\n- Aa Bb\n",
        '"description": "',
        "Documents (",
        "Context:\n\nNote:\n",
    ],
)
def test_long_hostile_text_ends(unit: str) -> None:
    text = unit * (100_000 // len(unit))  # a quadratic step takes minutes here: pytest's time limit is the assertion
    assert len(skeleton(text)) <= 2 * len(text)


def test_header_wins_and_is_checked() -> None:
    assert task_of(chat("Be brief."), "support.triage_v2-x") == "support.triage_v2-x"
    for bad in ("", "a b", "a/b", "..", ".hidden", "ü", "a" * 81, "a\n"):
        with pytest.raises(BadInput, match="x-stillroom-task must be"):
            task_of(chat("Be brief."), bad)


def test_the_slug_tells_the_task() -> None:
    name = task_of(chat("You are a helpful assistant. Triage the incoming support tickets of Acme Corp."), None)
    assert re.fullmatch(r"triage-incoming-support-tickets-[0-9a-f]{8}", name)
    assert task_of(chat("Übersetze alles."), None).startswith("ubersetze-alles-")
    assert task_of(chat("翻译"), None).startswith("task-")
    assert task_of(chat("", tools=[tool("get_weather", {})]), None).startswith("get-weather-")


def test_tools_and_formats_are_part_of_the_task() -> None:
    city, date = {"city": {"type": "string"}}, {"date": {"type": "string"}}
    bodies = [
        chat("Help."),
        chat("Help.", tools=[tool("weather", city)]),
        chat("Help.", tools=[tool("weather", date)]),
        chat("Help.", tools=[tool("stocks", city)]),
        chat("Help.", tools=[tool("weather", city), tool("stocks", city)]),
        chat("Help.", tools=[tool("weather", city, "Forecasts for a week.")]),
        chat("Help.", response_format={"type": "json_object"}),
        chat("Help.", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x"]}}}),
        chat("Help.", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["y"]}}}),
    ]
    assert len({task_of(body, None) for body in bodies}) == len(bodies)


def test_order_of_tools_and_keys_and_names_in_descriptions_do_not_matter() -> None:
    weather, stocks = tool("weather", {"city": {"type": "string"}}), tool("stocks", {})
    assert task_of(chat("Help.", tools=[weather, stocks]), None) == task_of(
        chat("Help.", tools=[stocks, weather]), None
    )
    one = {"type": "string", "description": 'The "city" of Maria Lopez, say on 2026-01-01.'}
    two = {"description": 'The "city" of Bob, say on 2027-12-31.', "type": "string"}
    assert task_of(chat("", tools=[tool("w", {"c": one})]), None) == task_of(
        chat("", tools=[tool("w", {"c": two})]), None
    )
    assert task_of(chat("Help.", response_format={"type": "text"}), None) == task_of(chat("Help."), None)


def test_instructions_are_all_before_the_user_speaks() -> None:
    system = {"role": "system", "content": "Help with tax."}
    developer = {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}
    user = {"role": "user", "content": "hello"}
    alone = task_of({"messages": [system, user]}, None)
    both = task_of({"messages": [system, developer, user]}, None)
    assert alone != both
    assert task_of({"messages": [system, user, developer]}, None) == alone
    assert task_of({"messages": [system, {"role": "user", "content": "other"}]}, None) == alone


def test_responses_and_completions() -> None:
    body = {
        "instructions": "Help with tax on 2026-01-01.",
        "input": "hello",
        "text": {"format": {"type": "json_object"}},
    }
    same = {**body, "instructions": "Help with tax on 2027-05-05.", "input": [{"role": "user", "content": "x"}]}
    assert task_of(body, None) == task_of(same, None)
    assert task_of(body, None) != task_of({**body, "text": {"format": {"type": "text"}}}, None)
    assert task_of(body, None) == task_of(
        chat("Help with tax on 2026-02-02.", response_format={"type": "json_object"}), None
    )
    flat = {"type": "function", "name": "weather", "description": "Looks it up.", "parameters": {"type": "object"}}
    assert task_of({**body, "tools": [flat]}, None) != task_of({**body, "tools": [{"type": "web_search"}]}, None)
    assert task_of({"prompt": "Once upon a time"}, None) == "untitled"
    assert task_of({"messages": [{"role": "user", "content": "hi"}]}, None) == "untitled"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": "x"},
        {"messages": [1, None, {"role": 3}]},
        {"messages": {"a": 1}},
        {"messages": [{"role": "system", "content": 5}]},
        {"tools": "x", "text": 4},
        {"tools": [], "response_format": None},
    ],
)
def test_strange_bodies_are_untitled(body: dict[str, Any]) -> None:
    assert task_of(body, None) == "untitled"


def test_strange_tools_still_have_a_name() -> None:
    assert (
        task_of({"tools": [1, {"function": 5}, {"function": {"name": None}}], "response_format": "odd"}, None)
        != "untitled"
    )
