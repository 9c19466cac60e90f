"""Owns the certificate as a page for people: one HTML file that needs nothing else and runs nothing.

Must not compute or decide: it shows what the document says, with every value escaped, since answers of models are
anybody's text. A certificate of an older version is shown as far as it goes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 240, 44, 24
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --low: #0a7d4f; --high: #b3541e; }
@media (prefers-color-scheme: dark) { :root { --low: #4cc38a; --high: #f0a070; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; white-space: pre-wrap; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .6rem; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(document: Mapping[str, Any]) -> str:
    """The document as HTML."""
    title = f"Certificate of {document.get('candidate')}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(document.get('claim'))}</p>",
        _signature(document.get("signature")),
        _facts(document),
        _path(document),
        _slices(document.get("slices")),
        _disagreements(document),
        f"<details><summary>The whole document</summary><pre>{_text(json.dumps(document, indent=1))}</pre></details>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _signature(signature: Mapping[str, Any] | None) -> str:
    if signature is None:
        return "<p>Not signed.</p>"
    return (
        f"<p>Signed with {_text(signature['algorithm'])}, public key <code>{_text(signature['public_key'])}</code>. "
        "This page proves nothing by itself: <code>stillroom verify FILE</code> checks the JSON it was made from.</p>"
    )


def _facts(document: Mapping[str, Any]) -> str:
    p, ceiling = document["parity"], document.get("ceiling") or {"measured": 0}
    low, high = document["coverage_interval"]
    measured = (
        f"{_figure(ceiling['mean'])} on {ceiling['measured']} exchanges" if ceiling["measured"] else "not measured"
    )
    judged, first = document.get("judged", p["n"]), (document.get("declared") or {}).get("first_tokens")
    facts = {
        "task": document["task"],
        "candidate": f"{document['candidate']} ({document.get('kind', 'student')}, number {document['ordinal']})",
        **({"hosted model": f"{hosted['model']} at {hosted['url']}"} if (hosted := document.get("hosted")) else {}),
        "issued": document["issued_at"],
        "data": f"trained at snapshot {document['training_snapshot']}, judged at {document['verdict_snapshot']}",
        "margin, alpha": f"{p['margin']:g}, {p['alpha']:g}",
        "agreement": f"{_figure(p['mean'])}, bounds {_figure(p['lower'])} to {_figure(p['upper'])}, n = {p['n']}",
        **({"drawn to be judged": f"{judged} of {p['n']}, weighted by their share"} if judged < p["n"] else {}),
        "coverage": f"{_figure(document['coverage'])} ({_figure(low)} to {_figure(high)}) of {document['shadowed']}",
        "threshold": document["threshold"],
        "decided on": f"the first {first} tokens of the answer" if first else "the whole answer",
        "failed": document.get("failed"),
        "evaluator": document["evaluator"],
        "judge": _judges(document.get("judge")),
        "ceiling (the teacher with itself)": measured,
    }
    return _table((), list(facts.items()))


def _judges(judge: Mapping[str, Any] | None) -> str:
    """Who judged, and what the calibration found; none where an evaluator scored."""
    if not judge:
        return "none"
    said = [f"{one['judge']}: {_calibrated(one['found'])}" for one in judge["calibrations"]]
    return "; ".join([*said, f"{judge['missing']} verdicts missing, counted as 0"])


def _calibrated(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not calibrated"
    return f"{found['correct']} of {found['worse']} planted worse answers found, at least {_figure(found['lower'])}"


def _path(document: Mapping[str, Any]) -> str:
    """Both bounds over n as steps, and the line the lower one must pass; the scale of means begins at 0.5 or below."""
    points = (document.get("path") or {"points": []})["points"]
    if not points:
        return ""
    last, bar = int(points[-1][0]), 1 - float(document["parity"]["margin"])
    floor = min(0.5, bar)

    def x(n: float) -> float:
        return _LEFT + (_WIDTH - _LEFT) * n / last

    def y(mean: float) -> float:
        return (_HEIGHT - _BOTTOM) * (1 - (max(mean, floor) - floor) / (1 - floor)) + 4

    def steps(which: int) -> str:
        corners = [f"M{x(0):.1f} {y(which - 1):.1f}"] + [f"H{x(p[0]):.1f} V{y(p[which]):.1f}" for p in points]
        return " ".join(corners)

    marks = "".join(f'<text x="4" y="{y(mean) + 4:.1f}">{mean:g}</text>' for mean in (floor, 1.0))
    return (
        f'<h2>The bounds over time</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT + 8}" role="img" '
        f'aria-label="Lower and upper bound over {last} covered exchanges">'
        f'<path d="M{x(0):.1f} {y(bar):.1f} H{_WIDTH}" stroke="currentColor" stroke-dasharray="4 4" fill="none"/>'
        f'<path d="{steps(1)}" stroke="var(--low)" stroke-width="2" fill="none"/>'
        f'<path d="{steps(2)}" stroke="var(--high)" stroke-width="2" fill="none"/>{marks}'
        f'<text x="4" y="{y(bar) + 4:.1f}">{bar:g}</text><text x="{_LEFT}" y="{_HEIGHT + 4}">0</text>'
        f'<text x="{_WIDTH - 4}" y="{_HEIGHT + 4}" text-anchor="end">{last} covered exchanges</text></svg>'
        f"<p>Dashed: {bar:g}, which the lower bound has to pass.</p>"
    )


def _slices(slices: Mapping[str, Any] | None) -> str:
    if slices is None:
        return ""
    rows = [
        (
            one["facet"],
            one["value"],
            one["n"],
            _figure(one["mean"]),
            _figure(one["upper"]),
            "far behind" if one["behind"] else "",
        )
        for one in slices["table"]
    ]
    table = _table(("facet", "value", "n", "mean", "upper bound", ""), rows)
    note = (
        "A safeguard, no claim of parity for each: a slice whose upper bound lies more than "
        f"{slices['floor']:g} below what is certified blocks the promotion. Exchanges in no slice: {slices['gone']}."
    )
    return f"<h2>Slices</h2><p>{_text(note)}</p>{table}"


def _disagreements(document: Mapping[str, Any]) -> str:
    worst = document.get("disagreements")
    if worst is None:
        return ""
    examples = document.get("examples") or {"note": "Written without the traffic they are about.", "quoted": []}
    quoted = {one["verdict_id"]: one for one in examples["quoted"]}
    rows = [
        (
            _figure(one["verdict"]),
            _figure(one["confidence"]),
            *(quoted.get(one["verdict_id"], {}).get(name) for name in ("input", "teacher", "candidate", "exchange")),
        )
        for one in worst
    ]
    heads = ("verdict", "confidence", "input", "teacher", "candidate", "exchange")
    return f"<h2>The most harmful disagreements</h2><p>{_text(examples['note'])}</p>{_table(heads, rows)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "<tr>" + "".join(f"<th>{_text(name)}</th>" for name in heads) + "</tr>" if heads else ""
    lines = ["<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>" for row in rows]
    return f"<table>{head}{''.join(lines)}</table>"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _text(value: Any) -> str:
    """The only way in which a value gets onto the page."""
    return escape("-" if value is None else str(value))
