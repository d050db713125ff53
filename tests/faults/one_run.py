"""Runs all steps of one tiny run: `python -m tests.faults.one_run '{"raw_uri": ...}'`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.faults.pipeline_runs import STEPS, TinyRun

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    TinyRun(**{**settings, "folder": Path(settings["folder"])}).run(STEPS)
