"""Manifests: the small JSON documents that pass between steps instead of data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from iceaggr.config.sections import LabelWord
from iceaggr.errors import ShardError
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.encoding import SPLITS
from iceaggr.validation import read_json_object, read_model, shown

MANIFEST_VERSION = 3
VERSION_WITHOUT_DETECTOR = 2
"""Of manifests that do not say with which detector they were sharded; still read."""

Split = Literal["train", "validation", "test"]
_SEAL = "content_sha256"
_REMEDY = "Shard the raw events again; manifests are never edited by hand"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count = Annotated[int, Field(ge=0)]
# the hash of a shard names a file in the local cache: nothing else may stand there
HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardEntry(_Document):
    """One shard file: where it lies, what it must hash to, what it holds."""

    uri: str
    split: Split
    n_bytes: Count
    blake3: HexDigest
    n_events: Count
    n_pulses: Count
    n_doms: Count


class SourceFile(_Document):
    """One raw file and the account of its events and pulses: in = kept + rejected."""

    uri: str
    etag: str
    n_bytes: Count
    content_key: str
    n_events_in: Count
    n_events_kept: Count
    n_pulses_in: Count
    n_pulses_kept: Count
    rejected_events: dict[str, Count] = {}
    rejected_pulses: dict[str, Count] = {}
    sketch_uri: str
    quarantine_uri: str = ""
    reused: bool = False

    @property
    def n_pulses_rejected(self) -> int:
        """Count the rejected pulses over all reasons."""
        return sum(self.rejected_pulses.values())


class ShardManifest(_Document):
    """What sharding made: of one work unit, or merged over all of them.

    detector_digest: of the sensor table that the pulses were judged and grouped by, as
    `Detector.digest` gives it; None in a manifest of the version before, which did not hold it.
    label_reading: how the label columns were read; the shards hold the result.
    official_split: the raw events bring their test events; validation is a part of the rest.
    """

    format_version: int = MANIFEST_VERSION
    geometry_uri: str
    detector_digest: HexDigest | None
    labelled: bool
    label_reading: tuple[LabelWord, ...] = ()
    notes: tuple[str, ...] = ()
    split_salt: str
    validation_share: float
    test_share: float
    official_split: bool = False
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
        """Hash the content (shards, splits, detector), wherever it lies: 16 hex digits."""
        content: list[Any] = sorted([e.split, e.blake3, e.n_events] for e in self.shards)
        if self.detector_digest is not None:
            content.append(self.detector_digest)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Serialise, readable and stable, with a seal: the hash of all the rest."""
        document = self._document() | {_SEAL: self.seal()}
        return json.dumps(document, indent=1, sort_keys=True)

    def seal(self) -> str:
        """Hash every field: 64 hex digits."""
        content = json.dumps(self._document(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def _document(self) -> dict[str, Any]:
        document = self.model_dump()
        # or the seals of the versions before would differ
        if self.detector_digest is None:
            del document["detector_digest"]
        if not self.label_reading:
            del document["label_reading"]
        if not self.official_split:
            del document["official_split"]
        return document


def parse_manifest(text: str | bytes, where: str) -> ShardManifest:
    """Read a manifest.

    Raises: ShardError if it is not one, of another format version, or changed since it was written.
    """
    document = read_json_object(
        text,
        lambda found: ShardError(
            "not a shard manifest",
            where=where,
            found=found,
            expected="a JSON object",
            remedy=_REMEDY,
        ),
    )
    _check_version(document, where)
    seal = document.pop(_SEAL, None)
    manifest = read_model(
        ShardManifest, document, lambda p: _damaged(where, p.found_in_field, p.expected)
    )
    if seal != manifest.seal():
        raise _damaged(where, f"{_SEAL} {shown(seal)}", manifest.seal())
    _check_account(manifest, where)
    return manifest


def _check_version(document: dict[str, Any], where: str) -> None:
    """Refuse another format; only the version before has no detector's digest, and needs none."""
    version = document.get("format_version")
    if version not in (VERSION_WITHOUT_DETECTOR, MANIFEST_VERSION):
        raise ShardError(
            "shard manifest of another format",
            where=where,
            found=f"version {shown(version)}",
            expected=f"version {MANIFEST_VERSION}",
            remedy="Shard the raw events again with this version of iceaggr",
        )
    has_digest = document.get("detector_digest") is not None
    if has_digest != (version == MANIFEST_VERSION):
        found = "with" if has_digest else "without"
        expected = "one" if version == MANIFEST_VERSION else "none"
        raise _damaged(where, f"version {version} {found} detector_digest", expected)
    document.setdefault("detector_digest", None)


def _check_account(manifest: ShardManifest, where: str) -> None:
    """In = kept + rejected for each source file, and what was kept is what the shards hold."""
    sources, shards = manifest.source_files, manifest.shards
    for file in sources:
        for what in ("events", "pulses"):
            n_in, n_kept = getattr(file, f"n_{what}_in"), getattr(file, f"n_{what}_kept")
            n_rejected = sum(getattr(file, f"rejected_{what}").values())
            if n_in != n_kept + n_rejected:
                found = f"{n_in} {what} in, {n_kept} kept + {n_rejected} rejected"
                raise _damaged(f"{where} {file.uri}", found, "in = kept + rejected")
    for what in ("events", "pulses"):
        n_kept = sum(getattr(file, f"n_{what}_kept") for file in sources)
        n_stored = sum(getattr(entry, f"n_{what}") for entry in shards)
        if sources and n_kept != n_stored:
            raise _damaged(where, f"{n_stored} {what} in shards", f"{n_kept} as kept of the files")


def _damaged(where: str, found: str, expected: str) -> ShardError:
    return ShardError(
        "damaged shard manifest", where=where, found=found, expected=expected, remedy=_REMEDY
    )


def load_manifest(store: ObjectStore, uri: str) -> ShardManifest:
    """Read a manifest from storage. Raises: StorageError, ShardError."""
    return parse_manifest(store.read_bytes(uri), where=uri)


# The manifests of all work units joined into the one of a data set.

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
