"""Owns what people read in the terminal: tables, progress, summaries. Must not compute a figure of its own."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from proxy.keys import Key
from proxy.limits import Standing
from router.ledger import Report, TaskLine

if TYPE_CHECKING:  # duckdb comes with it.
    from distiller.erase import Erased
    from router.gold_file import Imported
    from router.golden import Golden
    from router.verification import Verification

_JUDGED: Mapping[str, str] = MappingProxyType(
    {"good": "where the candidate's was judged no worse", "worse": "where it was judged worse"}
)
_MOST_LINES = 20  # named of a file; --json names them all


def as_json(value: Any) -> str:
    """Any of our values as JSON."""
    return json.dumps(value, default=_plain, indent=1)


def money(usd: float | None) -> str:
    """US dollars; unknown is said, not shown as zero."""
    return "unpriced" if usd is None else f"${usd:,.4f}"


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callable that shows steps with bars and remaining time; lines by quarters where nobody watches."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda step, done, total: None if quiet else _by_quarters(console, step, done, total)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        known: dict[str, Any] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in known:
                known[step] = bars.add_task(step, total=total)
            bars.update(known[step], completed=done, total=total)

        yield show


def _by_quarters(console: Console, step: str, done: int, total: int) -> None:
    if done * 4 // max(total, 1) != (done - 1) * 4 // max(total, 1):
        console.print(f"   {step}: {done} of {total}")


def tasks_table(tasks: Sequence[TaskLine]) -> None:
    """`stillroom tasks`."""
    table = Table("task", "exchanges", "share", "spent on the teacher", "answered by a candidate", title="Tasks")
    total = sum(line.exchanges for line in tasks) or 1
    for line in tasks:
        spent = money(line.teacher_usd) + (f" + {line.unpriced} unpriced" if line.unpriced else "")
        share = f"{line.exchanges / total:.0%}"
        table.add_row(line.task or "(no task)", f"{line.exchanges:,}", share, spent, f"{line.served:,}")
    Console().print(table)


def verification_table(found: "Verification") -> None:
    """`stillroom verify`: a line for each thing looked at, and what follows from them."""
    for line in found.lines:
        mark = {True: "yes", False: "NO", None: "?"}[line.ok]
        print(f"{mark:<4}{line.what}: {line.said}")
    print(f"the certificate {found.conclusion}")


def report_table(report: Report) -> None:
    """`stillroom report`."""
    table = Table(
        "task", "exchanges", "by candidate", "teacher spend", "avoided (estimate)", "training", "audit", "judge",
        "rationales", "repeats", "hosted", title="Ledger",
    )  # fmt: skip
    for line in report.tasks:
        table.add_row(
            line.task or "(no task)", f"{line.exchanges:,}", f"{line.served:,}", money(line.teacher_usd),
            money(line.avoided_usd) if line.served else "-", money(line.training_usd), money(line.audit_usd),
            money(line.judge_usd), money(line.rationale_usd), money(line.repeat_usd),
            money(line.hosted_usd),
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"spent on the teacher {money(report.teacher_usd)} (+ {report.unpriced} unpriced exchanges)\n"
        f"avoided {money(report.avoided_usd)} - serving {money(report.serving_usd)} "
        f"({report.serving_hours:.2f} h, idle included) - training {money(report.training_usd)} "
        f"- audit {money(report.audit_usd)} - judge {money(report.judge_usd)} "
        f"- rationales {money(report.rationale_usd)} - repeats {money(report.repeat_usd)} "
        f"- hosted candidates {money(report.hosted_usd)}\n"
        f"= net saving {money(report.net_usd)}"
    )


def status_table(status: Mapping[str, Any]) -> None:
    """`stillroom status`."""
    console = Console()
    for title in (key for key in status if key.partition("-")[0] in ("engine", "small_engine")):
        engine = status[title]
        told = f" ({engine['reason']})" if engine.get("reason") else ""
        console.print(f"{title.replace('_', ' ')}: {engine['state']}{told}")
        for name, problem in engine.get("failed", {}).items():
            console.print(f"  not served: {name}: {problem}")
    for task, freeze in status["frozen"].items():
        console.print(f"frozen: {task}, since {freeze['since']}: {freeze['reason']}")
    for change in [*status["sunsets"], *status["changed"]]:
        console.print(change, soft_wrap=True)
    table = Table("task", "candidate", "stage", "why", "evidence", "next", title="Candidates")
    for candidate in status["candidates"]:
        table.add_row(*(str(candidate[key]) for key in ("task", "candidate", "stage", "reason", "verdict", "next")))
    console.print(table)
    for name, one in status["golden"].items():
        console.print(f"{name}: {_golden_line(one)}", soft_wrap=True)
    for candidate in status["candidates"]:
        _feedback_lines(console, candidate["candidate"], candidate["feedback"])
    for name, seen in status["similarity"].items():
        if seen["judged"]:
            console.print(_similarity_line(name, seen))
    if status["feedback_ignored"]:
        console.print(f"{status['feedback_ignored']} feedbacks name another tenant's exchange, or none in the log")


def rivals_table(shown: Mapping[str, Any]) -> None:
    """`stillroom rivals`: the cheapest candidate first; the last column is candidate and teacher together."""
    console = Console()
    table = Table(
        "candidate", "model", "stage", "passes", "agreement", "bounds", "n", "coverage", "asked, 1,000",
        "its policy, 1,000", title=f"Candidates of {shown['task']}",
    )  # fmt: skip
    for one in shown["candidates"]:
        agreement = "-" if one["agreement"] is None else f"{one['agreement']:.3f}"
        table.add_row(
            one["candidate"], one["model"] or one["kind"], one["stage"], "yes" if one["passes"] else "no", agreement,
            f"{one['lower']:.3f}..{one['upper']:.3f}", f"{one['n']:,}", f"{one['coverage']:.0%}",
            money(one["asked_usd_per_1000"]), money(one["usd_per_1000"]),
        )  # fmt: skip
    console.print(table)
    best = shown["cheapest"]
    console.print(f"the cheapest that passes: {best}" if best else "none passes yet", soft_wrap=True)


def _similarity_line(name: str, seen: Mapping[str, Any]) -> str:
    parts = [f"{seen[key]:.2f} {where}" for key, where in _JUDGED.items() if seen[key] is not None]
    return (
        f"{name}: how alike the two answers look, 0 to 1, in the newest {seen['judged']} that were judged: "
        f"{', '.join(parts)}; this decides nothing"
    )


def _golden_line(one: "Golden") -> str:
    kept = f"golden set of {one.exchanges} exchanges" if one.exchanges else "none of its golden exchanges is in the log"
    since = "not asked again yet" if one.mean is None else f"{one.mean:.3f} of its agreement kept"
    return f"{kept}, {one.verdicts} verdicts since: {since}"


def _feedback_lines(console: Console, name: str, said: Mapping[str, Any]) -> None:
    if said["gold"]:
        console.print(
            f"{name}: {said['gold']} verdicts ({said['gold_share']:.0%}) are on the right answer; there it was right "
            f"{said['candidate_right']:.3f} of the time, the teacher {said['teacher_right']:.3f}"
        )
    if said["scored"]:
        console.print(
            f"{name}: {said['scored']} of its answers were scored, {said['mean_score']:.2f} on average, "
            f"{said['complaints']} complaints; scores enter no test, complaints make audits more"
        )


def distilled_summary(done: Any) -> None:
    """`stillroom distill`."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in done.dropped.items()) or "none"
    sure, tokens = done.threshold, done.bundle.manifest["card"].get("first_tokens", 0)
    Console().print(
        f"{done.bundle.id}{_registered(done)} at {done.bundle.path}\n"
        f"read {done.read} exchanges at snapshot {done.snapshot}; dropped: {dropped}\n"
        f"{done.kind}, trained on {done.trained_rows} rows in {done.trained['seconds']:.0f} s{_speed(done.trained)}\n"
        + "".join(map(_tried, done.tried if len(done.tried) > 1 else ()))
        + f"holdout of {done.holdout.rows} later exchanges, {done.evaluator} agreement: student "
        f"{done.holdout.student:.3f}, {untuned(done.holdout)}always the most common answer "
        f"{done.holdout.majority:.3f}\n"
        + _reliability(done.calibration)
        + (f"decided after the first {tokens} tokens: what follows is checked by nothing\n" if tokens else "")
        + (
            f"proposed: it answers when its calibrated confidence is at least {sure.value:.4f}: {sure.coverage:.0%} of "
            f"the holdout, agreement {sure.agreement:.3f} there (at least {sure.lower:.3f}); expected net saving "
            + (
                f"{money(sure.saving)} an exchange"
                if sure.priced
                else f"{sure.saving:.0%} of the teacher's spend (unpriced)"
            )
            + "; later exchanges have to prove it"
            if sure
            else "no confidence threshold separates what it knows: shadow judges all of its answers"
        )
    )
    for note in done.notes:
        Console().print(note, soft_wrap=True, markup=False)


def _registered(done: Any) -> str:
    if done.duel is not None and done.duel.lost:
        return " (no candidate: worse than the one before)"
    return "" if done.fresh else " (known already)"


def explaining_summary(done: Any) -> None:
    """`stillroom explain`."""
    asked = done.asked
    if done.keys:
        print(f"nothing was asked: the answers of {done.task} reason themselves, under {', '.join(done.keys)}")
        return
    why = {
        "done": "all are asked about", "budget": "the budget has no room for another question",
        "most": "no more questions are allowed", "stopped": "stopped: run it again to go on",
    }.get(asked.ended, f"{asked.ended}: what was told is kept, run it again to go on")  # fmt: skip
    print(
        f"{done.task}: {asked.wanted:,} of {done.rows:,} training exchanges are drawn, {asked.known:,} were asked "
        f"about before; now {asked.asked:,} for {money(asked.usd)}, of which {asked.cut:,} were cut off; "
        f"{asked.declined:,} declined\n{why}\n"
        f"{done.usable:,} rationales to learn from; {done.contradicting:,} contradict their answer and are not"
    )


def lineage_summary(found: Any) -> None:
    """`stillroom lineage`."""
    inherited = len(found.inherited)
    named = len(found.trained) + inherited + len(found.judged)
    when = f", asked between {found.first} and {found.last}" if found.first else ""
    print(
        f"{found.student}: {found.kind} for {found.task}, from snapshot {found.snapshot} of the log\n"
        f"base model with SHA-256 {found.base_sha256}\n"
        f"learned from {len(found.trained)} exchanges, first judged on {len(found.judged)} later ones; the log still "
        f"holds {found.held} of these {named}{when}\n"
        + (f"went on from {found.parent}, which learned from {inherited} others\n" if found.parent else "")
        + "".join(f"terms of {one.provider}: {'' if one.acknowledged else 'not '}acknowledged\n" for one in found.terms)
        + "their ids: --json"
    )


def rebuilt_summary(done: Any) -> None:
    """`stillroom lineage --rebuild`."""
    if done.same:
        print(f"{done.student} was made again from its exchanges: every file is the same, and so is its name")
    else:
        print(f"{done.student} became {done.rebuilt}; files that differ: {', '.join(done.differ)}")


def _speed(trained: Mapping[str, Any]) -> str:
    """Where tokens were counted."""
    if "tokens" not in trained:
        return ""
    return (
        f" ({trained['tokens'] / trained['seconds']:.0f} tokens/s), loss {trained['first_loss']:.3f} -> "
        f"{trained['last_loss']:.3f}"
    )


def _tried(one: Any) -> str:
    kind = f"{one.kind} (rank {one.rank} on {one.base})" if one.rank else one.kind
    if one.why:
        return f"  {kind}: none, {one.why}\n"
    line = f"  {kind}: agreement {one.score:.3f}, would answer {one.coverage:.0%}, {one.seconds:.0f} s\n"
    return line + (_ab(one.ab) if one.ab else "")


def _ab(trial: Any) -> str:
    found, said = trial.compared, "kept" if trial.kept else "dropped"
    return (
        f"    {said}: {found.difference:+.3f} against {trial.one} ({found.lower:+.3f} to "
        f"{found.upper:+.3f}), p = {found.p:.3f}; calibration error {found.other_reliability.ece:.3f} against "
        f"{found.one_reliability.ece:.3f}; {trial.tokens[1]:.0f} tokens an answer against {trial.tokens[0]:.0f}\n"
    )


def untuned(holdout: Any) -> str:
    """How the base model did without training, with a comma behind; nothing where there is none."""
    return "" if holdout.base is None else f"untuned base {holdout.base:.3f} ({holdout.base_rows} rows), "


def _reliability(calibration: Any) -> str:
    before, after = calibration.before, calibration.after
    if before is None or after is None:
        return "no answer of the holdout could have been served: nothing to calibrate by\n"
    return (
        f"calibration error (ECE) {before.ece:.3f} -> {after.ece:.3f}, Brier score {before.brier:.3f} -> "
        f"{after.brier:.3f} on holdout rows the calibration did not see\n"
    )


def keys_table(lines: Sequence[tuple[Key, Standing]]) -> None:
    """`stillroom keys list`: each key with what its account says this month."""
    table = Table(
        "name", "made", "models", "requests/min", "tokens/min", "budget a month", "spent", "reserved", "captured",
        "revoked", title="Virtual keys",
    )  # fmt: skip
    for key, account in lines:
        limits, budgeted = key.limits, key.limits.budget_usd is not None
        spent = money(account.spent) + (f" ({money(account.estimated)} estimated)" if account.estimated else "")
        table.add_row(
            key.name, key.created, ", ".join(key.models) or "all", _limit(limits.requests_per_minute),
            _limit(limits.tokens_per_minute), money(limits.budget_usd) if budgeted else "-",
            spent if budgeted else "-", money(account.reserved) if budgeted else "-",
            "yes" if key.capture else "no", key.revoked or "-",
        )  # fmt: skip
    Console().print(table)


def erased_summary(done: "Erased") -> None:
    """`stillroom erase`: what is gone, and what is left to do."""
    console = Console()
    if not done.exchanges and not done.spooled and not done.learned:
        console.print("nothing of this user was found")
    else:
        console.print(
            f"gone: {done.exchanges} exchanges from the log, {done.spooled} records from the spool, "
            f"{done.answers} answers from verdicts, {done.holdout} holdout rows and {done.golden} golden prompts from "
            f"students; {done.files} files freed; {done.charges} charges stay, without their exchange"
        )
    for one in done.learned:
        console.print(f"{one.student} ({one.stage}) learned from {one.exchanges} of them: {one.advice}", soft_wrap=True)
    for note in done.notes:
        console.print(f"note: {note}", soft_wrap=True)


def gold_summary(done: "Imported") -> None:
    """`stillroom gold`: what was told, and the lines that are about nothing."""
    console = Console()
    console.print(
        f"{_counted(done.lines, 'line')}: right answers to {_counted(done.exchanges, 'exchange')} in the log, "
        f"{done.new:,} of them new"
    )
    if done.unmatched:
        shown = ", ".join(map(str, done.unmatched[:_MOST_LINES]))
        more = f" and {len(done.unmatched) - _MOST_LINES:,} more" if len(done.unmatched) > _MOST_LINES else ""
        match = "matches" if len(done.unmatched) == 1 else "match"
        console.print(f"{_counted(len(done.unmatched), 'line')} {match} none: {shown}{more}", soft_wrap=True)


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _limit(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def findings_table(findings: Sequence[Any]) -> None:
    """`stillroom doctor`."""
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]fix[/]"
        Console().print(f"{mark}  {finding.what}: {finding.detail}")


def rows_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """`stillroom sql`."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*("NULL" if value is None else str(value) for value in row))
    Console().print(table)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    return dict(value) if isinstance(value, Mapping) else list(value)
