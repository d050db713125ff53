"""Object storage on a file system: atomic writes, no half files, even after a crash."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from iceaggr.errors import StorageError
from iceaggr.interfaces import Content, StoredObject, pieces_of
from iceaggr.storage.uris import below, file_path

PARTIAL_PREFIX = ".iceaggr-partial-"
_COPY_BYTES = 8 << 20
_CREATION_ATTEMPTS = 100


class FileStore:
    """ObjectStore over `file:///...`.

    The etag is size and modification time in nanoseconds: it names the content as long as nobody
    rewrites a file in place with the same length and sets its time back. Reading all bytes to
    hash them would cost a pass over the data; shards carry their own hash besides.
    """

    def list(self, prefix_uri: str) -> list[StoredObject]:
        """List all files inside a folder, at any depth; unfinished writes are not listed."""
        root = file_path(prefix_uri)
        with as_storage_error(prefix_uri, "cannot list"):
            found = [
                described
                for path in _walk(root, seen=set())
                if (described := _describe(_uri_below(prefix_uri, root, path), path))
            ]
        return sorted(found, key=lambda entry: entry.uri)

    def stat(self, uri: str) -> StoredObject | None:
        with as_storage_error(uri, "cannot look up"):
            return _describe(uri, file_path(uri))

    def read_bytes(self, uri: str, compare_tag: bool = True) -> bytes:
        """Read a whole file; its tag does not depend on its content, so none is compared.

        Raises: StorageError if it is missing, no regular file, or shrinks while being read.
        """
        with as_storage_error(uri, "cannot read"), _open_regular(uri, file_path(uri)) as file:
            n_bytes = os.fstat(file.fileno()).st_size
            data = file.read()
        if len(data) != n_bytes:
            raise StorageError(
                "file changed while it was read",
                where=uri,
                found=f"{len(data)} bytes",
                expected=f"{n_bytes} bytes",
                remedy="Wait until its writer has finished, then try again",
            )
        return data

    def write_bytes(self, uri: str, data: Content) -> None:
        """Write a whole file under a temporary name, then rename it."""
        path = file_path(uri)
        with as_storage_error(uri, "cannot write"), partial_file(path) as partial:
            with partial.open("wb") as file:
                file.writelines(pieces_of(data))
            replace_durably(partial, path)

    def write_bytes_if_absent(self, uri: str, data: bytes) -> bool:
        """Write only if nothing is there: a hard link fails when the name is taken."""
        path = file_path(uri)
        with as_storage_error(uri, "cannot write"), partial_file(path) as partial:
            if path.exists():
                return False
            partial.write_bytes(data)
            _flush(partial)
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            _flush_folder(path.parent)
            return True

    def open_input(self, uri: str) -> BinaryIO:
        with as_storage_error(uri, "cannot read"):
            return _open_regular(uri, file_path(uri))

    def upload(self, path: Path, uri: str) -> None:
        _copy(path, file_path(uri), where=uri)

    def download(self, uri: str, path: Path) -> None:
        _copy(file_path(uri), path, where=uri)

    def delete(self, uri: str) -> None:
        """Delete one file, and its folder if that is empty now: objects have no folders."""
        path = file_path(uri)
        with as_storage_error(uri, "cannot delete"):
            path.unlink(missing_ok=True)
        # not empty, a mount, a link, or of another owner: then it stays
        with suppress(OSError):
            path.parent.rmdir()

    def ensure_bucket(self, uri: str) -> None:
        with as_storage_error(uri, "cannot create folder"):
            file_path(uri).mkdir(parents=True, exist_ok=True)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Offer a temporary name beside `path`, removed again unless it was renamed."""
    partial = path.parent / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"
    _create(partial)
    try:
        yield partial
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def replace_durably(partial: Path, path: Path) -> None:
    """Give a finished temporary file its name: contents first on disk, then the name."""
    _flush(partial)
    os.replace(partial, path)
    _flush_folder(path.parent)


def _create(partial: Path) -> None:
    """Create an empty file; from then on no `delete` can remove its folder."""
    for is_last in (*[False] * _CREATION_ATTEMPTS, True):
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.touch(exist_ok=False)
            return
        # another process removed the folder in between: pathlib tells it in one of two ways
        except (FileNotFoundError, FileExistsError):
            if is_last:
                raise


def _flush_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):  # another process deleted the file already
        _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path, where: str) -> None:
    with (
        as_storage_error(where, f"cannot copy {source} to {target}"),
        _open_regular(where, source) as reader,
        partial_file(target) as partial,
    ):
        with partial.open("wb") as writer:
            shutil.copyfileobj(reader, writer, _COPY_BYTES)
        replace_durably(partial, target)


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(real):  # a link back up would never end
        return
    seen.add(real)
    # a folder may go while others are listed: then it is empty
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(folder / entry.name, seen)
            elif not entry.name.startswith(PARTIAL_PREFIX):
                yield folder / entry.name


def _uri_below(prefix_uri: str, root: Path, path: Path) -> str:
    return below(prefix_uri, str(path.relative_to(root)).replace("%", "%25"))


def _describe(uri: str, path: Path) -> StoredObject | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise _no_file(uri, "a link that leads nowhere") from None
        return None
    # told by one look: a file that was deleted since is no device
    found = irregular(status.st_mode)
    if not found:
        return StoredObject(uri, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
    if not stat.S_ISDIR(status.st_mode):
        raise _no_file(uri, found)
    return None


def irregular(mode: int) -> str:
    """Say what stands in the place of a file, '' for a regular file. mode: of its status."""
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"


def _open_regular(uri: str, path: Path) -> BinaryIO:
    """Open a file; a pipe is refused without waiting for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if found := irregular(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(uri, found)
    return os.fdopen(descriptor, "rb")


def _no_file(uri: str, found: str) -> StorageError:
    """Refuse what stands in the place of a file: silence would hide that the file is missing."""
    return StorageError(
        "not a file",
        where=uri,
        found=found,
        expected="a regular file, or nothing",
        remedy="Mend or remove it",
    )


@contextmanager
def as_storage_error(uri: str, failed: str) -> Iterator[None]:
    """Tell the operating system's errors as StorageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            "file not found",
            where=uri,
            found=f"nothing at {error.filename}",
            expected="a file",
            remedy="Check the path, and that the step that writes it has run",
        ) from None
    except OSError as error:
        raise StorageError(
            failed,
            where=uri,
            found=error.strerror or str(error),
            expected="a file system that lets this user do so",
            remedy="Check permissions, free space and what else has this name",
        ) from error
