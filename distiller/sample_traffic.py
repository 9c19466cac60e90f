"""Owns the built-in sample traffic: two made-up tasks with the answers of a made-up teacher. Must not know who uses it.

Tickets are triaged into one of four labels. A ticket may name two concerns, where the order in the system prompt
decides, or one that is solved already and does not count. About one ticket in twenty cannot be decided from its text:
there the teacher tosses a seeded coin, so nobody can agree with it always. Orders are copied into a JSON object.

Texts come from small grammars: `{a|b}` is a choice, `{name}` is any of `WORDS[name]`, and both nest. The last line of
each system prompt (date, people, numbers) changes from row to row; the rest of it never does.
"""

import json
import re
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

from proxy.errors import BadInput
from proxy.traffic_file import Row

MODEL = "sample"  # no real model said this
FIRST_DAY = date(2026, 3, 2)
ROWS_A_DAY = 200
TRIES = 1000  # texts drawn for one row before the grammar counts as exhausted

LABELS = ("account", "billing", "delivery", "technical")  # also the order of precedence
TRIAGE = (
    "You route support tickets for Larkmoor, a shop for kitchen and garden devices. Read the ticket and answer with "
    "exactly one label and nothing else.\n"
    "account: signing in, passwords, the customer profile, closing a profile.\n"
    "billing: charges, invoices, refunds, vouchers, payment cards.\n"
    "delivery: parcels that are late, lost, damaged or brought to the wrong place.\n"
    "technical: a device or the app does not work as it should.\n"
    "If a ticket names two open concerns, the one that comes first in the list above wins, because people who cannot "
    "sign in can do nothing else, and money comes before parcels and parcels before repairs. A concern that the "
    "customer says is already solved does not count."
)
ORDERS = (
    "You read order lines for the warehouse of Larkmoor. Answer with compact JSON only, in this form: "
    '{"item":"...","quantity":2,"city":"..."}. The item is copied as it is written, without the number. The quantity '
    "is an integer, also where the line spells it as a word. The city is where the goods go.\n"
    "Keep the item in the number in which the line has it, singular or plural, and keep its adjectives, as the "
    "pickers search for the very words. Leave out polite phrases, deadlines, reasons and who the goods are for. A "
    "dozen is 12, a pair is 2, and an article without a number is 1. The city is written as in the line, without "
    "country or district.\n"
    "The keys stand in the order shown, there are no others, and there is no blank after a colon or a comma. Do not "
    "explain, do not ask back, and do not put the JSON into a code fence: a program reads your answer as it is."
)

CONCERNS = {
    "account": (
        "I {cannot|can not|am unable to} sign in {to the shop|with my usual e-mail|on any computer}",
        "the password reset {mail|link} {never comes|has expired|leads nowhere}",
        "my {profile|login} {is locked|has been blocked|was suspended} {|without a reason|since {day}}",
        "I want to {close|delete|shut down} my {profile|login} {for good|completely}",
        "the {e-mail address|surname|phone number} in my profile {is wrong|is outdated|must be changed}",
        "the sign-in code {is rejected|does not arrive|is never accepted}",
    ),
    "billing": (
        "I was charged {twice|three times|too much} for {the|my} {product}",
        "the invoice for the {product} {shows the wrong sum|is missing|has the wrong company name}",
        "the refund {for|of} {amount} euros {has not been paid|is still missing|never reached my bank}",
        "my voucher {over|of} {amount} euros {was not deducted|is refused at the checkout}",
        "my {credit|debit|bank} card was {billed|debited} {amount} euros {by mistake|without my consent}",
        "you {took|deducted} {amount} euros {too much|more than agreed} from my bank",
    ),
    "delivery": (
        "the parcel with the {product} {has not arrived|is two weeks late|seems to be lost}",
        "the courier {left|dropped} the {product} at {a wrong address|the wrong house|a stranger's door}",
        "the box of the {product} {came crushed|arrived torn open|was soaked by rain}",
        "the shipment {has been stuck|is waiting} in {city} {since {day}|for days}",
        "the tracking page {says delivered, yet nothing came|has shown no movement since {day}}",
        "the {driver|courier} never {rang the bell|came} on {day} and took the parcel back",
    ),
    "technical": (
        "the {product} {does not turn on|keeps switching itself off|makes a grinding noise}",
        "the display of the {product} {flickers|stays black|shows error {amount}}",
        "the app {crashes|freezes} when I {open the recipes|pair the {product}|set a timer}",
        "the {product} {loses its wireless connection|overheats|leaks water} {|after a few minutes|every evening}",
        "the firmware update of the {product} {stops halfway|fails every time}",
        "the battery of the {product} {is empty within an hour|no longer charges}",
    ),
}
UNCLEAR = (
    (("billing", "delivery"), "something about my order {from|of} {day} with the {product} is {not right|wrong|off}"),
    (("technical", "delivery"), "the {product} I got on {day} is {a disappointment|not what I hoped for|no good}"),
    (("account", "billing"), "there is {an issue|a mix-up} with my {product} subscription {since|from} {day} on"),
    (("account", "technical"), "I can no longer {use|reach} your {product} service {since|as of} {day} at all"),
)
OPENERS = (
    "{Hello|Hi|Good morning|Good evening|Dear team},",
    "{Hello|Hi}, this is {name} {from|in} {city}.",
    "{I bought something from you|I have been a customer} {since|in} {month}.",
    "{Quick question|Short note} from {name}:",
    "{Writing to you|Getting in touch} {again|once more|for the first time} {from {city}|this {month}}.",
)
CLOSERS = (
    "{Please|Kindly} {advise|get back to me|call me back} {before|by} {day}.",
    "{What should I do|How do we go on} {now|from here}?",
    "{Thanks|Many thanks|Best regards}, {name}.",
    "I {would like|expect} {an answer|a reply} {this week|by {day}|soon}.",
    "{Could|Can} {someone|anybody} {look into it|take care of this}, please?",
)
SOLVED = ("is solved by now", "has been settled", "is fixed already", "no longer matters, it is sorted out")
LINES = (
    "{Please|Kindly} {send|ship|deliver} {count} {goods} to our {place} in {city}{|, {when}|, thank you}.",
    "We {need|would like|want to order} {count} {goods} for the {place} in {city}{|, {when}|, as agreed}.",
    "{name} here: {count} {goods} {should go|are needed} to {city}{|, {when}|, same {place} as last time}.",
    "{Could|Can} you {get|bring} {count} {goods} to {city}, {when}? {Thanks|Regards}, {name}.",
    "Our {place} in {city} {has run out|is short}: {send|reserve} {count} {goods}{|, {when}}, please.",
    "{Order|New order} for {city}: {count} {goods}, {when}, {attention|care of} {name} at the {place}.",
    "{Hello|Hi}, {name} from the {place} in {city} asks for {count} {goods}{|, {when}}.",
)
WORDS: dict[str, str] = {
    "product": "kettle|toaster|blender|coffee grinder|juicer|rice cooker|hand mixer|steam oven|food scale|hedge trimmer"
    "|lawn mower|leaf blower|sprinkler|garden lamp|pond pump|soil sensor|air fryer|waffle iron|ice maker|bread maker",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "month": "January|February|April|June|July|August|October|November|December",
    "amount": "|".join(str(number) for number in range(12, 98)),
    "name": "{first} {last}",
    "first": "Dana|Ruben|Ines|Tomas|Leila|Oskar|Mirja|Paolo|Greta|Hamid|Noor|Viktor|Selma|Bruno|Aiko|Jonas|Carla|Milan",
    "last": "Whitfield|Okafor|Lindqvist|Moreau|Haddad|Novak|Ferreira|Tanaka|Brandt|Castell|Iversen|Doyle|Petrov",
    "city": "Lyon|Bergen|Porto|Graz|Leeds|Tampere|Gdansk|Seville|Ghent|Aarhus|Turin|Zagreb|Cork|Basel|Utrecht|Malmo"
    "|Brno|Split|Dresden|Nantes|Varna|Tartu|Bilbao|Patras|Kaunas|Debrecen|Maribor|Rennes|Parma|Lund",
    "goods": "{finish} {thing}",
    "finish": "walnut|copper|enamel|bamboo|ceramic|linen|granite|steel|cork|oak|glass|marble|willow|slate|brass",
    "thing": "trays|bowls|ladles|kettles|baskets|lanterns|planters|cutting boards|pitchers|stools|mugs|spice racks"
    "|trivets|bread bins|watering cans|salt mills|plates|candle holders",
    "place": "branch|warehouse|cafe|showroom|hotel|school kitchen|test garden|canteen",
    "when": "by {day}|before {day}|in {month}|no later than {day}|ideally this week",
}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def sample_traffic(count: int, seed: int) -> list[Row]:
    """`count` rows, tickets and orders in turn; the same `seed` gives the same rows, and no user text comes twice."""
    rng = Random(seed)
    seen: set[str] = set()
    rows = []
    for index in range(count):
        make, system, people = (_ticket, TRIAGE, _case_line) if index % 2 == 0 else (_order, ORDERS, _desk_line)
        text, answer = next((made for made in (make(rng) for _ in range(TRIES)) if made[0] not in seen), ("", ""))
        if not text:
            raise BadInput(f"the sample grammar has no more than {index} distinct texts; ask for fewer rows")
        seen.add(text)
        day = FIRST_DAY + timedelta(days=index // ROWS_A_DAY)
        prompt = f"{system}\n{people(day, rng)}"
        messages = ({"role": "system", "content": prompt}, {"role": "user", "content": text})
        rows.append(Row(messages, answer, None, MODEL, None))
    return rows


def write_traffic(rows: Sequence[Row], path: str | Path) -> None:
    """Write rows as a recorded-traffic file, which `read_traffic` reads back as the same rows."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(_record(row), ensure_ascii=False) + "\n")


def _record(row: Row) -> dict[str, Any]:
    message = {"content": row.answer, "tool_calls": list(row.tool_calls or ())}
    output = message if row.tool_calls or row.tools else row.answer  # with tools a bare text could read as calls
    record: dict[str, Any] = {"messages": list(row.messages), "teacher_output": output, "teacher_model": row.model}
    if row.tools:
        record["tools"] = list(row.tools)
    return {**record, "gold": None, "source": "stillroom sample"}


def _expand(rng: Random, text: str) -> str:
    """Resolve the innermost braces, by name or by choice, until none is left."""
    while match := re.search(r"\{([^{}]*)\}", text):
        inner = match[1]
        chosen = f"{{{WORDS[inner]}}}" if inner in WORDS else rng.choice(inner.split("|"))
        text = text[: match.start()] + chosen + text[match.end() :]
    return " ".join(text.split())


def _ticket(rng: Random) -> tuple[str, str]:
    kind = rng.random()
    while True:
        label, concern = _concern(rng, kind)
        body = _expand(rng, concern)
        parts = [_expand(rng, rng.choice(OPENERS)), body[0].upper() + body[1:] + ".", _expand(rng, rng.choice(CLOSERS))]
        text = " ".join(parts[rng.randrange(2) : 3 - rng.randrange(2)])
        if 15 <= len(text.split()) <= 30:
            return text, label


def _concern(rng: Random, kind: float) -> tuple[str, str]:
    """The label and the template of what a ticket is about; `kind`, in [0, 1), says how many concerns it names."""
    if kind < 0.05:
        labels, concern = rng.choice(UNCLEAR)
        return rng.choice(labels), concern
    if kind < 0.74:
        label = rng.choice(LABELS)
        return label, rng.choice(CONCERNS[label])
    return _two_concerns(rng, solved=kind >= 0.92)


def _two_concerns(rng: Random, *, solved: bool) -> tuple[str, str]:
    first, second = rng.sample(LABELS, 2)
    one, two = rng.choice(CONCERNS[first]), rng.choice(CONCERNS[second])
    if solved:
        return second, f"{one}, {{but|yet}} {{that|this}} {rng.choice(SOLVED)}; {{now|today}} {two}"
    return min(first, second, key=LABELS.index), f"{one}, {{and|also}} {two}"


def _order(rng: Random) -> tuple[str, str]:
    number = rng.randrange(2, 13) if rng.random() < 0.6 else rng.randrange(13, 90)
    word = NUMBERS[number - 2] if number <= 12 and rng.random() < 0.6 else str(number)
    item, city = _expand(rng, "{goods}"), _expand(rng, "{city}")
    while True:
        line = rng.choice(LINES).replace("{count}", word).replace("{goods}", item).replace("{city}", city)
        text = _expand(rng, line)
        if 12 <= len(text.split()) <= 25:
            answer = {"item": item, "quantity": number, "city": city}
            return text, json.dumps(answer, separators=(",", ":"))


def _case_line(day: date, rng: Random) -> str:
    return f"Today is {day}. You are assisting {_expand(rng, '{name}')}, case {rng.randrange(10_000, 100_000)}."


def _desk_line(day: date, rng: Random) -> str:
    return f"Today is {day}. The desk is run by {_expand(rng, '{name}')}, ticket {rng.randrange(10_000, 100_000)}."
