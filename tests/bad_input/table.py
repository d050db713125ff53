"""The table of bad input, `cases.md` beside this: python -m tests.bad_input.table writes it."""

from __future__ import annotations

from pathlib import Path

from tests.bad_input.cases import GROUPS

DOCUMENT = Path(__file__).with_name("cases.md")


def table() -> str:
    """Write one row for each case, by group."""
    n_cases = sum(map(len, GROUPS.values()))
    lines = ["# Bad input", ""]
    lines += [f"{n_cases} kinds, one test each; `python -m tests.bad_input.table` writes this.", ""]
    lines += ["| test | damaged | comes to | that is |", "|---|---|---|---|"]
    for group, cases in GROUPS.items():
        lines.append(f"| **{group}** | | | |")
        lines += [
            f"| {case.name} | {case.damaged} | {case.expect.words} | {case.outcome} |"
            for case in cases
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(table(), encoding="utf-8")
