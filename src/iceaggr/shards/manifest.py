"""Manifests: the small JSON documents that pass between steps instead of data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from iceaggr.errors import ShardError
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.format import FORMAT_VERSION, SPLITS

Split = Literal["train", "validation", "test"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(_Document):
    """One shard file: where it lies, what it must hash to, what it holds."""

    uri: str
    split: Split
    n_bytes: int
    sha256: str
    n_events: int
    n_pulses: int
    n_doms: int


class SourceFile(_Document):
    """One raw file and the account of its events and pulses: in = kept + rejected."""

    uri: str
    etag: str
    n_bytes: int
    content_key: str
    n_events_in: int
    n_events_kept: int
    n_pulses_in: int
    n_pulses_kept: int
    rejected_events: dict[str, int] = {}
    rejected_pulses: dict[str, int] = {}
    sketch_uri: str
    quarantine_uri: str = ""
    reused: bool = False

    @property
    def n_pulses_rejected(self) -> int:
        """Count the rejected pulses over all reasons."""
        return sum(self.rejected_pulses.values())


class ShardManifest(_Document):
    """What sharding made: of one work unit, or merged over all of them."""

    format_version: int = FORMAT_VERSION
    geometry_uri: str
    labelled: bool
    notes: tuple[str, ...] = ()
    split_salt: str
    validation_share: float
    test_share: float
    n_events_per_shard: int
    source_files: tuple[SourceFile, ...]
    shards: tuple[ShardEntry, ...]

    def shards_of(self, split: str) -> tuple[ShardEntry, ...]:
        """Select the shards of one split, in manifest order."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
        return tuple(entry for entry in self.shards if entry.split == split)

    def n_events(self, split: str) -> int:
        """Count the events of one split."""
        return sum(entry.n_events for entry in self.shards_of(split))

    def digest(self) -> str:
        """Hash the content (shard hashes and splits), wherever it lies: 16 hex digits."""
        content = sorted([entry.split, entry.sha256, entry.n_events] for entry in self.shards)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Serialise, readable and stable."""
        return json.dumps(self.model_dump(), indent=1, sort_keys=True)


def parse_manifest(text: str | bytes, where: str) -> ShardManifest:
    """Read a manifest. Raises: ShardError if it is not one, or of another format version."""
    try:
        document: dict[str, Any] = json.loads(text)
        version = document.get("format_version")
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        raise ShardError("not a shard manifest", where=where, expected="a JSON object") from None
    if version != FORMAT_VERSION:
        raise ShardError(
            "shard manifest of another format",
            where=where,
            found=f"version {version}",
            expected=f"version {FORMAT_VERSION}",
            remedy="Shard the raw events again with this version of iceaggr",
        )
    try:
        return ShardManifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise ShardError(
            "damaged shard manifest",
            where=where,
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy="Shard the raw events again; manifests are never edited by hand",
        ) from None


def load_manifest(store: ObjectStore, uri: str) -> ShardManifest:
    """Read a manifest from storage. Raises: StorageError, ShardError."""
    return parse_manifest(store.read_bytes(uri), where=uri)


def merge_manifests(manifests: Iterable[ShardManifest]) -> ShardManifest:
    """Join the manifests of all work units, sorted by source file.

    Raises: ShardError if there are none, they disagree on how events were split, or a source file
    occurs twice.
    """
    parts = list(manifests)
    if not parts:
        raise ShardError("no shard manifests to merge", expected="at least one work unit")
    shared = {"source_files", "shards"}
    first = parts[0].model_dump(exclude=shared)
    for part in parts[1:]:
        if part.model_dump(exclude=shared) != first:
            raise ShardError(
                "work units were sharded differently",
                found=part.model_dump(exclude=shared),
                expected=first,
                remedy="Shard all units with one configuration",
            )
    sources = sorted((s for p in parts for s in p.source_files), key=lambda s: s.uri)
    uris = [source.uri for source in sources]
    twice = _twice(uris)
    if twice:
        raise ShardError("source file occurs in two work units", where=twice[0])
    same = _twice([source.content_key for source in sources])
    if same:
        raise ShardError(
            "two source files hold the same events",
            where=", ".join(s.uri for s in sources if s.content_key == same[0]),
            remedy="Remove one of them",
        )
    shards = sorted((e for p in parts for e in p.shards), key=lambda e: e.uri)
    return ShardManifest(**first, source_files=tuple(sources), shards=tuple(shards))


def _twice(names: list[str]) -> list[str]:
    return sorted(name for name, n_times in Counter(names).items() if n_times > 1)
