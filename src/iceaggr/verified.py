"""Reading what has a known hash: what arrives damaged is read again before it is called damaged."""

from __future__ import annotations

import hashlib
import logging

from iceaggr.interfaces import ObjectStore

logger = logging.getLogger(__name__)

N_READS = 3
"""Damage on the way strikes at random, so a third equal mishap means the stored object itself."""


def read_verified(store: ObjectStore, uri: str, sha256: str) -> tuple[bytes, str]:
    """Read an object, up to three times until its hash is the expected one.

    sha256: 64 hex digits.  Returns the content read last and its hash: the caller words the error.
    Raises: StorageError.
    """
    for n_read in range(1, N_READS + 1):
        data = store.read_bytes(uri)
        found = hashlib.sha256(data).hexdigest()
        if found == sha256:
            break
        if n_read < N_READS:
            logger.warning("%s has sha256 %s, not %s: reading it again", uri, found, sha256)
    return data, found
