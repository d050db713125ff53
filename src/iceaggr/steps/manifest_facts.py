"""The counts of a run's data, as metrics, in its summary and in words."""

from __future__ import annotations

from collections.abc import Mapping

from iceaggr.shards.manifest import ShardManifest


def manifest_facts(manifest: ShardManifest) -> dict[str, float]:
    """Count what a manifest holds: events per split, pulses in, kept and rejected."""
    sources = manifest.source_files
    return {
        "n_events_train": float(manifest.n_events("train")),
        "n_events_validation": float(manifest.n_events("validation")),
        "n_events_test": float(manifest.n_events("test")),
        "n_events_rejected": float(sum(s.n_events_in - s.n_events_kept for s in sources)),
        "n_source_files": float(len(sources)),
        "n_source_files_reused": float(sum(s.reused for s in sources)),
        "n_shards": float(len(manifest.shards)),
        "pulses_in": float(sum(s.n_pulses_in for s in sources)),
        "pulses_kept": float(sum(s.n_pulses_kept for s in sources)),
        "pulses_rejected": float(sum(s.n_pulses_rejected for s in sources)),
    }


def reuse_words(facts: Mapping[str, float]) -> str:
    """Say what was sharded before and what is new, from `manifest_facts`."""
    n_files, n_reused = facts["n_source_files"], facts["n_source_files_reused"]
    return (
        f"{n_files:,.0f} raw files: {n_reused:,.0f} sharded before, {n_files - n_reused:,.0f} new"
    )
