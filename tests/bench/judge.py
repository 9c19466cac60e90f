"""Calibrates judges on planted pairs, and shows which of them are fit: `make bench-judge`, about 5 minutes.

Judges whose ways are known come first: they are real servers, asked through litellm, and what the calibration says of
them must be true. Then a real one, SmolLM2-135M-Instruct on this machine, twice: as it replies by itself, and with its
reply held to the form, which shows what such a small model would do with a position. It is expected to be refused.

    python -m tests.bench.judge --data recorded.jsonl    plants in recorded traffic instead of generated answers
    python -m tests.bench.judge --without-model          only the judges that are known
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distiller.base import DEFAULT_BASE, load_model, resolve_base
from distiller.examples import render_prompt
from proxy.errors import Refused
from proxy.traffic_file import read_traffic
from router.judge import Judge, Message, Spoken
from router.judge_client import connect_judge
from router.judging import Calibration, fit, in_words, measured, refuse_kin, tried
from router.planted import Planted, plant
from router.settings import JudgeSettings
from tests.judges import Judges, read
from tests.servers import serving

KNOWN = ("perfect", "leans-to-a", "always-a", "longest", "random", "verbose", "echoing")
HEAD = (
    "judge", "worse found", "at least", "equal tied", "unparseable", "position bias before swapping", "after",
    "flipped", "fit",
)  # fmt: skip
NEW_TOKENS = 16
Row = tuple[list[dict[str, Any]], str]


def generated() -> list[Row]:
    """Answers of the kind a support desk gives."""
    things = ("kettle", "toaster", "lamp", "fan", "radio")
    return [
        (
            [{"role": "system", "content": "Answer the customer in two or three sentences."},
             {"role": "user", "content": f"Order {7000 + n}: my {things[n % 5]} arrived broken. What now?"}],
            f"We are sorry that the {things[n % 5]} of order {7000 + n} is broken. A new one will leave our house in "
            f"{2 + n % 4} days, and you can keep the old one. Its price of {20 + n} euros is not charged again.",
        )
        for n in range(60)
    ]  # fmt: skip


def recorded(file: Path) -> list[Row]:
    """Free text of recorded traffic: answers of several words without tool calls, one for each last message."""
    rows = {row.messages[-1].get("content"): row for row in read_traffic(file) if row.answer and not row.tool_calls}
    kept = [(list(row.messages), row.answer or "") for row in rows.values()]
    return [(messages, answer) for messages, answer in kept if len(answer.split()) >= 12]


class Local:
    """The base model as a judge; `held` takes the likeliest of the replies that can be read."""

    def __init__(self, folder: Path, held: bool) -> None:
        from transformers import AutoTokenizer

        self._tokenizer, self._model, self._held = (
            AutoTokenizer.from_pretrained(folder),
            load_model(folder).eval(),
            held,
        )

    async def __call__(self, messages: Sequence[Message]) -> Spoken:
        return Spoken(await asyncio.to_thread(self._say, [dict(message) for message in messages]), 0.0)

    def _say(self, messages: list[dict[str, Any]]) -> str:
        import torch

        text, key = render_prompt(self._tokenizer, messages), read(messages).key
        with torch.inference_mode():
            if not self._held:
                ids = self._ids(text)
                out = self._model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
                )
                return str(self._tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
            last = self._model(input_ids=self._ids(text + key), logits_to_keep=1).logits[0, -1]
            words = ("A", "B", "TIE")
            firsts = [int(self._ids(f" {word}")[0, 0]) for word in words]
            return f"{key} {words[int(last[firsts].argmax())]}"

    def _ids(self, text: str) -> Any:
        return self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


async def known(rows: Sequence[Row], pairs: Sequence[Planted]) -> list[Calibration]:
    judges = Judges({messages[-1]["content"]: answer for messages, answer in rows})
    found = []
    with serving(judges.app()) as url:
        for way in KNOWN:
            judge = connect_judge(JudgeSettings(f"openai/{way}", url), lambda *_: None)
            assert judge is not None
            found.append(replace(measured(judge.name, pairs, await tried(judge, pairs)), judge=way))
    return found


async def local(pairs: Sequence[Planted]) -> list[Calibration]:
    folder = resolve_base(DEFAULT_BASE, Path(tempfile.gettempdir()) / "stillroom-bench-bases")
    found = []
    for held in (True, False):
        name = f"SmolLM2-135M-Instruct, {'held to the form' if held else 'as it replies'}"
        judge = Judge(name, Local(folder, held), 1)
        found.append(measured(name, pairs, await tried(judge, pairs)))
        print(in_words(found[-1]), flush=True)
    return found


def table(found: Sequence[Calibration]) -> str:
    lines = [HEAD, ("---", *["--:"] * (len(HEAD) - 1))]
    lines += [
        (
            c.judge, f"{c.correct} of {c.worse}", f"{c.lower:.3f}", f"{c.tied} of {c.equal}", f"{c.unreadable:.1%}",
            _signed(c.bias_before), _signed(c.bias_after), f"{c.flipped:.1%}", "yes" if fit(c) else "no",
        )
        for c in found
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_kind(found: Sequence[Calibration]) -> str:
    kinds = list(found[0].by_kind)
    lines = [["judge", *kinds], ["---", *["--:"] * len(kinds)]]
    lines += [[c.judge, *("{} of {}".format(*c.by_kind[kind]) for kind in kinds)] for c in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _signed(bias: float | None) -> str:
    return "-" if bias is None else f"{bias:+.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="recorded traffic with free text")
    parser.add_argument("--pairs", type=int, default=12, help="of each kind")
    parser.add_argument("--without-model", action="store_true")
    arguments = parser.parse_args()
    rows = recorded(arguments.data) if arguments.data else generated()
    pairs = plant(rows, arguments.pairs)
    print(f"{len(pairs)} pairs planted in {len(rows)} answers ({arguments.data or 'generated'})\n", flush=True)
    found = asyncio.run(known(rows, pairs))
    if not arguments.without_model:
        found += asyncio.run(local(pairs))
    print(table(found), by_kind(found), *map(in_words, found), sep="\n\n")
    try:
        refuse_kin(DEFAULT_BASE, DEFAULT_BASE)
    except Refused as refused:
        print(f"\nAnd whatever its figures: {refused}")
    wrong = [c.judge for c in found if fit(c) != (c.judge == "perfect")]
    print(f"\nnot as expected: {', '.join(wrong)}" if wrong else "\nonly the perfect judge is fit, as expected")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
