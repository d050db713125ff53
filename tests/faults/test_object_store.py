"""Faults of the object store, injected into the real store's answers while the steps run.

Counts and outcomes of the long version are kept in docs/evidence.md.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from iceaggr.errors import IceaggrError, ShardError, StorageError
from iceaggr.shards.manifest import parse_manifest
from iceaggr.shards.statistics import compute_statistics, load_sketches
from iceaggr.storage import open_store
from tests.faults.fault_plan import FaultPlan
from tests.faults.pipeline_runs import UNTRACKED_STEPS, TinyRun, results

pytestmark = pytest.mark.integration

SURVIVED = (
    "internal_error",
    "slow_down",
    "reset",
    "answer_lost",
    "stall",
    "truncated",
    "wrong_bytes",
    "wrong_upload",
    "trickle",
    "endless_trickle",
    "disk_full",
)
"""Kinds that pass; credentials that expire are renewed from a file: `renewable`."""
FAST_STEPS = tuple(step for step in UNTRACKED_STEPS if step != "check_learning")


def tiny_run(raw_uri: str, folder: Path, name: str) -> TinyRun:
    return TinyRun(raw_uri, f"s3://iceaggr/faults/{folder.name}/{name}", folder / name, name)


@pytest.fixture
def renewable(object_store_service, monkeypatch, tmp_path):
    """Credentials in a file, as a mounted secret, instead of the environment."""
    env = object_store_service.env
    path = tmp_path / "credentials"
    path.write_text(
        f"[default]\naws_access_key_id = {env['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {env['AWS_SECRET_ACCESS_KEY']}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return path


def run_disturbed(run: TinyRun, proxy, steps, rate: float) -> dict[str, Counter[str]]:
    """Run the steps under faults; gives the faults of each step, by kind.

    ICEAGGR_FAULT_SEED, any text, draws other faults.
    """
    begin = os.environ.get("ICEAGGR_FAULT_SEED", "")
    met: dict[str, Counter[str]] = {}
    for step in steps:
        with proxy.faults(
            FaultPlan((*SURVIVED, "expired"), rate, seed=f"{begin}{run.run_id} {step}")
        ) as plan:
            run.run_step(step)
        met[step] = plan.counts
    return met


def test_pipeline_under_faults_ends_as_without(raw_in_bucket, proxy, renewable, tmp_path):
    quiet = tiny_run(raw_in_bucket, tmp_path, "quiet")
    quiet.run(FAST_STEPS)
    disturbed = tiny_run(raw_in_bucket, tmp_path, "disturbed")
    met = run_disturbed(disturbed, proxy, FAST_STEPS, rate=0.55)
    total = sum(met.values(), Counter())
    assert results(disturbed) == results(quiet)
    assert total.total() >= 60, met
    assert all(total[kind] for kind in (*SURVIVED, "expired")), total
    assert all(met[step].total() for step in FAST_STEPS), met


@pytest.mark.slow
def test_pipeline_under_hundreds_of_faults_ends_as_without(
    raw_in_bucket, proxy, renewable, tmp_path
):
    quiet = tiny_run(raw_in_bucket, tmp_path, "quiet")
    quiet.run()
    expected, total = results(quiet), Counter()
    by_step: dict[str, Counter[str]] = {}
    for attempt in range(4):
        run = tiny_run(raw_in_bucket, tmp_path, f"disturbed-{attempt}")
        for step, counts in run_disturbed(run, proxy, UNTRACKED_STEPS, rate=0.6).items():
            by_step.setdefault(step, Counter()).update(counts)
            total += counts
        assert results(run) == expected
    print(json.dumps({"faults": total.total(), "by_kind": total, "by_step": by_step}))
    assert total.total() >= 200
    assert all(total[kind] >= 10 for kind in (*SURVIVED, "expired")), total


PERMANENT = {
    "internal_error": "InternalError",
    "slow_down": "SlowDown",
    "reset": "request failed|not reachable",
    "stall": "ReadTimeoutError|request failed|not reachable",
    "truncated": "IncompleteReadError|request failed|damaged",
    "endless_trickle": "bytes came in",
    "disk_full": "object store is full",
    "expired": "credentials of the object store have expired",
}


AT_ONCE = ("disk_full", "expired", "truncated")


@pytest.mark.parametrize(
    "kind",
    [kind if kind in AT_ONCE else pytest.param(kind, marks=pytest.mark.slow) for kind in PERMANENT],
)
def test_permanent_fault_is_one_clear_error_and_the_step_resumes(
    kind, raw_in_bucket, proxy, tmp_path
):
    run = tiny_run(raw_in_bucket, tmp_path, kind.replace("_", "-"))
    run.run_step("plan_shards")
    # the third shard on, so that there is something to go on from; reads from the first one
    only = "" if kind in ("truncated", "endless_trickle") else "-0000[2-9].arrow"
    with (
        proxy.faults(FaultPlan([kind], max_in_a_row=0, only=only)) as plan,
        pytest.raises(IceaggrError, match=PERMANENT[kind]) as caught,
    ):
        run.run_step("shard_events")
    assert plan.counts[kind]
    assert "\n" not in str(caught.value)
    assert caught.value.where.startswith("s3://iceaggr/faults/")
    run.run_step("shard_events")
    quiet = tiny_run(raw_in_bucket, tmp_path, f"{kind}-quiet".replace("_", "-"))
    quiet.run(("plan_shards", "shard_events"))
    assert results(run) == results(quiet)


def test_expired_credentials_are_read_anew_from_their_file(
    raw_in_bucket, proxy, renewable, object_store_service
):
    store = open_store()
    store.write_bytes("s3://iceaggr/faults/expiring", b"before")
    good = renewable.read_text()
    stale = good.replace(object_store_service.env["AWS_ACCESS_KEY_ID"], "stale-key")
    proxy.expired_key = "stale-key"
    renewable.write_text(stale)
    with pytest.raises(StorageError, match="credentials of the object store have expired"):
        open_store().read_bytes("s3://iceaggr/faults/expiring")
    proxy.on_expired = lambda: renewable.write_text(good)
    assert open_store().read_bytes("s3://iceaggr/faults/expiring") == b"before"


@pytest.fixture
def sharded(raw_in_bucket, proxy, tmp_path):
    """A run that has come to its training."""
    run = tiny_run(raw_in_bucket, tmp_path, "sharded")
    run.run(("plan_shards", "shard_events"))
    units = (run.folder / "unit-0.json").read_text()
    manifest = parse_manifest(units, where="unit-0.json")
    sketches = load_sketches(open_store(), manifest)
    statistics = compute_statistics(manifest, sketches, run.context().config.normalization)
    (run.folder / "manifest.json").write_text(manifest.to_json())
    (run.folder / "normalization.json").write_text(statistics.normalization.to_json())
    return run


def test_shard_that_stays_corrupt_is_named_and_never_trained_on(sharded):
    store = open_store()
    shards = [s.uri for s in store.list(f"{sharded.work_uri}/shards/") if "/train-" in s.uri]
    data = store.read_bytes(shards[0])
    middle = len(data) // 2
    store.write_bytes(shards[0], data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
    with pytest.raises(ShardError, match="shard differs from its manifest") as caught:
        sharded.run_step("train_model")
    assert caught.value.where == shards[0]
    assert not store.list(f"{sharded.context().run_uri}/training/model/")


def test_shard_that_is_never_read_right_is_named_and_training_goes_on_later(sharded, proxy):
    with (
        proxy.faults(FaultPlan(["wrong_bytes"], max_in_a_row=0, only="/train-.*arrow")) as plan,
        pytest.raises((ShardError, StorageError), match=r"train-\d+\.arrow"),
    ):
        sharded.run_step("train_model")
    assert plan.counts["wrong_bytes"] >= 3, "it was read again before it was given up"
    sharded.run_step("train_model")
