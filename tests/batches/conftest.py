from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from iceaggr.shards.manifest import ShardManifest
from tests.batches.shard_builder import write_shards
from tests.batches.small_loaders import SIZES


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ShardManifest:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture
def own_threads() -> Callable[[], set[threading.Thread]]:
    """Find the threads of loaders that a test starts; those of tests before may still end."""
    before = set(threading.enumerate())

    def found() -> set[threading.Thread]:
        threads = set(threading.enumerate()) - before
        return {thread for thread in threads if thread.name.startswith("iceaggr-batches")}

    return found
