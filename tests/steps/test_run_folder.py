"""Beginning a run in a folder: one of several processes is first."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.errors import ConfigError
from iceaggr.steps.run_folder import RunFolder


def create(folder: Path) -> RunFolder:
    return RunFolder.create(folder, "file:///raw", "", "iceaggr", ExperimentConfig())


def test_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    create(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a run already \[.*run\]: found run\.json"):
        create(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json", "units"]


def test_of_many_that_begin_at_once_one_is_accepted(tmp_path: Path) -> None:
    n_at_once = 8
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        barrier, refused = threading.Barrier(n_at_once), []

        def begin(folder=folder, barrier=barrier, refused=refused) -> None:
            barrier.wait()
            try:
                create(folder)
            except ConfigError:
                refused.append(folder)

        threads = [threading.Thread(target=begin) for _ in range(n_at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == n_at_once - 1
        assert json.loads((folder / "run.json").read_text())["raw_uri"] == "file:///raw"
