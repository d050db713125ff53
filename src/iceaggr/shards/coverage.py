"""Whether the manifests of the work units account for every raw file of the plan.

A task that failed, was killed or whose manifest was lost leaves the others' manifests behind, and
they look sound: only the plan tells that events are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iceaggr.errors import ShardError
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.manifest import ShardManifest, SourceFile
from iceaggr.shards.planned import PlannedFile
from iceaggr.shards.planning import load_work_units

SHARD_AGAIN = (
    "Shard the raw events again, by the same `iceaggr shard` command or another run of the"
    " pipeline: what is there is reused"
)
_N_NAMED = 5


def check_coverage(
    store: ObjectStore, work_units: Sequence[str], manifests: Sequence[ShardManifest]
) -> None:
    """Compare what was sharded with what was planned, file by file.

    work_units: all that plan_shards gave.  manifests: all that shard_events wrote.
    Raises: ShardError if a work unit lacks its manifest, or a raw file is not as it was planned;
    StorageError.
    """
    planned = load_work_units(store, work_units)
    sources = {file.uri: file for part in manifests for file in part.source_files}
    missing = [
        unit for unit, files in planned.items() if any(file.uri not in sources for file in files)
    ]
    if missing:
        raise _missing(planned, missing, sources)
    files_by_uri = {file.uri: file for files in planned.values() for file in files}
    for uri, source in sources.items():
        _check_planned(source, files_by_uri.get(uri))


def _missing(
    planned: Mapping[str, Sequence[PlannedFile]],
    missing: Sequence[str],
    sources: Mapping[str, SourceFile],
) -> ShardError:
    files = [file for unit in missing for file in planned[unit] if file.uri not in sources]
    n_events = sum(file.n_events_used for file in files)
    units = ", ".join(unit.rpartition("#")[2] for unit in missing[:_N_NAMED])
    names = ", ".join(file.uri.rpartition("/")[2] for file in files[:_N_NAMED])
    return ShardError(
        "work units were not sharded",
        where=missing[0].rpartition("#")[0],
        found=f"manifests of {len(planned) - len(missing)} work units",
        expected=f"those of all {len(planned)} that were planned; missing are {units}"
        f"{_and_more(len(missing))} with {n_events:,} events of {names}{_and_more(len(files))}",
        remedy=SHARD_AGAIN,
    )


def _and_more(n_all: int) -> str:
    return f" and {n_all - _N_NAMED} more" if n_all > _N_NAMED else ""


def _check_planned(source: SourceFile, file: PlannedFile | None) -> None:
    found = _identity(source.etag, source.n_bytes, source.n_events_in)
    expected = file and _identity(file.etag, file.n_bytes, file.n_events_used)
    if found != expected:
        raise ShardError(
            "what was sharded is not what was planned",
            where=source.uri,
            found=found,
            expected=expected or "only the raw files of the plan",
            remedy=SHARD_AGAIN,
        )


def _identity(etag: str, n_bytes: int, n_events: int) -> str:
    return f"tag {etag}, {n_bytes} bytes, {n_events} events"
