"""The manifests of all work units joined into the one of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from iceaggr.errors import ShardError
from iceaggr.shards.manifest import ShardManifest, SourceFile
from iceaggr.validation import shown

_SHARED = frozenset(ShardManifest.model_fields) - {"source_files", "shards"}


def merge_manifests(manifests: Iterable[ShardManifest]) -> ShardManifest:
    """Join the manifests of all work units: sources sorted by name, shards by their content.

    Training draws its events in the order of the shards. Their names hold the etag of the raw
    file, so an order by name would change with a copy of the data, under the same data digest.
    Raises: ShardError if there are none, they disagree on how events were split or on the
    detector, or a source file or its events occur twice.
    """
    parts = list(manifests)
    if not parts:
        raise ShardError(
            "no shard manifests to merge",
            where="unit manifests",
            found="none",
            expected="at least one work unit",
            remedy="Run plan_shards and shard_events first",
        )
    for part in parts[1:]:
        _check_alike(part, parts[0])
    sources = sorted((s for p in parts for s in p.source_files), key=lambda s: s.uri)
    _check_distinct(sources)
    shards = sorted((e for p in parts for e in p.shards), key=lambda e: (e.split, e.blake3))
    return parts[0].model_copy(update={"source_files": tuple(sources), "shards": tuple(shards)})


def _check_alike(part: ShardManifest, first: ShardManifest) -> None:
    """Compare what holds for all events, however they are divided into units."""
    differing = sorted(name for name in _SHARED if getattr(part, name) != getattr(first, name))
    if differing:
        found, expected = (
            ", ".join(f"{name} {shown(getattr(manifest, name))}" for name in differing)
            for manifest in (part, first)
        )
        raise ShardError(
            "work units were sharded differently",
            where=", ".join(source.uri for source in part.source_files),
            found=found,
            expected=expected,
            remedy="Shard all units with one configuration and one geometry",
        )


def _check_distinct(sources: Sequence[SourceFile]) -> None:
    """Refuse a file that occurs twice, and two files with the same events under two names."""
    uris = [source.uri for source in sources]
    for uri in _twice(uris):
        raise ShardError(
            "source file occurs in two work units",
            where=uri,
            found=f"{uris.count(uri)} times",
            expected="each raw file once",
            remedy="Run plan_shards again and give each unit's manifest once",
        )
    for key in _twice([source.content_key for source in sources]):
        raise ShardError(
            "two source files hold the same events",
            where=", ".join(source.uri for source in sources if source.content_key == key),
            found=f"content key {key} more than once",
            expected="other events in each file",
            remedy="Remove one of them",
        )


def _twice(names: list[str]) -> list[str]:
    return sorted(name for name, n_times in Counter(names).items() if n_times > 1)
