"""Steps that are killed, terminated or out of memory at random moments; and two runs at once.

Counts and outcomes of the long version are kept in docs/evidence.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import asdict

import pytest
from mlflow import MlflowClient

from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.faults.endings import KINDS, ROOT, has_cgroups
from tests.faults.killing import DOCUMENTS, MADE
from tests.faults.pipeline_runs import STEPS, TinyRun, results

SEED = os.environ.get("ICEAGGR_FAULT_SEED", "1")
CERTAIN = ("SIGKILL", "SIGTERM", "oom_kill")
"""Kinds that meet nearly every attempt."""
N_ENDINGS = int(os.environ.get("ICEAGGR_ENDINGS", "20"))
"""Of each kind for each step, in the long test."""
ENDED = tuple(os.environ.get("ICEAGGR_ENDED_STEPS", ",".join(STEPS)).split(","))
"""The steps that the long test ends."""
N_NO_MEMORY = max(1, N_ENDINGS // 4)
"""Allocations that fail, which no container meets, are tried less often: some wait for ever."""


def end_steps(folder, work_uri, n, steps):
    """Run `tests.faults.killing` and give the outcomes: step -> kind -> outcome -> count."""
    raw_uri = write_raw_layout(
        folder / "raw", n_events_per_file=60, mean_pulses=40, page_checksums=True
    )
    settings = {"raw_uri": raw_uri, "work_uri": work_uri, "folder": str(folder / "runs")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.killing"),
            json.dumps(
                {**settings, "n": n, "n_no_memory": N_NO_MEMORY, "steps": steps, "seed": SEED}
            ),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=4 * 3600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    return json.loads(done.stdout)


def check_counts(told, n, steps):
    outcomes = told["outcomes"]
    kinds = [kind for kind in KINDS if kind != "oom_kill" or has_cgroups()]
    assert list(outcomes) == list(steps)
    for step, by_kind in outcomes.items():
        assert list(by_kind) == kinds
        for kind in (kind for kind in CERTAIN if kind in kinds):
            met = sum(c for words, c in by_kind[kind].items() if words.startswith(("kill", "exit")))
            assert met >= 0.8 * n, (step, kind, by_kind[kind])
        ends = set(by_kind["SIGTERM"]) - {"finished before", "never met"}
        # 143 = ended by SIGTERM after cleaning up, 75 = training with a checkpoint; killed = before
        assert ends <= {"exit 143", "exit 75", "killed"}, (step, by_kind["SIGTERM"])


def test_every_step_has_results_that_are_compared():
    assert list(MADE) == list(DOCUMENTS) == list(STEPS)
    assert [step for step, made in MADE.items() if not made] == ["close_run"]


def test_step_ended_at_a_random_moment_is_made_good_by_its_retry(tmp_path):
    steps = ("shard_events", "train_model")
    told = end_steps(tmp_path, (tmp_path / "work").as_uri(), 1, steps)
    check_counts(told, 1, steps)


@pytest.mark.slow
@pytest.mark.integration
def test_every_step_ended_twenty_times_in_every_way_is_made_good(mlflow_service, tmp_path):
    told = end_steps(tmp_path, f"s3://iceaggr/faults/{tmp_path.name}", N_ENDINGS, ENDED)
    check_counts(told, N_ENDINGS, ENDED)


@pytest.mark.slow
@pytest.mark.integration
def test_two_runs_at_once_do_not_disturb_each_other(mlflow_service, tmp_path):
    raw_uri = write_raw_layout(tmp_path / "raw", n_events_per_file=60, mean_pulses=40)
    work_uri, model_name = f"s3://iceaggr/faults/{tmp_path.name}", f"together-{uuid.uuid4().hex}"
    runs = [
        TinyRun(raw_uri, work_uri, tmp_path / name, f"{name}-{uuid.uuid4().hex}", True, model_name)
        for name in ("one", "two")
    ]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.one_run", json.dumps(asdict(run), default=str)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for run in runs
    ]
    assert [child.wait(600) for child in children] == [0, 0]
    first, second = (results(run) for run in runs)
    assert first == second
    client = MlflowClient()
    versions = client.search_model_versions(f"name='{model_name}'")
    assert len(versions) == 2
    summaries = [json.loads((run.folder / "summary.json").read_text()) for run in runs]
    # equal models: the first one is promoted, and the other is no better
    assert sorted(summary["promoted"] for summary in summaries) == [False, True]
    winner = next(summary for summary in summaries if summary["promoted"])
    champion = client.get_model_version_by_alias(model_name, "champion")
    assert winner["model_uri"].endswith(f"/{champion.version}")
    for run in runs:
        assert not open_store().list(f"{run.context().run_uri}/training/checkpoints/")
