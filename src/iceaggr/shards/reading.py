"""Reading shards, never without comparing them with what their manifest says."""

from __future__ import annotations

import hashlib

from iceaggr.errors import ShardError
from iceaggr.events.dom_events import DomEvents
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.encoding import decode_shard
from iceaggr.shards.manifest import ShardEntry
from iceaggr.verified import read_verified


def read_shard(store: ObjectStore, entry: ShardEntry) -> DomEvents:
    """Read one shard from storage and verify its hash and counts.

    Raises: StorageError if it is missing, ShardError if it is still not what the manifest says
    when it is read again.
    """
    return verified_shard(read_verified(store, entry.uri, entry.sha256)[0], entry)


def verified_shard(data: bytes, entry: ShardEntry) -> DomEvents:
    """Decode the bytes of a shard, from storage or a local copy. Raises: ShardError."""
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != entry.n_bytes or digest != entry.sha256:
        raise _differs(
            entry, f"{len(data)} bytes, sha256 {digest}", f"{entry.n_bytes} bytes, {entry.sha256}"
        )
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
