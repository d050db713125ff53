"""Taking the body of an answer: all of it, in time, and compared with its tag where that is a hash.

S3 does not protect a body on its way beyond what TCP and TLS do. But the tag (ETag) of an object
that was written in one request is the MD5 of its content at most services, so a whole read can be
compared with it. Objects encrypted with keys of KMS or of the client and those written in parts
have tags of another kind, and some services make up all their tags. So a tag counts as a hash only
once one of its bucket has been right; before that, content that arrives twice alike is taken.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from botocore.exceptions import IncompleteReadError, ResponseStreamingError
from urllib3.exceptions import HTTPError

SLOWEST_BYTES_PER_S = 16 << 10
"""A body that comes slower than this for longer than PATIENCE_S is asked for again."""
PATIENCE_S = 60.0
_CHUNK_BYTES = 1 << 20
_MD5 = re.compile(r"[0-9a-f]{32}")


class BadBodyError(ConnectionError):
    """The body came too slowly, or is not what its tag says; the next try may be better."""


def read_body(answer: Mapping[str, Any]) -> bytes:
    """Read the whole body of an answer.

    Raises: IncompleteReadError, ResponseStreamingError; BadBodyError if it merely trickles.
    """
    n_expected = int(answer["ContentLength"])
    latest = time.monotonic() + PATIENCE_S + n_expected / SLOWEST_BYTES_PER_S
    chunks, n_read = [], 0
    with closing(answer["Body"]) as body:  # not the body itself: that enters its raw stream
        # read() would wait for all bytes asked for, and each one that comes resets its time-out
        stream = body._raw_stream
        try:
            while chunk := stream.read1(_CHUNK_BYTES):
                chunks.append(chunk)
                n_read += len(chunk)
                if time.monotonic() > latest:
                    raise BadBodyError(
                        f"{n_read} of {n_expected} bytes came in"
                        f" {PATIENCE_S + n_expected / SLOWEST_BYTES_PER_S:.0f} s"
                    )
        except HTTPError as error:
            raise ResponseStreamingError(error=error) from error
    if n_read != n_expected:
        raise IncompleteReadError(actual_bytes=n_read, expected_bytes=n_expected)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class TagChecks:
    """Compares whole contents with their tags; shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashed_buckets: set[str] = set()
        self._doubtful: dict[tuple[str, str], str] = {}

    def check(self, where: tuple[str, str], answer: Mapping[str, Any], md5: str) -> None:
        """Accept the content of an object by its MD5, in hex. where: bucket and key.

        Raises: BadBodyError if the tag is a hash, but of something else.
        """
        tag = str(answer.get("ETag", "")).strip('"')
        if not _MD5.fullmatch(tag) or _is_encrypted(answer):
            return
        with self._lock:
            before = self._doubtful.pop(where, "")
            if md5 == tag:
                self._hashed_buckets.add(where[0])
                return
            if where[0] not in self._hashed_buckets and before == md5:
                return
            self._doubtful[where] = md5
        raise BadBodyError(f"content of MD5 {md5} came under the tag {tag}")


def md5_of(data: bytes) -> str:
    """Hash content as a tag does: 32 hex digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _is_encrypted(answer: Mapping[str, Any]) -> bool:
    return "kms" in str(answer.get("ServerSideEncryption", "")) or bool(
        answer.get("SSECustomerAlgorithm")
    )
