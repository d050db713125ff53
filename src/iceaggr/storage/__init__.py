"""Object storage by URI: `file:///folder/name` on a laptop, `s3://bucket/key` on a cluster.

`open_store()` reads its settings from the environment, the same names as every AWS tool:
AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.
On a cluster `iceaggr.service_settings` fills those that are not set.
ICEAGGR_ALLOWED_URIS limits it to the buckets and folders that it names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from iceaggr.interfaces import Content, StoredObject
from iceaggr.storage.file_store import FileStore
from iceaggr.storage.s3_store import S3Store
from iceaggr.storage.uris import (
    ALLOWED_URIS_VARIABLE,
    FILE_SCHEME,
    S3_SCHEME,
    AllowedPlaces,
    bad_uri,
)

__all__ = ["UriStore", "open_folder", "open_store"]


class UriStore:
    """ObjectStore over `file://` and `s3://`; safe to share between threads.

    Its methods are those of `iceaggr.interfaces.ObjectStore`.
    Pickled, it carries no settings and no secrets: the process that unpickles it opens its own
    from its own environment. After a fork it connects anew. Where ICEAGGR_ALLOWED_URIS is set,
    every method refuses a URI outside those places.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._given_environment = environment is not None
        settings = os.environ if environment is None else environment
        self._allowed = AllowedPlaces(settings.get(ALLOWED_URIS_VARIABLE, ""))
        self._files = FileStore()
        self._s3 = S3Store(settings)

    def __reduce__(self) -> tuple[Callable[[], UriStore], tuple[()]]:
        if self._given_environment:
            raise TypeError("a store opened with explicit settings would pickle its secrets")
        return (open_store, ())

    def _backend(self, uri: str) -> FileStore | S3Store:
        if not uri.startswith((FILE_SCHEME, S3_SCHEME)):
            raise bad_uri(uri)
        self._allowed.check(uri)
        return self._files if uri.startswith(FILE_SCHEME) else self._s3

    def list(self, prefix_uri: str) -> list[StoredObject]:
        return self._backend(prefix_uri).list(prefix_uri)

    def stat(self, uri: str) -> StoredObject | None:
        return self._backend(uri).stat(uri)

    def read_bytes(self, uri: str, compare_tag: bool = True) -> bytes:
        return self._backend(uri).read_bytes(uri, compare_tag)

    def write_bytes(self, uri: str, data: Content) -> None:
        self._backend(uri).write_bytes(uri, data)

    def write_bytes_if_absent(self, uri: str, data: bytes) -> bool:
        return self._backend(uri).write_bytes_if_absent(uri, data)

    def open_input(self, uri: str) -> BinaryIO:
        return self._backend(uri).open_input(uri)

    def upload(self, path: Path, uri: str) -> None:
        self._backend(uri).upload(Path(path), uri)

    def download(self, uri: str, path: Path) -> None:
        self._backend(uri).download(uri, Path(path))

    def delete(self, uri: str) -> None:
        self._backend(uri).delete(uri)

    def ensure_bucket(self, uri: str) -> None:
        """Create the bucket of an `s3://` URI, or the folder of a `file://` URI, if absent."""
        self._backend(uri).ensure_bucket(uri)


def open_store(environment: Mapping[str, str] | None = None) -> UriStore:
    """Open storage with the settings of the environment, or of another mapping of such names.

    Nothing connects before the first use. Raises: StorageError if ICEAGGR_ALLOWED_URIS is no list
    of storage URIs.
    """
    return UriStore(environment)


def open_folder(folder: Path) -> UriStore:
    """Open storage that is one local folder, made by this process or named by its user.

    ICEAGGR_ALLOWED_URIS speaks of what documents name, so such a folder need not be among it.
    """
    return UriStore({ALLOWED_URIS_VARIABLE: folder.resolve().as_uri()})
