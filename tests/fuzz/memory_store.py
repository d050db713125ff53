"""An object store in a dictionary: the fuzzer reads it a thousand times a second."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

from iceaggr.errors import StorageError
from iceaggr.interfaces import Content, StoredObject, pieces_of


class MemoryStore:
    """ObjectStore whose objects live in this process; the tag is a hash of the content."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})

    def list(self, prefix_uri: str) -> list[StoredObject]:
        prefix = prefix_uri.rstrip("/") + "/"
        return [self._describe(uri) for uri in sorted(self.objects) if uri.startswith(prefix)]

    def stat(self, uri: str) -> StoredObject | None:
        return self._describe(uri) if uri in self.objects else None

    def read_bytes(self, uri: str, compare_tag: bool = True) -> bytes:
        if uri not in self.objects:
            raise StorageError("object not found", where=uri)
        return self.objects[uri]

    def write_bytes(self, uri: str, data: Content) -> None:
        self.objects[uri] = b"".join(pieces_of(data))

    def write_bytes_if_absent(self, uri: str, data: bytes) -> bool:
        is_absent = uri not in self.objects
        self.objects.setdefault(uri, bytes(data))
        return is_absent

    def open_input(self, uri: str) -> BinaryIO:
        return io.BytesIO(self.read_bytes(uri))

    def upload(self, path: Path, uri: str) -> None:
        self.write_bytes(uri, path.read_bytes())

    def download(self, uri: str, path: Path) -> None:
        path.write_bytes(self.read_bytes(uri))

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)

    def _describe(self, uri: str) -> StoredObject:
        data = self.objects[uri]
        return StoredObject(uri, len(data), hashlib.sha256(data).hexdigest()[:32])
