from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from iceaggr.training import memory
from iceaggr.training.memory import HeapTrimmer

PAGE = 4096
BLOCK = 64 * 1024


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGE / 2**20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_trimmer_gives_back_the_holes_between_live_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TRIM_EVERY_S", 0.0)
    trimmer = HeapTrimmer()
    blocks = [bytearray(BLOCK) for _ in range(3000)]
    live = blocks[::8]  # they keep the heap from shrinking
    del blocks
    before = resident_mib()
    trimmer.trim_if_due()
    assert before - resident_mib() > 100
    assert len(live) == 375


def test_trimmer_waits_until_it_is_due() -> None:
    trimmer = HeapTrimmer()
    calls: list[int] = []
    trimmer._trim = calls.append
    trimmer.trim_if_due()
    assert calls == []
    trimmer._trimmed_at -= memory.TRIM_EVERY_S
    trimmer.trim_if_due()
    trimmer.trim_if_due()
    assert calls == [0]
