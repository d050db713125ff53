"""Real shards with a manifest, of small synthetic events, in a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iceaggr.detector import Detector, icecube86
from iceaggr.shards.encoding import encode_shard, shard_hash
from iceaggr.shards.manifest import ShardEntry, ShardManifest, Split
from tests.shards.dom_events_builder import random_dom_events


def write_shards(
    folder: Path,
    n_events_of_shards: Sequence[int],
    *,
    split: Split = "train",
    median_pulses: float = 5.0,
    labelled: bool = True,
    detector: Detector | None = None,
) -> ShardManifest:
    """Write one shard per number; event ids count up through the shards as in a raw file."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    first = 0
    for number, n_events in enumerate(n_events_of_shards):
        events = random_dom_events(
            n_events,
            seed=number,
            detector=detector,
            median_pulses=median_pulses,
            labelled=labelled,
            first_event_id=first,
        )
        data = encode_shard(events)
        path = folder / f"{split}-{number:04d}.arrow"
        path.write_bytes(data)
        entries.append(
            ShardEntry(
                uri=path.as_uri(),
                split=split,
                n_bytes=len(data),
                blake3=shard_hash(data),
                n_events=events.n_events,
                n_pulses=events.n_pulses,
                n_doms=events.n_doms,
            )
        )
        first += n_events
    return ShardManifest(
        geometry_uri="icecube86",
        detector_digest=(detector or icecube86()).digest(),
        labelled=labelled,
        split_salt="test",
        validation_share=0.1,
        test_share=0.1,
        n_events_per_shard=max(n_events_of_shards),
        source_files=(),
        shards=tuple(entries),
    )
