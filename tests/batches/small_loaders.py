"""A small set of shards and loaders over it."""

from __future__ import annotations

from collections.abc import Iterator

from iceaggr.batches import EventBatch, EventLoader
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.shards.manifest import ShardManifest
from iceaggr.storage import open_store

SIZES = [23, 40, 1, 17, 31, 8, 40, 25, 3, 12]
N_EVENTS = sum(SIZES)


def loader(
    manifest: ShardManifest,
    config: BatchConfig | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool | None = None,
) -> EventLoader:
    config = config or BatchConfig(n_events=16, n_mixed_shards=4)
    return EventLoader(
        open_store(), manifest, "train", icecube86(), config, rank, world_size, shuffle
    )


def ids(batches: Iterator[EventBatch] | list[EventBatch]) -> list[int]:
    return [i for batch in batches for i in batch.event_id.tolist()]
