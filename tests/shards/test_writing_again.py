"""Sharding that is repeated, overlaps or was killed: the same objects in the end."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from iceaggr.config import DataConfig
from iceaggr.shards.manifest import load_manifest
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.shards.raw_shards import contents, read_all, shard_all

STORE = open_store()


def test_shard_unit_leaves_the_same_bytes_in_every_run(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    for name in ("first", "second"):
        shard_all(uri, tmp_path / name)
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert first.keys() == second.keys()
    for name in first:
        if name.endswith(".arrow"):
            assert first[name] == second[name], name


def test_shard_unit_leaves_the_same_objects_when_runs_overlap(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=400)
    config, out_uri = DataConfig(n_events_per_shard=16), (tmp_path / "out").as_uri()
    unit = plan_shards(STORE, uri, config, out_uri)[0]
    threads = [
        threading.Thread(target=shard_unit, args=(STORE, unit, out_uri, config)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    overlapping = contents(tmp_path / "out" / "shards")
    again = shard_unit(STORE, unit, out_uri, config)
    assert all(source.reused for source in again.source_files)
    assert contents(tmp_path / "out" / "shards") == overlapping
    assert read_all(again).n_events == 800
    alone = shard_all(uri, tmp_path / "alone", config)
    assert contents(tmp_path / "alone" / "shards").keys() == overlapping.keys()
    assert alone.digest() == again.digest()


class KilledStore:
    """Passes everything on until a write that it does not survive."""

    def __init__(self, n_writes):
        self.n_writes = n_writes

    def __getattr__(self, name):
        return getattr(STORE, name)

    def write_bytes(self, uri, data):
        self.n_writes -= 1
        if self.n_writes < 0:
            raise KeyboardInterrupt
        STORE.write_bytes(uri, data)


@pytest.mark.parametrize("n_writes", [1, 2, 5, 9, 12])
def test_shard_unit_finishes_what_a_killed_run_began(tmp_path, n_writes):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    config = DataConfig(n_events_per_shard=10)
    with pytest.raises(KeyboardInterrupt):
        shard_all(uri, tmp_path / "out", config, KilledStore(n_writes))
    shard_all(uri, tmp_path / "out", config)
    shard_all(uri, tmp_path / "alone", config)
    assert (
        contents(tmp_path / "out" / "shards").keys()
        == contents(tmp_path / "alone" / "shards").keys()
    )
    for name, data in contents(tmp_path / "alone" / "shards").items():
        if name.endswith(".arrow"):
            assert (tmp_path / "out" / "shards" / name).read_bytes() == data


SHARDING_PROCESS = """
import sys
from iceaggr.config import DataConfig
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
shard_unit(open_store(), sys.argv[1], sys.argv[2], DataConfig(n_events_per_shard=2))
"""


def killed_amid_its_shards(unit, folder):
    """Kill a process that shards a unit; False if it had finished before, on a busy machine."""
    process = subprocess.Popen([sys.executable, "-c", SHARDING_PROCESS, unit, folder.as_uri()])
    while process.poll() is None and not list(folder.glob("shards/*/*.arrow")):
        time.sleep(0.001)
    process.kill()
    assert process.wait() in (0, -signal.SIGKILL)
    return not list(folder.glob("shards/*/manifest.json"))


def test_shard_unit_finishes_what_a_process_began_that_was_killed(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1, n_events_per_file=400)
    config = DataConfig(n_events_per_shard=2)
    for attempt in range(5):
        folder = tmp_path / f"out-{attempt}"
        out_uri = folder.as_uri()
        unit = plan_shards(STORE, uri, config, out_uri)[0]
        if killed_amid_its_shards(unit, folder):
            break
    assert list(folder.glob("shards/*/*.arrow"))
    assert not list(folder.glob("shards/*/manifest.json"))
    manifest = shard_unit(STORE, unit, out_uri, config)
    alone = shard_all(uri, tmp_path / "alone", config)
    assert manifest.digest() == alone.digest()
    # what the store lists: a killed process may leave its unfinished, unlisted file behind
    listed = [stored.uri.rsplit("/", 1)[-1] for stored in STORE.list(f"{out_uri}/shards")]
    assert sorted(listed) == sorted(path.name for path in tmp_path.glob("alone/shards/*/*"))


def test_shard_unit_writes_the_manifest_last(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    order = []

    class OrderedStore(KilledStore):
        def write_bytes(self, uri, data):
            order.append(uri.rsplit("/", 1)[-1])
            STORE.write_bytes(uri, data)

    manifest = shard_all(uri, tmp_path / "out", store=OrderedStore(0))
    assert order[-1] == "manifest.json"
    folder_uri = manifest.shards[0].uri.rsplit("/", 1)[0]
    assert load_manifest(STORE, f"{folder_uri}/manifest.json").shards == manifest.shards
