"""A seekable file over ranged reads: only what is asked for crosses the network."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

READ_AHEAD_BYTES = 256 << 10


class RangedReader(io.RawIOBase):
    """Binary file of known size whose bytes come from `fetch(first, n_bytes)`.

    Small reads share one request of READ_AHEAD_BYTES; a read near the end takes the whole tail,
    because readers of Parquet and Arrow look there first. Every read returns all bytes asked for
    unless the file ends, so no caller meets a short read. One thread at a time.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], n_bytes: int, name: str) -> None:
        self.name = name
        self._fetch = fetch
        self._n_bytes = n_bytes
        self._position = 0
        self._first_kept = 0
        self._kept = b""

    def readable(self) -> bool:
        """Say yes: this is an input."""
        return True

    def seekable(self) -> bool:
        """Say yes: seeking costs nothing."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, without transferring anything."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._n_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"seek before the start of {self.name}: {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer, or what the file still has."""
        target = memoryview(buffer).cast("B")
        data = self._bytes_at(self._position, len(target))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read from the position to the end in one request."""
        data = bytes(self._bytes_at(self._position, self._n_bytes - self._position))
        self._position += len(data)
        return data

    def _bytes_at(self, first: int, n_wanted: int) -> memoryview:
        n_wanted = min(n_wanted, self._n_bytes - first)
        if n_wanted <= 0:
            return memoryview(b"")
        kept_from = first - self._first_kept
        if kept_from < 0 or kept_from + n_wanted > len(self._kept):
            if n_wanted >= READ_AHEAD_BYTES:
                return memoryview(self._fetch(first, n_wanted))
            self._first_kept = min(first, max(0, self._n_bytes - READ_AHEAD_BYTES))
            n_ahead = min(READ_AHEAD_BYTES, self._n_bytes - self._first_kept)
            self._kept = self._fetch(self._first_kept, n_ahead)
            kept_from = first - self._first_kept
        return memoryview(self._kept)[kept_from : kept_from + n_wanted]
