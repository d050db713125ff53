"""Children that end in all ways, for real: who is restarted, how often, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from iceaggr.errors import ConfigError, IceaggrError, StorageError, TrainingError
from iceaggr.machines.supervision import Limits, supervise
from iceaggr.signals import TrainingInterruptedError
from tests.faults.endings import CGROUP, has_cgroups

CHILD = """
import json, os, resource, signal, sys, time
from pathlib import Path
from iceaggr.errors import ConfigError, PartnerError
from iceaggr.machines.supervision import note_ending, restarts_so_far
folder, how = Path(sys.argv[1]), json.loads(sys.argv[2])
n = len(list(folder.glob("attempt-*")))
(folder / f"attempt-{n}").write_text(json.dumps(restarts_so_far(os.environ)))
(folder / "pid").write_text(str(os.getpid()))
how = how[min(n, len(how) - 1)]
def advance():
    saved = folder / "saved"
    saved.write_text(str(int(saved.read_text()) + 10))
def allocate():
    held = []
    while True:
        held.append(bytearray(1 << 20))
if "advance" in how:
    advance()
try:
    if "kill" in how:
        os.kill(os.getpid(), signal.SIGKILL)
    if "stopped" in how:
        os.kill(os.getpid(), signal.SIGTERM)
    if "saved" in how:
        sys.exit(75)
    if "oom" in how:
        allocate()
    if "limit" in how:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        allocate()
    if "bug" in how:
        raise KeyError("no such thing")
    if "cuda" in how:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if "silent" in how:
        sys.exit(1)
    if "partner" in how:
        note_ending(PartnerError("another process refused its batch"), 0, os.environ)
    if "setting" in how or "partner" in how:
        raise ConfigError("bad rate", where="r", found=-1, expected="0 or more", remedy="Mend it")
    if "wait" in how:
        time.sleep(300)
except Exception as error:
    note_ending(error, 1, os.environ)
    raise
"""
QUICK = Limits(n_restarts=6, n_in_vain=3, first_pause_s=0.01)


class Scene:
    """A folder in which children leave what they did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        (folder / "saved").write_text("0")

    def n_steps_saved(self) -> int:
        return int((self.folder / "saved").read_text())

    def run(self, *how: str, limits: Limits = QUICK, before: tuple[str, ...] = ()) -> None:
        """Supervise a child that ends in these ways, one after the other."""
        command = [*before, sys.executable, "-c", CHILD, str(self.folder), json.dumps(how)]
        supervise(command, os.environ, self.n_steps_saved, self.said.append, limits)

    @property
    def n_attempts(self) -> int:
        return len(list(self.folder.glob("attempt-*")))

    def told(self, attempt: int) -> list[str]:
        told: list[str] = json.loads((self.folder / f"attempt-{attempt}").read_text())
        return told


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_killed_child_is_restarted_and_told_why(scene: Scene) -> None:
    scene.run("advance kill", "good")
    assert scene.told(0) == []
    assert scene.told(1) == ["killed by SIGKILL (from step 10)"]
    assert scene.said == [
        "training process ended: killed by SIGKILL. Restart 1 from step 10 in 0 s"
    ]


@pytest.mark.parametrize("how", ["stopped", "saved"])
def test_child_that_somebody_else_stopped_is_restarted_and_told_as_such(
    scene: Scene, how: str
) -> None:
    scene.run(f"advance {how}", "good")
    asked = "it was asked to stop, by somebody else than its step (SIGTERM)"
    assert scene.told(1) == [f"{asked} (from step 10)"]
    assert scene.said == [f"training process ended: {asked}. Restart 1 from step 10 in 0 s"]


def test_child_that_is_always_killed_is_given_up_after_the_limit(scene: Scene) -> None:
    with pytest.raises(TrainingError, match=r"ended again and again .*killed by SIGKILL after 3 r"):
        scene.run("kill")
    assert scene.n_attempts == 4


def test_child_that_gets_on_between_its_ends_is_restarted_up_to_the_greater_limit(
    scene: Scene,
) -> None:
    with pytest.raises(TrainingError, match="after 6 restarts, 0 attempts in a row"):
        scene.run("advance kill")
    assert scene.n_attempts == 7


def test_wrong_setting_fails_at_once_with_its_own_error(scene: Scene) -> None:
    with pytest.raises(ConfigError, match=r"bad rate \[r\]: found -1, expected 0 or more. Mend it"):
        scene.run("setting")
    assert scene.n_attempts == 1
    assert scene.said == []


def test_error_of_the_process_that_is_to_blame_counts(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="bad rate"):
        scene.run("partner")


def test_crash_of_the_program_is_tried_once_more(scene: Scene) -> None:
    with pytest.raises(
        TrainingError, match="unexpected KeyError: 'no such thing': found after 1 r"
    ):
        scene.run("bug")
    assert scene.n_attempts == 2


@pytest.mark.parametrize("how", ["cuda", "silent"])
def test_error_of_the_gpu_and_a_wordless_end_are_tried_up_to_the_limit(
    scene: Scene, how: str
) -> None:
    with pytest.raises(TrainingError):
        scene.run(how)
    assert scene.n_attempts == 4


def test_allocation_that_fails_is_tried_again_and_told_as_lack_of_memory(scene: Scene) -> None:
    scene.run("limit", "good")
    assert scene.told(1)[0].startswith("out of memory")
    with pytest.raises(IceaggrError, match=r"out of memory .*this machine.*Give the step more mem"):
        Scene(scene.folder).run("limit")


SUPERVISOR = """
import os, sys
from iceaggr.machines.supervision import Limits, supervise
supervise(sys.argv[1:], os.environ, lambda: 0, print, Limits(first_pause_s=0.01))
"""


@pytest.mark.skipif(not has_cgroups(), reason="no control groups that limit memory")
def test_child_killed_by_the_kernel_for_its_memory_is_restarted(scene: Scene) -> None:
    group = CGROUP / f"iceaggr-supervision-{os.getpid()}"
    group.mkdir()
    try:
        # both in one group, as in a container
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
        enter = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
        child = (sys.executable, "-c", CHILD, str(scene.folder), json.dumps(["oom", "good"]))
        supervisor = (sys.executable, "-c", SUPERVISOR)
        subprocess.run([*enter, *supervisor, *child], check=True, timeout=300)
    finally:
        group.rmdir()
    assert scene.told(1) == ["killed by the kernel, out of memory (from step 0)"]


def test_store_that_is_away_is_waited_for(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    away = iter([False, True, True])

    def n_steps_saved() -> int:
        if next(away, False):
            error = StorageError("object store not reachable")
            error.may_pass = True
            raise error
        return 7

    command = [sys.executable, "-c", CHILD, str(scene.folder), '["kill", "good"]']
    limits = Limits(first_pause_s=0.01, store_away_s=60.0)
    supervise(command, os.environ, n_steps_saved, scene.said.append, limits)
    assert scene.told(1) == ["killed by SIGKILL (from step 7)"]
    assert caplog.messages[0].startswith("object store not reachable.; asking again for")


def test_store_that_refuses_is_not_waited_for(scene: Scene) -> None:
    def n_steps_saved() -> int:
        raise StorageError("object store refused the credentials")

    with pytest.raises(StorageError, match="refused"):
        supervise(["true"], os.environ, n_steps_saved, scene.said.append, QUICK)


def when(condition, then) -> None:
    def watch() -> None:
        until = time.monotonic() + 60
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)
        then()

    threading.Thread(target=watch, daemon=True).start()


def test_sigterm_reaches_the_child_and_ends_the_supervision(scene: Scene) -> None:
    when((scene.folder / "pid").exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterruptedError, match="asked to stop"):
        scene.run("wait")
    assert scene.n_attempts == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int((scene.folder / "pid").read_text()), 0)


def test_sigterm_ends_a_pause_between_two_attempts(scene: Scene) -> None:
    when(lambda: scene.said, lambda: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    with pytest.raises(TrainingInterruptedError):
        scene.run("kill", limits=Limits(first_pause_s=600.0))
    assert time.monotonic() - began < 120
