"""Beginning a run in a folder: one of several processes is first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.errors import ConfigError
from iceaggr.steps.run_folder import LOCK_FILE, RunFolder, alone_in

# The lock of a run's folder, between real processes.

HOLDER = """
import os, sys, time
from pathlib import Path
from iceaggr.steps.run_folder import alone_in
with alone_in(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()
os.kill(child, 9)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path until it gets a line, and a child of its own."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.child = int(process.stdout.readline())
    yield process
    process.kill()
    with suppress(ProcessLookupError):
        os.kill(process.child, signal.SIGKILL)
    process.communicate()


def test_folder_is_refused_while_another_process_works_in_it(holder, tmp_path):
    taken = r"another step works in this folder \[.*one step at a"
    with pytest.raises(ConfigError, match=taken), alone_in(tmp_path):
        pass
    holder.stdin.write("\n")
    holder.stdin.flush()
    holder.wait()
    with alone_in(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_folder_is_free_after_a_kill_though_a_child_lives_on(holder, tmp_path):
    holder.kill()
    holder.wait()
    os.kill(holder.child, 0)  # it lives
    with alone_in(tmp_path):
        pass


def test_folder_is_free_after_a_step_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), alone_in(tmp_path):
        raise RuntimeError("broken")
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(
    ("make", "found"),
    [(os.mkdir, "Is a directory"), (os.mkfifo, "a device, pipe or socket")],
)
def test_lock_that_is_no_file_is_named_and_not_waited_for(make, found, tmp_path):
    make(tmp_path / LOCK_FILE)
    told = rf"cannot be locked .* \[.*/step\.lock\]: found {found}, expected a regular file"
    with pytest.raises(ConfigError, match=told), alone_in(tmp_path):
        pass


UNPRIVILEGED = """
import os
from pathlib import Path
from iceaggr.steps.run_folder import alone_in
if os.geteuid() == 0:
    os.seteuid(65534)
with alone_in(Path(".")):
    pass
"""


def test_folder_that_this_user_may_not_write_to_is_told_in_one_error(tmp_path):
    tmp_path.chmod(0o555)
    command = [sys.executable, "-c", UNPRIVILEGED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "MachineError: no permission for the local file [step.lock]" in done.stderr


def test_steps_of_a_run_are_refused_while_another_works_in_its_folder(holder, tmp_path):
    from iceaggr.cli import app

    (tmp_path / "run.json").write_text("{}")
    for command in ("stats", "check", "train", "evaluate", "promote"):
        with pytest.raises(ConfigError, match="another step works in this folder"):
            app([command, "--folder", str(tmp_path)], standalone_mode=False)


def create(folder: Path, raw_uri: str = "file:///raw", **settings: Any) -> RunFolder:
    config = ExperimentConfig.model_validate(settings)
    return RunFolder.create(folder, raw_uri, "", "iceaggr", config)


def test_folder_that_holds_another_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    create(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    found = (
        r"of other settings \[.*run\.json\]: found raw_uri 'file:///raw', data\.n_events 0,"
        r" expected raw_uri 'file:///other', data\.n_events 9\. Give another --folder"
    )
    with pytest.raises(ConfigError, match=found):
        create(tmp_path / "run", "file:///other", data={"n_events": 9})
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json", "units"]


@pytest.mark.parametrize("name", ["report.html", "manifest.json", "model.json"])
def test_folder_with_a_file_of_such_a_name_is_refused_and_left_as_it_is(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"documents of no run \[--folder .*found {name}"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_same_request_goes_on_with_the_run(tmp_path: Path) -> None:
    run_id = create(tmp_path / "run").context().run_id
    assert create(tmp_path / "run", "file:///raw/").context().run_id == run_id


def test_run_that_began_before_a_field_of_the_settings_existed_goes_on(tmp_path: Path) -> None:
    run_id = create(tmp_path / "run").context().run_id
    path = tmp_path / "run" / "run.json"
    settings = json.loads(path.read_text())
    del settings["config"]["data"]["max_rejected_share"]
    path.write_text(json.dumps(settings))
    assert create(tmp_path / "run").context().run_id == run_id


def test_forgotten_units_are_gone_with_what_was_merged_from_them(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    for path in (run.unit_manifest(0), run.unit_manifest(7), run.manifest, run.model):
        path.write_text("{}")
    run.forget_units()
    assert run.unit_manifests() == []
    assert not run.manifest.exists()
    assert run.model.exists()


@pytest.mark.parametrize("raw", ["", "run", "run/units", "run/work", "run/work/shards"])
def test_folder_among_the_raw_events_is_refused_before_anything_is_written(
    raw: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="results would be written among the raw events"):
        create(tmp_path / "run", (tmp_path / raw).as_uri())
    assert not list(tmp_path.iterdir())


def test_folder_may_hold_the_raw_events_beside_the_results(tmp_path: Path) -> None:
    create(tmp_path, (tmp_path / "raw").as_uri())


def test_of_many_that_begin_at_once_one_is_first(tmp_path: Path) -> None:
    n_at_once = 8
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        barrier, refused = threading.Barrier(n_at_once), []

        def begin(seed: int, folder=folder, barrier=barrier, refused=refused) -> None:
            barrier.wait()
            try:
                create(folder, training={"seed": seed})
            except ConfigError:
                refused.append(seed)

        threads = [threading.Thread(target=begin, args=[seed]) for seed in range(n_at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == n_at_once - 1
        first = json.loads((folder / "run.json").read_text())["config"]["training"]["seed"]
        assert {first, *refused} == set(range(n_at_once))
