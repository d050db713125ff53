"""Storage URIs: taking them apart and putting them together, always as plain strings.

`s3://bucket/key` is literal: what follows the bucket is the key, spaces and all. `file:///path` may
be percent-encoded, as browsers and pathlib write it, or plain; a percent sign in a name that we
list comes out as `%25`, so that every listed URI opens the file it was listed for.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from iceaggr.errors import StorageError

FILE_SCHEME = "file://"
S3_SCHEME = "s3://"


def file_path(uri: str) -> Path:
    """Turn a `file:///...` URI into an absolute path. Raises: StorageError."""
    path = uri.removeprefix(FILE_SCHEME).removeprefix("localhost")
    if not uri.startswith(FILE_SCHEME) or not path.startswith("/"):
        raise bad_uri(uri)
    decoded = unquote(path)
    if "\0" in decoded:
        raise bad_uri(uri)
    return Path(decoded)


def file_uri(path: Path) -> str:
    """Turn a path into a readable `file:///...` URI: only percent signs are encoded."""
    return FILE_SCHEME + str(path.absolute()).replace("%", "%25")


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key`; the key of a bare bucket is empty. Raises: StorageError."""
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not uri.startswith(S3_SCHEME) or not bucket:
        raise bad_uri(uri)
    return bucket, key


def below(prefix_uri: str, name: str) -> str:
    """Append a relative name to a prefix, with exactly one slash between."""
    return f"{prefix_uri.rstrip('/')}/{name}"


def bad_uri(uri: str) -> StorageError:
    """Explain what a storage URI looks like."""
    return StorageError(
        "not a storage URI",
        where=uri or "URI",
        found=repr(uri),
        expected="file:///absolute/path or s3://bucket/key",
        remedy=f"Write file://{uri}" if uri.startswith("/") else "Give the URI with its scheme",
    )
