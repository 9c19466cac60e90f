"""Owns the commands about evidence and stages: what is proved of a task, and what an operator does about it.

Must not judge: each asks the router and prints. Heavy imports wait inside the command, as in `stillroom`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distiller.command_tools import opened_log, republish, sentence, show
from distiller.settings import load_settings
from proxy.settings import SunsetSettings

if TYPE_CHECKING:  # duckdb comes with it.
    from proxy.log import Log
    from router.bids import Bid
    from router.registry import Candidate


def status(arguments: argparse.Namespace) -> int:
    """Show stages, evidence and the engine."""
    from distiller.terminal import status_table
    from router.freezes import frozen
    from router.gold import ignored
    from router.lifecycle import standing
    from router.registry import candidates
    from router.similarity import alike
    from router.templates import changes

    settings = load_settings(arguments.config)
    log = opened_log(settings)
    known = candidates(log)
    found = [standing(log, candidate, settings.router) for candidate in known]
    ice = {
        task: {"since": one.since.isoformat(timespec="minutes"), "reason": one.reason}
        for task, one in frozen(log).items()
    }
    changed = [change.words for change in changes(log, known)]
    none = {"state": "not started", "reason": "no student yet"}
    engines = {"engine": _told(settings.engine_state) or none}
    engines |= {place.stem: _told(place) or none for place in settings.more_engine_states}
    engines["small_engine"] = _told(settings.small_state) or none
    shown: dict[str, Any] = {**engines, "candidates": found, "frozen": ice, "changed": changed}
    shown["feedback_ignored"] = ignored(log)
    shown["similarity"] = {one.id: asdict(seen) for one in known if (seen := alike(log, one))}
    shown |= _sunsets(log, settings.teacher.sunsets, known)
    return show(arguments, shown, status_table)


def _told(place: Path) -> dict[str, Any] | None:
    """What the controller last wrote of an engine."""
    return dict(json.loads(place.read_text())) if place.exists() else None


def _sunsets(log: "Log", declared: Sequence[SunsetSettings], known: Sequence["Candidate"]) -> dict[str, object]:
    from datetime import UTC, datetime

    from router import golden, sunset
    from router.registry import CANARY, LIVE

    now = datetime.now(UTC)
    found = sunset.sunsets(log, declared, now)
    come = any(one.come for one in found)
    return {
        "sunsets": [sunset.in_words(one, now) for one in found],
        "golden": {one.id: golden.standing(log, one) for one in known if come and one.stage in (CANARY, LIVE)},
    }


def rivals(arguments: argparse.Namespace) -> int:
    """Show what a task's candidates proved and cost, and name the cheapest that passes."""
    from distiller.terminal import rivals_table
    from router.bids import bids, cheapest
    from router.registry import newest

    settings = load_settings(arguments.config)
    log = opened_log(settings, read_only=True)
    newest(log, arguments.task)  # Says clearly when the task has no candidate at all.
    found = bids(log, arguments.task, settings.router.slice_floor)
    best = cheapest(found)
    name = None if best is None else best.candidate.id
    shown = {"task": arguments.task, "cheapest": name, "candidates": [_offer(one) for one in found]}
    return show(arguments, shown, rivals_table)


def _offer(one: "Bid") -> dict[str, object]:
    """One candidate for people and scripts; US dollars for 1,000 exchanges, None where unpriced."""
    p = one.found.parity
    return {
        "candidate": one.candidate.id,
        "kind": one.candidate.kind,
        "model": one.candidate.card.get("model"),
        "stage": one.candidate.stage,
        "passes": one.passes,
        "agreement": p.mean,
        "lower": p.lower,
        "upper": p.upper,
        "n": p.n,
        "coverage": one.found.coverage,
        "asked_usd_per_1000": None if one.asked_usd is None else 1000 * one.asked_usd,
        "usd_per_1000": None if one.usd is None else 1000 * one.usd,
    }


def certificate(arguments: argparse.Namespace) -> int:
    """Print or write the certificate of a task's newest candidate, or of another one."""
    from proxy.errors import BadInput, Refused
    from proxy.files import put
    from router.certificate import with_examples
    from router.certificate_page import page
    from router.evidence import evidence, in_words
    from router.registry import certificate_of, newest
    from router.signing import FINE, examine, signed

    settings = load_settings(arguments.config)
    log = opened_log(settings)
    candidate = newest(log, arguments.task, arguments.candidate)
    proof = certificate_of(log, candidate.id)
    if proof is None:
        raise Refused(f"{candidate.id} has no certificate: {in_words(candidate, evidence(log, candidate))}")
    # Only what was signed here is signed again: one that was changed in the log, or an older one, stays as it is.
    if examine(proof, settings.certificate_key) == FINE and not arguments.without_examples:
        proof = signed(with_examples(log, proof), settings.certificate_key)
    text = json.dumps(proof, indent=2)
    try:
        if arguments.output:
            put(arguments.output, f"{text}\n")
        if arguments.html:
            put(arguments.html, page(proof))
    except OSError as error:
        raise BadInput(f"the certificate cannot be written: {error}") from None
    if not (arguments.output or arguments.html):
        print(text)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Compute a certificate again from the log and say whether it still holds."""
    from distiller.terminal import verification_table
    from proxy.errors import BadInput
    from router.certificate import read_certificate
    from router.verification import verify as check

    try:
        document = read_certificate(arguments.file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{arguments.file} cannot be read: {getattr(error, 'strerror', None) or 'no text'}") from None
    settings = load_settings(arguments.config)
    found = check(opened_log(settings), document, settings.certificate_key, settings.router.slice_floor)
    show(arguments, found, verification_table)
    return 0 if found.holds else 1


def gold(arguments: argparse.Namespace) -> int:
    """Import right answers to recorded exchanges from a file, one a line."""
    from distiller.terminal import gold_summary
    from proxy.names import load_people, require_names
    from proxy.redact import Redactor
    from router.gold_file import import_gold

    settings = load_settings(arguments.config)
    if settings.redaction.names:
        require_names()
    redactor = Redactor(settings.redaction, load_people() if settings.redaction.names else None)
    return show(arguments, import_gold(opened_log(settings), arguments.file, redactor), gold_summary)


def promote(arguments: argparse.Namespace) -> int:
    """Take a task's newest candidate, or another one, one step on where it is certified."""
    from functools import partial

    from router.lifecycle import promote as run
    from router.signing import signed

    settings = load_settings(arguments.config)
    log = opened_log(settings)
    sign = partial(signed, key_file=settings.certificate_key)
    candidate = run(log, arguments.task, settings.router, sign, arguments.candidate)
    republish(log, settings)
    moved = {"candidate": candidate.id, "stage": candidate.stage, "share": candidate.share}
    return show(arguments, moved, sentence("{candidate} is now: {stage}, with {share:.1%} of the conversations"))


def freeze(arguments: argparse.Namespace) -> int:
    """Keep a task as it is: nothing is promoted or distilled by itself."""
    from router.freezes import freeze as run
    from router.freezes import thaw

    log = opened_log(load_settings(arguments.config))
    (thaw if arguments.off else run)(log, arguments.task, arguments.reason)
    text = "{task} moves by itself again" if arguments.off else "{task} is frozen: it can still be taken back"
    return show(arguments, {"task": arguments.task, "frozen": not arguments.off}, sentence(text))


def rollback(arguments: argparse.Namespace) -> int:
    """Give a task back to the teacher."""
    from router.lifecycle import rollback as run

    settings = load_settings(arguments.config)
    log = opened_log(settings)
    moved = [candidate.id for candidate in run(log, arguments.task, arguments.reason)]
    republish(log, settings)
    text = "the teacher answers {task}; retired: {retired}" if moved else "the teacher answered {task} already"
    return show(arguments, {"task": arguments.task, "retired": ", ".join(moved)}, sentence(text))
