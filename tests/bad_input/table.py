"""The table of bad input in docs/reliability.md: python -m tests.bad_input.table rewrites it."""

from __future__ import annotations

from pathlib import Path

from tests.bad_input.cases import GROUPS

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN = "<!-- bad input: written by `python -m tests.bad_input.table` -->"
END = "<!-- end of bad input -->"


def table() -> str:
    """Write one row for each case, by group."""
    n_cases = sum(map(len, GROUPS.values()))
    lines = [f"{n_cases} kinds, one test each (`tests/bad_input/`):", ""]
    lines += ["| test | damaged | comes to | that is |", "|---|---|---|---|"]
    for group, cases in GROUPS.items():
        lines.append(f"| **{group}** | | | |")
        lines += [
            f"| {case.name} | {case.damaged} | {case.expect.words} | {case.outcome} |"
            for case in cases
        ]
    return "\n".join(lines)


def in_document(text: str) -> str:
    """Put the table between its marks. Raises: ValueError if the marks are not there."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"{DOCUMENT} has no place for the table: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(in_document(DOCUMENT.read_text()))
