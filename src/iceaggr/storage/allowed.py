"""Which places storage may touch: those of ICEAGGR_ALLOWED_URIS, or all of them.

Plans, manifests and pointers come from a bucket and name URIs. What they name is read and written
with the rights of the step, so a deployment says once which buckets and folders that may be.
"""

from __future__ import annotations

import os
from pathlib import Path

from iceaggr.errors import StorageError
from iceaggr.storage.uris import FILE_SCHEME, S3_SCHEME, bad_uri, bucket_and_key, file_path

ALLOWED_URIS_VARIABLE = "ICEAGGR_ALLOWED_URIS"


class AllowedPlaces:
    """Buckets, folders in buckets and local folders that may be read and written.

    setting: URIs separated by commas or spaces, such as `s3://iceaggr,file:///data`; empty = all.
    A scheme that no URI has is closed, the folder for temporary files included: it is everybody's.
    What a process fetched into a folder of its own it opens with `open_folder`. Links are followed
    before local folders are compared.
    Raises: StorageError if the setting holds anything but storage URIs, or none of them although
    it is not empty.
    """

    def __init__(self, setting: str) -> None:
        self._uris = tuple(setting.replace(",", " ").split())
        if setting and not self._uris:
            raise StorageError(
                "no place is allowed",
                where=ALLOWED_URIS_VARIABLE,
                found=repr(setting),
                expected="storage URIs, or nothing at all where every place is allowed",
                remedy="Look at what should have filled in the buckets",
            )
        self._buckets = tuple(bucket_and_key(u) for u in self._uris if u.startswith(S3_SCHEME))
        folders = [file_path(uri) for uri in self._uris if uri.startswith(FILE_SCHEME)]
        self._folders = tuple(folder.resolve() for folder in folders)
        for uri in self._uris:
            if not uri.startswith((S3_SCHEME, FILE_SCHEME)):
                raise bad_uri(uri, where=ALLOWED_URIS_VARIABLE)

    def check(self, uri: str) -> None:
        """Let an allowed URI pass. Raises: StorageError."""
        if self._uris and not self._holds(uri):
            raise StorageError(
                "URI outside the places that are allowed",
                where=uri,
                found=uri,
                expected=f"a URI below {', '.join(self._uris)}",
                remedy=f"Correct the URI, or add its bucket or folder to {ALLOWED_URIS_VARIABLE}",
            )

    def _holds(self, uri: str) -> bool:
        if uri.startswith(S3_SCHEME):
            bucket, key = bucket_and_key(uri)
            return any(bucket == b and _is_below(key, folder) for b, folder in self._buckets)
        path = Path(os.path.realpath(file_path(uri)))
        return any(path.is_relative_to(folder) for folder in self._folders)


def _is_below(key: str, folder: str) -> bool:
    folder = folder.rstrip("/")
    return not folder or key.rstrip("/") == folder or key.startswith(f"{folder}/")
