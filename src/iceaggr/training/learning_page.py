"""The learning check's table as text and as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence

from iceaggr.training.learning_check import LEARNS, LearningRow

HEADINGS = ("inputs", "learning rate", "loss before", "loss after", "change", "gradient", "verdict")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1d2733; max-width: 60rem }
table { border-collapse: collapse } caption { text-align: left; padding-bottom: .6rem }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #d5dbe1 }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
.good { color: #14713d } .bad { color: #a4262c; font-weight: 600 }
"""


def learning_check_text(rows: Sequence[LearningRow]) -> str:
    """Format the rows as an aligned table, one line each, and below it why inputs are refused."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned, *_refusals(rows)])


def learning_check_html(rows: Sequence[LearningRow], name: str = "") -> str:
    """Format the rows as a page that needs no other file; every text is escaped.

    name: of the experiment, for the title.
    """
    title = html.escape(f"Learning check {name}".strip())
    head = "".join(f"<th scope='col'>{html.escape(heading)}</th>" for heading in HEADINGS)
    body = "\n".join(_html_row(row) for row in rows)
    notes = "\n".join(f"<p>{html.escape(refusal)}</p>" for refusal in _refusals(rows))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
<table><caption>Mean loss over the same few train events before and after a few dozen steps,
without dropout, from the same weights. A row learns when its inputs pass the input check, every
number is finite, and the loss falls.</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table>
{notes}
</body></html>
"""


def _refusals(rows: Sequence[LearningRow]) -> list[str]:
    """Say once for each kind of inputs why the input check refuses them."""
    return list(dict.fromkeys(f"{row.inputs}: {row.refusal}" for row in rows if row.refusal))


def _cells(row: LearningRow) -> tuple[str, ...]:
    return (
        row.inputs,
        f"{row.learning_rate:g}",
        f"{row.first_loss:.4f}",
        f"{row.last_loss:.4f}",
        f"{row.change:+.4f}",
        f"{row.gradient_norm:.3g}",
        row.verdict,
    )


def _html_row(row: LearningRow) -> str:
    *numbers, verdict = (html.escape(cell) for cell in _cells(row))
    kind = "good" if row.verdict == LEARNS else "bad"
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    return f"<tr>{cells}<td class='{kind}'>{verdict}</td></tr>"
