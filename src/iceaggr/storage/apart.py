"""Raw events are never written to: results lie in other places."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from iceaggr.addresses import without_credentials
from iceaggr.errors import ConfigError
from iceaggr.storage.uris import FILE_SCHEME, S3_SCHEME, below, bucket_and_key, file_path

WORK_FOLDERS = ("plans", "shards", "datasets", "runs", "unfinished_runs")
"""What the steps write below a work folder."""
_RAW_FOLDERS = ("train", "test")


def refuse_work_among_raw(raw_uri: str, work_uri: str, where: str) -> None:
    """Refuse a work folder of which a part would lie among the raw events.

    Side by side is fine, and so is a work folder that holds the raw folder beside its own.
    where: option or parameter that names the work folder.
    Raises: ConfigError; StorageError if a URI names no place.
    """
    for place_uri in (work_uri, *(below(work_uri, name) for name in WORK_FOLDERS)):
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
        return any(_is_below(place, f) for f in (folder, *(folder / n for n in _RAW_FOLDERS)))
    return False


def _s3_parts(uri: str) -> list[str]:
    bucket, key = bucket_and_key(uri)
    return [bucket, *(part for part in key.split("/") if part not in ("", "."))]


def _is_below(place: Path, folder: Path) -> bool:
    real, real_folder = (Path(os.path.realpath(path)) for path in (place, folder))
    return any(_is_same(path, real_folder) for path in (real, *real.parents))


def _is_same(path: Path, folder: Path) -> bool:
    """Compare names, and what they name: a mount can show one folder under two."""
    if path == folder:
        return True
    with suppress(OSError):  # of a name that nothing has yet
        return path.samefile(folder)
    return False
