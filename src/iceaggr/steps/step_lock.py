"""One step at a time in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iceaggr.errors import ConfigError

LOCK_FILE = "step.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)

log = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep the steps of other processes out of a folder.

    The operating system holds the lock and gives it up with the process, however that ends; the
    empty file stays. A record lock, unlike flock, is not inherited by forked children, which may
    outlive a killed step.
    Raises: ConfigError if another process works in the folder.
    """
    with (folder / LOCK_FILE).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                raise _taken(folder) from None
            log.warning("%s cannot be locked (%s): give one step at a time", folder, error.strerror)
        yield


def _taken(folder: Path) -> ConfigError:
    return ConfigError(
        "another step works in this folder",
        where=str(folder),
        found=f"{LOCK_FILE} held by another process",
        expected="one step at a time",
        remedy="Wait until it has ended, or give another --folder",
    )
