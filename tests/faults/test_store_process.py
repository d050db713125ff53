"""A store of its own that is killed and restarted under a step, and one whose disk is full."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace

import pytest

from iceaggr.errors import StorageError
from iceaggr.local_services.processes import LOOPBACK, choose_ports, start_process
from iceaggr.local_services.services import (
    PORTS,
    object_store_command,
    remove_sockets,
    s3_identities,
)
from iceaggr.storage import open_store
from tests.faults.pipeline_runs import TinyRun, results
from tests.faults.test_local_machine import may_mount

pytestmark = [pytest.mark.slow, pytest.mark.integration]

KEYS = {"AWS_ACCESS_KEY_ID": "faults", "AWS_SECRET_ACCESS_KEY": "secret-of-this-test"}
PREFIX_OF_SMALL_DISK = ["unshare", "-m", "sh", "-c"]


class Store:
    """One real object store, whose process a test may kill and start again."""

    def __init__(self, folder, disk_mib=0):
        self.folder = folder
        self.disk_mib = disk_mib
        self.ports = choose_ports({**PORTS, "s3": 0})
        (folder / "s3_identities.json").write_text(s3_identities(*KEYS.values()))
        endpoint = f"http://{LOOPBACK}:{self.ports['s3']}"
        self.env = {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}

    def start(self):
        command = object_store_command(self.folder, self.ports)
        if self.disk_mib:
            data = self.folder / "object_store"
            words = f'mount -t tmpfs -o size={self.disk_mib}m tmpfs {data} && exec "$@"'
            command = [*PREFIX_OF_SMALL_DISK, words, "sh", *command]
        log = self.folder / "store.log"
        self.process = start_process("object store", command, log, os.environ)
        deadline = time.monotonic() + 90
        while True:
            try:
                store = open_store(self.env)
                store.ensure_bucket("s3://iceaggr")
                store.write_bytes("s3://iceaggr/ready", b"1")
                return
            except StorageError:
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.2)

    def stop(self):
        self.process.stop(0.0)


@pytest.fixture
def make_store(tmp_path, monkeypatch):
    """Start stores whose addresses `open_store` uses from then on."""
    started = []

    def make(**options):
        store = Store(tmp_path, **options)
        started.append(store)
        store.start()
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        return store

    yield make
    for store in started:
        store.stop()
        remove_sockets(store.ports)


def test_store_that_restarts_under_a_training_is_waited_for(make_store, raw_files, tmp_path):
    store = make_store()
    quiet = TinyRun(
        raw_files.as_uri(),
        "s3://iceaggr/quiet",
        tmp_path / "quiet",
        "quiet",
        checkpoint_every_minutes=1e-9,  # after every step, so that there is much to read and write
    )
    quiet.run(("plan_shards", "shard_events", "compute_statistics", "train_model"))
    run = replace(quiet, run_id="restarted")
    latest = f"{run.context().run_uri}/training/checkpoints/latest.json"

    def restart():
        while open_store().stat(latest) is None:
            time.sleep(0.05)
        store.stop()
        time.sleep(1.0)
        store.start()

    thread = threading.Thread(target=restart)
    thread.start()
    run.run_step("train_model")
    thread.join()
    weights = "training/model/weights.safetensors"
    assert results(run)[weights] == results(quiet)[weights]


def test_store_that_is_away_when_a_step_begins_is_told_at_once(make_store, raw_files, tmp_path):
    store = make_store()
    run = TinyRun(raw_files.as_uri(), "s3://iceaggr/away", tmp_path / "away", "away")
    run.run_step("plan_shards")
    store.stop()
    with pytest.raises(StorageError, match="object store not reachable"):
        run.run_step("shard_events")
    store.start()
    run.run_step("shard_events")


def fill(store, n_bytes):
    for number in range(500):
        store.write_bytes(f"s3://iceaggr/filler/{n_bytes}-{number}", os.urandom(n_bytes))


@pytest.mark.skipif(not may_mount(), reason="mounting needs root and its capability")
def test_store_whose_disk_is_full_is_told(make_store, raw_files, tmp_path, short_waits):
    make_store(disk_mib=48)
    quiet = TinyRun(raw_files.as_uri(), (tmp_path / "w").as_uri(), tmp_path / "quiet", "quiet")
    quiet.run(("plan_shards", "shard_events"))
    for n_bytes in (1 << 20, 1 << 12):  # what is left for a large object may do for a small one
        with pytest.raises(StorageError, match=r"\[s3://iceaggr/filler/") as caught:
            fill(open_store(), n_bytes)
    print(caught.value)
    run = replace(quiet, work_uri="s3://iceaggr/work", folder=tmp_path / "full")
    run.folder.mkdir()
    with pytest.raises(StorageError, match=r"\[s3://iceaggr/work/.* from http://"):
        run.run(("plan_shards", "shard_events"))
