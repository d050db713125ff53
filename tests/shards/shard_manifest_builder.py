"""Manifests for tests that need the account of some sketches but no shard files."""

from __future__ import annotations

from collections.abc import Mapping

from iceaggr.detector import icecube86
from iceaggr.shards.manifest import ShardEntry, ShardManifest, SourceFile, Split
from iceaggr.shards.sketches import Sketch


def manifest_of(
    sketches: Mapping[Split, Sketch],
    *,
    uri: str = "s3://raw/train/batch_1.parquet",
    sketch_uri: str = "file:///sketch.json",
    rejected_events: dict[str, int] | None = None,
    rejected_pulses: dict[str, int] | None = None,
    n_pulses_lost: int = 0,
) -> ShardManifest:
    """Describe one shard per split, all from one raw file."""
    shards = tuple(
        ShardEntry(
            uri=f"s3://shards/{split}.arrow",
            split=split,
            n_bytes=13 * sketch.n_pulses,
            blake3=f"{sketch.n_pulses:064d}",
            n_events=sketch.n_events,
            n_pulses=sketch.n_pulses,
            n_doms=sketch.n_doms,
        )
        for split, sketch in sketches.items()
    )
    n_events, n_pulses = sum(s.n_events for s in shards), sum(s.n_pulses for s in shards)
    source = SourceFile(
        uri=uri,
        etag="etag",
        n_bytes=10 * n_pulses,
        content_key="key",
        n_events_in=n_events + sum((rejected_events or {}).values()),
        n_events_kept=n_events,
        n_pulses_in=n_pulses + n_pulses_lost + sum((rejected_pulses or {}).values()),
        n_pulses_kept=n_pulses,
        rejected_events=rejected_events or {},
        rejected_pulses=rejected_pulses or {},
        sketch_uri=sketch_uri,
    )
    return ShardManifest(
        geometry_uri="icecube86",
        detector_digest=icecube86().digest(),
        labelled=True,
        split_salt="salt",
        validation_share=0.1,
        test_share=0.1,
        n_events_per_shard=2048,
        source_files=(source,),
        shards=shards,
    )
