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

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from iceaggr.errors import ConfigError, StorageError
from iceaggr.paths import WorkPaths
from iceaggr.service_settings import without_credentials

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
    """Refuse blanks that came with a copied line; inside a key a blank is allowed."""
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


# Which places storage may touch: those of ICEAGGR_ALLOWED_URIS, or all of them.
#
# Plans, manifests and pointers come from a bucket and name URIs. What they name is read and written
# with the rights of the step, so a deployment says once which buckets and folders that may be.

ALLOWED_URIS_VARIABLE = "ICEAGGR_ALLOWED_URIS"


class AllowedPlaces:
    """Buckets, folders in buckets and local folders that may be read and written.

    setting: URIs separated by commas or spaces, such as `s3://iceaggr,file:///data`; empty = all.
    A scheme without a URI in the setting is closed, also for the folder of temporary files, which
    other users can write to: a process opens what it fetched with `open_folder`. Links are followed
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


# Raw events are never written to: results lie in other places.

_RAW_FOLDERS = ("train", "test")


def refuse_work_among_raw(raw_uri: str, work_uri: str, where: str) -> None:
    """Refuse a work folder of which a part would lie among the raw events.

    Side by side is fine, and so is a work folder that holds the raw folder beside its own.
    where: option or parameter that names the work folder.
    Raises: ConfigError; StorageError if a URI names no place.
    """
    for place_uri in (work_uri, *WorkPaths(work_uri).folders()):
        refuse_among_raw(raw_uri, place_uri, where)


def refuse_among_raw(raw_uri: str, place_uri: str, where: str) -> None:
    """Refuse to write to the raw folder or anywhere below it.

    where: option or parameter that names the place.
    Raises: ConfigError; StorageError if a URI names no place.
    """
    if lies_within(place_uri, raw_uri):
        raise ConfigError(
            "results would be written among the raw events",
            where=where,
            found=f"{without_credentials(place_uri)} in {without_credentials(raw_uri)}",
            expected="a place outside the raw folder",
            remedy="Raw events are never written to: give another place",
        )


def lies_within(uri: str, folder_uri: str) -> bool:
    """Tell whether a place is a folder or lies below it, whatever way leads there.

    Links are followed, also one that stands in the place of the raw folder's train/ or test/. Keys
    of objects are compared part by part: some stores take `a//b` and `a/./b` for `a/b`.
    Raises: StorageError if a URI names no place.
    """
    if uri.startswith(S3_SCHEME) and folder_uri.startswith(S3_SCHEME):
        parts, folder_parts = _s3_parts(uri), _s3_parts(folder_uri)
        return parts[: len(folder_parts)] == folder_parts
    if uri.startswith(FILE_SCHEME) and folder_uri.startswith(FILE_SCHEME):
        place, folder = file_path(uri), file_path(folder_uri)
        return any(_lies_in(place, f) for f in (folder, *(folder / n for n in _RAW_FOLDERS)))
    return False


def _s3_parts(uri: str) -> list[str]:
    bucket, key = bucket_and_key(uri)
    return [bucket, *(part for part in key.split("/") if part not in ("", "."))]


def _lies_in(place: Path, folder: Path) -> bool:
    real, real_folder = (Path(os.path.realpath(path)) for path in (place, folder))
    return any(_is_same(path, real_folder) for path in (real, *real.parents))


def _is_same(path: Path, folder: Path) -> bool:
    """Compare the names, then the folders: a mount can show one folder under two names."""
    if path == folder:
        return True
    with suppress(OSError):  # of a name that nothing has yet
        return path.samefile(folder)
    return False
