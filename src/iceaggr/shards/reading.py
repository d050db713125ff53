"""Reading shards, never without comparing them with what their manifest says."""

from __future__ import annotations

import logging

from iceaggr.detector import Detector
from iceaggr.errors import DetectorError, ShardError
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.layout import load_detector
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.encoding import decode_shard, shard_hash
from iceaggr.shards.manifest import ShardEntry, ShardManifest
from iceaggr.validation import read_verified


def read_shard(store: ObjectStore, entry: ShardEntry) -> DomEvents:
    """Read one shard from storage and verify its hash and counts.

    Raises: StorageError if it is missing, ShardError if it is still not what the manifest says
    when it is read again.
    """
    data, found_hash = read_shard_bytes(store, entry)
    return verified_shard(data, entry, found_hash)


def read_shard_bytes(store: ObjectStore, entry: ShardEntry) -> tuple[bytes, str]:
    """Read the bytes of a shard, again if they are damaged; gives the last ones and their hash.

    Raises: StorageError.
    """
    return read_verified(store, entry.uri, entry.blake3, shard_hash)


def verified_shard(data: bytes, entry: ShardEntry, found_hash: str = "") -> DomEvents:
    """Decode the bytes of a shard, from storage or a local copy.

    found_hash: of these bytes, where the caller has computed it.
    Raises: ShardError if they are not what the manifest says.
    """
    found_hash = found_hash or shard_hash(data)
    if len(data) != entry.n_bytes or found_hash != entry.blake3:
        given = f"{len(data)} bytes, blake3 {found_hash}"
        raise _differs(entry, given, f"{entry.n_bytes} bytes, {entry.blake3}")
    events = decode_shard(data, entry.uri)
    found = (events.n_events, events.n_doms, events.n_pulses)
    expected = (entry.n_events, entry.n_doms, entry.n_pulses)
    if found != expected:
        raise _differs(entry, f"events, DOMs, pulses {found}", f"{expected}")
    return events


def _differs(entry: ShardEntry, found: str, expected: str) -> ShardError:
    return ShardError(
        "shard differs from its manifest",
        where=entry.uri,
        found=found,
        expected=expected,
        remedy="Delete its folder and run sharding again; it rewrites what is missing",
    )


# The detector that a manifest's events were sharded with, and no other.

log = logging.getLogger(__name__)


def load_recorded_detector(store: ObjectStore, manifest: ShardManifest) -> Detector:
    """Load the sensor table of a manifest and compare it with the digest that sharding recorded.

    Raises: DetectorError if the geometry is another one by now, or broken; StorageError.
    """
    detector = load_detector(store, manifest.geometry_uri)
    if manifest.detector_digest is None:
        log.warning(
            "the manifest is of a version that does not say with which geometry its events were"
            " sharded: %s is taken as it is. Shard again to have it compared; shards are reused",
            manifest.geometry_uri,
        )
    elif detector.digest() != manifest.detector_digest:
        raise DetectorError(
            "geometry changed after the events were sharded",
            where=manifest.geometry_uri,
            found=f"{detector.n_sensors} sensors of digest {detector.digest()[:16]}",
            expected=f"digest {manifest.detector_digest[:16]}, as the manifest says",
            remedy="Bring the geometry of before back, or shard again (`iceaggr shard`,"
            " plan_shards) and train on the new shards",
        )
    return detector
