"""Owns the ledger as files: JSON, CSV, one HTML page that needs nothing else, PDF. Must not compute a figure.

Tasks are named by whoever sends requests: in HTML their names are escaped, in CSV they cannot begin a formula, in PDF
what its fonts do not have becomes a question mark.
"""

import csv
import io
import json
from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from distiller.statement import Rendered, Section, Statement, as_data, sections
from proxy.errors import Unavailable

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2rem 0 .3rem; font-size: 1.15rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
@media print { body { font-size: 10px; margin: 0; max-width: none; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .wide { overflow: visible; } @page { size: A4 landscape; margin: 12mm; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLUMNS = ("from", "to", "task", "kind", "unit", "quantity", "events", "unpriced", "usd")


def as_json(one: Statement) -> bytes:
    """For scripts."""
    return (json.dumps(as_data(one), indent=1) + "\n").encode()


def as_csv(one: Statement) -> bytes:
    """One row a task and kind of charge; what was avoided, an estimate, is a kind too. No price is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    report = one.report
    period = (report.since or "", report.until or "")
    for line in report.lines:
        unit, usd = _plain(line.unit or ""), "" if line.usd is None else line.usd
        row = (_plain(line.task or ""), line.kind, unit, line.quantity, line.events, line.unpriced, usd)
        writer.writerow([*period, *row])
    for task in report.tasks:
        if task.served:
            usd = "" if task.avoided_usd is None else task.avoided_usd
            row = (_plain(task.task or ""), "avoided", "exchange", task.served, task.served, 0, usd)
            writer.writerow([*period, *row])
    return text.getvalue().encode()


def as_html(one: Statement) -> bytes:
    """To read and to print."""
    title = f"Stillroom ledger, {one.period}"
    tables = "".join(_html(section) for section in sections(one))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<p>Made {one.made:%Y-%m-%d %H:%M} UTC. Avoided spend is an estimate; what has no price is in no sum.</p>"
        f"{tables}</main></body></html>\n"
    ).encode()


def as_pdf(one: Statement) -> bytes:
    """To file; Unavailable without the extra."""
    try:
        from fpdf import FPDF
        from fpdf.enums import TextEmphasis
        from fpdf.fonts import FontFace
    except ImportError:
        raise Unavailable("PDF needs fpdf2: pip install 'stillroom[pdf]'") from None
    pdf = FPDF(orientation="landscape", format="A4")
    pdf.set_title(f"Stillroom ledger, {one.period}")
    pdf.set_creation_date(one.made)
    pdf.add_page()
    pdf.set_font("helvetica", "B", 15)
    pdf.cell(text=_latin(f"Stillroom ledger, {one.period}"), new_x="LMARGIN", new_y="NEXT")
    for section in sections(one):
        pdf.set_font("helvetica", "B", 11)
        pdf.ln(4)
        pdf.cell(text=_latin(section.title), new_x="LMARGIN", new_y="NEXT")
        pdf.set_font("helvetica", size=8 if len(section.columns) < 10 else 6)
        if section.note:
            pdf.multi_cell(0, text=_latin(section.note), new_x="LMARGIN", new_y="NEXT")
        aligned = ("LEFT", *["RIGHT"] * (len(section.columns) - 1))
        widths = (3, *[1] * (len(section.columns) - 1)) if len(section.columns) > 2 else (2, 1)
        with pdf.table(
            text_align=aligned, col_widths=widths, width=180 if len(section.columns) == 2 else 277, align="LEFT",
            headings_style=FontFace(emphasis=TextEmphasis.B), borders_layout="HORIZONTAL_LINES",
        ) as table:  # fmt: skip
            for row in (section.columns, *section.rows):
                table.row([_latin(cell) for cell in row])
    return bytes(pdf.output())


FORMATS: Mapping[str, Rendered] = MappingProxyType({"json": as_json, "csv": as_csv, "html": as_html, "pdf": as_pdf})


def _html(section: Section) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in section.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in section.rows)
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else "<p>Nothing.</p>"
    return f'<section><h2>{escape(section.title)}</h2>{note}<div class="wide">{body}</div></section>'


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")
