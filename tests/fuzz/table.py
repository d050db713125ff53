"""The totals of a campaign, `totals.md` beside this: python -m tests.fuzz.table build/fuzz."""

from __future__ import annotations

import json
import sys
from pathlib import Path

DOCUMENT = Path(__file__).with_name("totals.md")


def table(totals: dict[str, dict[str, float]]) -> str:
    """Write one row per reader, and their sum."""
    n_runs = sum(counts["executions"] for counts in totals.values())
    minutes = sum(counts["seconds"] for counts in totals.values()) / 60
    lines = [
        f"Campaigns so far: {minutes:.0f} minutes, {n_runs:,.0f} executions"
        f" of {len(totals)} readers.",
        "",
        "| reader | minutes | executions | accepted | refused |",
        "|---|---|---|---|---|",
    ]
    for name, counts in totals.items():
        figures = [f"{counts[key]:,.0f}" for key in ("executions", "accepted", "refused")]
        lines.append(f"| {name} | {counts['seconds'] / 60:.1f} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the totals of a campaign's folder."""
    totals = json.loads((Path(sys.argv[1]) / "totals.json").read_text())
    DOCUMENT.write_text(f"# Fuzzing\n\n{table(totals)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
