"""Reading what has a known hash: what arrives damaged is read again before it is called damaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

from iceaggr.interfaces import ObjectStore

logger = logging.getLogger(__name__)

N_READS = 3
"""Damage on the way strikes at random, so a third equal mishap means the stored object itself."""


def sha256_of(data: bytes) -> str:
    """Hash content: 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def read_verified(
    store: ObjectStore, uri: str, expected: str, hash_of: Callable[[bytes], str] = sha256_of
) -> tuple[bytes, str]:
    """Read an object, up to three times until its hash is the expected one.

    Returns the content read last and its hash: the caller words the error.
    Raises: StorageError.
    """
    for n_read in range(1, N_READS + 1):
        data = store.read_bytes(uri, compare_tag=False)
        found = hash_of(data)
        if found == expected:
            break
        if n_read < N_READS:
            logger.warning("%s has hash %s, not %s: reading it again", uri, found, expected)
    return data, found
