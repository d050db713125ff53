"""A campaign: every target in turn under atheris, `make fuzz FUZZ_MINUTES=60`.

The corpus, the findings and the counts stay below the folder, so the next campaign goes on where
this one ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.target import MODULES

COUNTS = ("executions", "accepted", "refused", "findings", "deaths", "seconds")
KILL_AFTER_S = 900
"""A worker that is this much late hangs where libFuzzer's own alarm cannot reach it."""


def fuzz_target(name: str, folder: Path, seconds: int) -> dict[str, float]:
    """Run one worker; gives its counts, and whether it ended badly as `deaths`."""
    statistics = folder / "statistics" / f"{name}.json"
    statistics.unlink(missing_ok=True)
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "tests.fuzz.worker", name, str(folder), str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    started = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            code = process.wait(timeout=seconds + KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    counts = json.loads(statistics.read_text()) if statistics.exists() else {}
    print(
        f"{name:<14} {time.monotonic() - started:5.0f} s  "
        + "  ".join(f"{key} {value:,}" for key, value in counts.items())
        + (f"  ENDED WITH CODE {code}, see {log}" if code else ""),
        flush=True,
    )
    return {**counts, "deaths": int(code != 0)}


def main() -> int:
    """Fuzz for some minutes; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--targets", nargs="*", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    seconds = max(1, round(60 * options.minutes / len(options.targets)))
    n_bad = 0
    for name in options.targets:
        counts = fuzz_target(name, folder, seconds)
        n_bad += int(counts.get("findings", 0) + counts["deaths"])
        totals = add_to_totals(folder / "totals.json", name, counts)
    n_runs, spent = (sum(c[key] for c in totals.values()) for key in ("executions", "seconds"))
    print(f"so far {n_runs:,.0f} executions in {spent / 60:.1f} minutes of {len(totals)} targets")
    print(f"this time {n_bad} findings" + (f", see {folder}/findings" if n_bad else ""))
    return int(n_bad > 0)


def add_to_totals(path: Path, name: str, counts: dict[str, float]) -> dict[str, dict[str, float]]:
    """Add the counts of one worker to those of all campaigns in this folder."""
    totals: dict[str, dict[str, float]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    )
    known = totals.setdefault(name, dict.fromkeys(COUNTS, 0))
    for key in COUNTS:
        known[key] = round(known[key] + counts.get(key, 0), 1)
    path.write_text(json.dumps(totals, indent=1), encoding="utf-8")
    return totals


if __name__ == "__main__":
    sys.exit(main())
