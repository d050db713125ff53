"""One step at a time in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from iceaggr.errors import ConfigError
from iceaggr.machine_errors import as_machine_error

LOCK_FILE = "step.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)

log = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep the steps of other processes out of a folder.

    The operating system holds the lock and gives it up with the process, however that ends; the
    empty file stays. A record lock, unlike flock, is not inherited by forked children, which may
    outlive a killed step.
    Raises: ConfigError if another process works in the folder, or something else has the name of
    the lock; MachineError if this user may not write there.
    """
    with _open_lock(folder / LOCK_FILE) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise _taken(folder) from None
            log.warning("%s cannot be locked (%s): give one step at a time", folder, error.strerror)
        yield


def _open_lock(path: Path) -> BinaryIO:
    """Open the lock file, made if it is absent, without waiting for a reader were it a pipe."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        told = as_machine_error(error)
        if told is None or error.errno == errno.EISDIR:
            raise _no_lock(path, error.strerror or str(error)) from None
        raise told from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _no_lock(path, "a device, pipe or socket")
    return file


def _no_lock(path: Path, found: str) -> ConfigError:
    return ConfigError(
        "folder cannot be locked for one step at a time",
        where=str(path),
        found=found,
        expected="a regular file, or nothing",
        remedy="Remove what has this name, and run the step again",
    )


def _taken(folder: Path) -> ConfigError:
    return ConfigError(
        "another step works in this folder",
        where=str(folder),
        found=f"{LOCK_FILE} held by another process",
        expected="one step at a time",
        remedy="Wait until it has ended, or give another --folder",
    )
