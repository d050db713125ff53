from __future__ import annotations

import pytest

from iceaggr.shards.manifest import ShardManifest
from tests.batches.shard_builder import write_shards
from tests.batches.small_loaders import SIZES


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ShardManifest:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)
