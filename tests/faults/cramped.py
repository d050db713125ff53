"""Runs steps on a machine that lacks something, each in a mount namespace of its own.

    python -m tests.faults.cramped FOLDER

Prints one line of JSON: per scenario the exit code and the last line that was said. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import iceaggr.evaluation.evaluation  # noqa: F401
import iceaggr.shards.data_card  # noqa: F401
from iceaggr import cli
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.progress import StepProgress
from iceaggr.steps.run_folder import RunFolder
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.faults.endings import Child
from tests.faults.pipeline_runs import TinyRun

_NEW_MOUNTS = 0x00020000


def mounted(target: str | Path, options: str) -> None:
    """Put a small file system over a folder, for this process and its children only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "cannot make a mount namespace")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)], check=True)


def read_only(folder: Path) -> None:
    """Forbid every write."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def filled(folder: Path) -> None:
    """Leave no byte free."""
    with (
        contextlib.suppress(OSError),
        (folder / "filler").open("wb", buffering=0) as file,
    ):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(folder).free == 0


def scenarios(run: TinyRun, room: Path) -> dict[str, Callable[[], object]]:
    """Name what is lacking, and what is tried without it. room: a folder to mount things over."""
    inside = replace(run, work_uri=(room / "work").as_uri())
    documents_inside = replace(run, folder=room)

    def cramped(how: Callable[[Path], None], call: Callable[[], object]) -> None:
        mounted(room, "size=1m")
        for path in run.folder.glob("*.json"):
            (room / path.name).write_bytes(path.read_bytes())
        how(room)
        call()

    def shm(options: str, call: Callable[[], object]) -> None:
        mounted("/dev/shm", options)
        call()

    def temporary(call: Callable[[], object]) -> None:
        tempfile.tempdir = str(room)  # TMPDIR is passed over where nothing can be written
        call()

    def simulated(name: str) -> None:
        config = SimulationConfig(n_events=600, n_events_per_file=600, n_processes=2)
        with StepProgress("simulate"):
            simulate(open_store(), (run.folder / name).as_uri(), config)

    def command_line() -> None:
        mounted(room, "size=1m")
        folder = RunFolder.create(room / "run", run.raw_uri, "", "x", run.context().config).path
        read_only(room)
        sys.argv = ["iceaggr", "stats", "--folder", str(folder)]
        cli.main()

    return (
        {"read-only folder, command line": command_line}
        | {
            f"{words}, {what}": partial(cramped, how, call)
            for words, how in (("full disk", filled), ("read-only folder", read_only))
            for what, call in (
                ("shards", partial(inside.run_step, "shard_events")),
                ("documents", partial(documents_inside.run_step, "compute_statistics")),
                ("temporary files", partial(temporary, partial(run.run_step, "evaluate_model"))),
            )
        }
        | {
            f"{words} /dev/shm, {what}": partial(shm, options, call)
            for words, options in (("tiny", "size=4k"), ("no", "ro"))
            for what, call in (
                ("training", partial(run.run_step, "train_model")),
                ("simulation", partial(simulated, f"simulated-{words}")),
            )
        }
    )


def main(folder: Path) -> None:
    """Run every scenario; each must be possible again once the lack has ended."""
    torch.set_num_threads(1)
    raw_uri = write_raw_layout(folder / "raw", n_events_per_file=40, mean_pulses=30)
    run = TinyRun(raw_uri, (folder / "work").as_uri(), folder / "documents", "cramped")
    steps = ("plan_shards", "shard_events", "compute_statistics", "train_model")
    assert Child(lambda: run.run(steps), folder / "before.log").finish() == 0
    room = folder / "room"
    room.mkdir()
    outcomes = {}
    for name, call in scenarios(run, room).items():
        log = folder / "scenario.log"
        code = Child(call, log).finish()
        lines = log.read_text(errors="replace").splitlines()
        outcomes[name] = (code, next((line for line in lines if line.startswith("error: ")), ""))
    assert Child(lambda: run.run_step("evaluate_model"), folder / "after.log").finish() == 0
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
