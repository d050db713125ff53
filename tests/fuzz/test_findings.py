"""What the fuzzer found, once each: it must be refused in our words, or be sound after all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.target import load_target

FINDINGS = sorted((Path(__file__).parent / "findings").iterdir())
SOUND = {"truth-pandas-notes-damaged"}
"""The columns are sound; only what pandas noted about them is not, and nobody asks it."""


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.name)
def test_finding_stays_mended(path: Path) -> None:
    target = load_target(path.name.partition("-")[0])
    assert target.accepts(path.read_bytes()) == (path.name in SOUND)
