"""Sharding a folder of raw files in one call, and looking at all that it left."""

from __future__ import annotations

from pathlib import Path

from iceaggr.config import DataConfig
from iceaggr.events.dom_events import DomEvents, concatenate
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.manifest import ShardManifest, merge_manifests
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.reading import read_shard
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store


def shard_all(
    raw_uri: str, out: Path, config: DataConfig | None = None, store: ObjectStore | None = None
) -> ShardManifest:
    """Plan and shard every work unit below a raw URI."""
    config, store = config or DataConfig(), store or open_store()
    out_uri = out.absolute().as_uri()
    units = plan_shards(store, raw_uri, config, out_uri)
    return merge_manifests([shard_unit(store, unit, out_uri, config) for unit in units])


def read_all(manifest: ShardManifest) -> DomEvents:
    """Read all shards of a manifest into one."""
    return concatenate([read_shard(open_store(), entry) for entry in manifest.shards])


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
