"""Storage URIs: taking them apart and putting them together, always as plain strings.

`s3://bucket/key` is literal: what follows the bucket is the key, spaces and all. `file:///path` may
be percent-encoded, as browsers and pathlib write it, or plain; a percent sign in a name that we
list comes out as `%25`, so that every listed URI opens the file it was listed for.

A key has no backslash and no `.` as a folder: SeaweedFS answers such a name with an error of its
own, and MinIO with `XMinioInvalidObjectName`.

A URI never climbs: with `..` in it, a name from a list, a plan or a manifest could leave its
folder, and some stores resolve it behind their access policies.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from iceaggr.addresses import without_credentials
from iceaggr.errors import StorageError

FILE_SCHEME = "file://"
S3_SCHEME = "s3://"


def check_place(uri: str, where: str) -> None:
    """Let a storage URI pass before it is written down anywhere.

    where: option or parameter that gave it.
    Raises: StorageError if it names no place or may hold a secret, which is not quoted.
    """
    _refuse_blanks_around(uri, where)
    if uri.startswith(S3_SCHEME):
        bucket_and_key(uri, where)
    else:
        file_path(uri, where)


def file_path(uri: str, where: str = "") -> Path:
    """Turn a `file:///...` URI into an absolute path. Raises: StorageError."""
    path = uri.removeprefix(FILE_SCHEME).removeprefix("localhost")
    if not uri.startswith(FILE_SCHEME) or not path.startswith("/"):
        raise bad_uri(uri, where)
    decoded = unquote(path)
    if "\0" in decoded:
        raise bad_uri(uri, where)
    _refuse_climbing(uri, decoded)
    return Path(decoded)


def file_uri(path: Path) -> str:
    """Turn a path, links resolved, into a readable `file:///...` URI: only `%` is encoded."""
    return FILE_SCHEME + str(path.resolve()).replace("%", "%25")


def bucket_and_key(uri: str, where: str = "") -> tuple[str, str]:
    """Split `s3://bucket/key`; the key of a bare bucket is empty.

    Raises: StorageError, also if keys or a signature stand in the URI.
    """
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not uri.startswith(S3_SCHEME) or not bucket:
        raise bad_uri(uri, where)
    _refuse_secrets(uri, where)
    _refuse_blanks_around(uri, where)
    _refuse_climbing(uri, f"{bucket}/{key}")
    _refuse_what_stores_change(uri, f"{bucket}/{key}", where)
    return bucket, key


def below(prefix_uri: str, name: str) -> str:
    """Append a relative name to a prefix, with exactly one slash between."""
    return f"{prefix_uri.rstrip('/')}/{name}"


def inside(folder: Path, name: str) -> Path:
    """Join a local folder and a relative name that came from outside.

    Raises: StorageError if the name is absolute or climbs out of the folder.
    """
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise StorageError(
            "name leaves its folder",
            where=str(folder),
            found=repr(name),
            expected="a relative name without '..'",
            remedy="Remove what has this name: nothing of ours makes such names",
        )
    return folder / path


def _refuse_climbing(uri: str, path: str) -> None:
    if ".." in path.split("/"):
        raise StorageError(
            "URI climbs out of its folder",
            where=uri,
            found="'..' in the path",
            expected="a path without '..'",
            remedy="Write the folder that is meant",
        )


def _refuse_blanks_around(uri: str, where: str) -> None:
    """Refuse what a copied line brings along; inside a key a blank is a letter like others."""
    if uri != uri.strip():
        raise StorageError(
            "blank around a storage URI",
            where=where or uri.strip(),
            found=repr(without_credentials(uri)),
            expected="no blank or line break before or after it",
            remedy="Take it away: it would be part of the name",
        )


def _refuse_what_stores_change(uri: str, path: str, where: str) -> None:
    """Refuse names that some stores refuse and others change into another name."""
    if "\\" in path or "." in path.split("/"):
        raise StorageError(
            "not a name for every object store",
            where=where or uri,
            found=repr("\\" if "\\" in path else "./"),
            expected="a key without backslashes and without '.' as a folder",
            remedy="Write folders with / between them, and the object under that name",
        )


def _refuse_secrets(uri: str, where: str) -> None:
    masked = without_credentials(uri)
    if masked != uri:
        raise StorageError(
            "storage URI holds a user, a password or a token",
            where=where or masked,
            found=repr(masked),
            expected="s3://bucket/key",
            remedy="Give the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )


def bad_uri(uri: str, where: str = "") -> StorageError:
    """Explain what a storage URI looks like; a secret in it is not quoted."""
    masked = without_credentials(uri)
    if masked == uri and "@" in uri and not uri.startswith(("/", FILE_SCHEME)):
        masked = f"***@{uri.rpartition('@')[2]}"
    return StorageError(
        "not a storage URI",
        where=where or masked or "URI",
        found=repr(masked),
        expected="file:///absolute/path or s3://bucket/key",
        remedy=f"Write file://{uri}" if uri.startswith("/") else "Give the URI with its scheme",
    )
