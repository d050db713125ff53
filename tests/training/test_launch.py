from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from iceaggr.training.launch import environment_rank, run_processes

SAY = """
import os, pathlib, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(" ".join(os.environ[n] for n in names))
"""
FAIL = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
DIE = "import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)"
LEAVE = """
import pathlib, signal, sys, time, os
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
time.sleep(60)
"""


def test_every_process_learns_its_place(tmp_path: Path) -> None:
    assert run_processes([sys.executable, "-c", SAY, str(tmp_path)], 2) == 0
    said = [(tmp_path / rank).read_text().split() for rank in ("0", "1")]
    assert [words[:4] for words in said] == [
        ["0", "0", "2", "127.0.0.1"],
        ["1", "1", "2", "127.0.0.1"],
    ]
    assert said[0][4] == said[1][4]


@pytest.mark.parametrize(("program", "code"), [(FAIL, 3), (DIE, 137)])
def test_failure_of_one_process_ends_all(program: str, code: int) -> None:
    started = time.monotonic()
    assert run_processes([sys.executable, "-c", program], 2) == code
    assert time.monotonic() - started < 30


def test_sigterm_reaches_every_process_and_asks_for_a_retry(tmp_path: Path) -> None:
    def interrupt_when_ready() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt_when_ready, daemon=True)
    thread.start()
    assert run_processes([sys.executable, "-c", LEAVE, str(tmp_path)], 2) == 75
    assert signal.getsignal(signal.SIGTERM) == handler


def test_no_process_is_an_error() -> None:
    with pytest.raises(ValueError, match="n_processes is 0"):
        run_processes(["true"], 0)


def test_rank_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert environment_rank() == 0
    monkeypatch.setenv("RANK", "3")
    assert environment_rank() == 3
