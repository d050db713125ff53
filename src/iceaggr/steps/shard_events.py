"""Step 2: one work unit of raw files -> shards and sketches in object storage."""

from __future__ import annotations

from pathlib import Path

from iceaggr.progress import StepProgress
from iceaggr.shards.writing import shard_unit
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import write_document


def run_shard_events(context: RunContext, work_unit: str, manifest_path: Path) -> dict[str, float]:
    """Shard one work unit and write its manifest to a local file.

    Returns counts of events and pulses, for the artifact's metadata.
    Raises: StorageError, RawDataError.
    """
    label = work_unit.rpartition("#")[2]
    with StepProgress("shard_events", task=label, run_id=context.run_id) as progress:
        manifest = shard_unit(
            context.open_store(),
            work_unit,
            context.work_uri,
            context.config.data,
            on_progress=progress.update,
        )
        write_document(manifest_path, manifest.to_json())
        facts = {
            "n_source_files": len(manifest.source_files),
            "n_source_files_reused": sum(source.reused for source in manifest.source_files),
            "n_events": sum(source.n_events_kept for source in manifest.source_files),
            "n_pulses": sum(source.n_pulses_kept for source in manifest.source_files),
            "n_pulses_rejected": sum(s.n_pulses_rejected for s in manifest.source_files),
        }
        progress.conclude(
            f"{facts['n_events']:,} events, {facts['n_pulses']:,} pulses, "
            f"{facts['n_source_files_reused']} of {facts['n_source_files']} files reused"
        )
        return {name: float(value) for name, value in facts.items()}
