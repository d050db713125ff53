"""A local disk that is full, a folder that is read-only, a /dev/shm that is tiny or missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.faults.endings import ROOT

EXPECTED = {
    "full disk, shards": r"cannot write [file://{room}/work/shards/",
    "full disk, documents": "the local disk is full [{room}/manifest.json]",
    "full disk, temporary files": "the local disk is full",
    "read-only folder, shards": "found Read-only file system",
    "read-only folder, documents": "the local folder is read-only [{room}/manifest.json]",
    "read-only folder, command line": "the local folder is read-only [{room}/run/step.lock]",
    "read-only folder, temporary files": "the local folder is read-only [{room}/",
    "tiny /dev/shm, training": "",
    "tiny /dev/shm, simulation": "processes cannot share memory [/dev/shm]",
    "no /dev/shm, training": "",
    "no /dev/shm, simulation": "processes cannot share memory [/dev/shm]",
}
"""What is said; nothing where the step does not need what is lacking."""


def may_mount() -> bool:
    asked = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(asked, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="mounting needs root and its capability")
def test_each_lack_of_the_machine_is_one_clear_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.cramped", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes.keys() == EXPECTED.keys()
    for name, (code, line) in outcomes.items():
        words = EXPECTED[name].format(room=tmp_path / "room")
        assert words in line, (name, line)
        assert (code == 0) == (not words), (name, code, line)
        assert not words or line.startswith("error: ")
