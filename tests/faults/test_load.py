"""Many runs in a row and several at once leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import boto3
import pytest

from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.faults.endings import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.integration]

RUNS_FOR_WARMTH = 3
LASTING = {
    "plans",
    "shards",
    "datasets",
    "runs/RUN/evaluation",
    "runs/RUN/training/model",
    "runs/RUN/summary.json",
}
"""What a finished run may leave below its work folder."""


def start_runs(folder, raw_uri, n):
    """Start a process that runs the pipeline n times; its temporary files go below `folder`."""
    (folder / "tmp").mkdir(parents=True)
    settings = {
        "raw_uri": raw_uri,
        "work_uri": f"s3://iceaggr/load/{folder.parent.name}",
        "folder": str(folder),
        "model_name": f"load-{folder.parent.name}",
        "n": n,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.load", json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
    )


def told_by(child):
    said, _ = child.communicate(timeout=3600)
    assert child.returncode == 0, said[-2000:]
    return json.loads(said.splitlines()[-1])


def check_bucket(folder):
    """Find nothing in the bucket but results: no checkpoint, no half upload."""
    prefix = f"load/{folder.name}/"
    kept = set()
    for stored in open_store().list(f"s3://iceaggr/{prefix}"):
        parts = stored.uri.removeprefix(f"s3://iceaggr/{prefix}").split("/")
        kept.add("/".join(["runs", "RUN", *parts[2:]]) if parts[0] == "runs" else parts[0])
    strangers = {name for name in kept if not any(name.startswith(known) for known in LASTING)}
    assert not strangers
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    assert not client.list_multipart_uploads(Bucket="iceaggr").get("Uploads")


def test_ten_runs_in_a_row_leave_nothing_behind(mlflow_service, tmp_path):
    raw_uri = write_raw_layout(tmp_path / "raw", n_events_per_file=60, mean_pulses=40)
    told = told_by(start_runs(tmp_path / "row", raw_uri, 10))
    print(json.dumps(told))
    assert len(told) == 10
    warm, last = told[RUNS_FOR_WARMTH - 1], told[-1]
    for name in ("open_files", "threads", "child_processes", "temporary_files"):
        assert last[name] <= warm[name], (name, told)
    assert last["child_processes"] == last["temporary_files"] == 0
    growth = {name: (last[name] - warm[name]) / (10 - RUNS_FOR_WARMTH) for name in warm}
    # freed memory stays with the heaps of threads that are gone, so resident memory tells less
    # connections wait for their next use, as many as were ever needed at once
    assert growth["open_sockets"] < 0.5, growth
    assert growth["held_mib"] < 0.5, growth
    assert growth["python_blocks"] < 2000, growth
    assert growth["resident_mib"] < 5, growth
    check_bucket(tmp_path)


def test_three_runs_at_once_leave_nothing_behind(mlflow_service, tmp_path):
    raw_uri = write_raw_layout(tmp_path / "raw", n_events_per_file=60, mean_pulses=40)
    children = [start_runs(tmp_path / name, raw_uri, 1) for name in ("a", "b", "c")]
    for child in children:
        (told,) = told_by(child)
        assert told["child_processes"] == told["temporary_files"] == 0
    check_bucket(tmp_path)
