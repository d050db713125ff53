"""The error family: every error names what, where, found, expected and remedy."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self


class IceaggrError(Exception):
    """Base of every error a user can meet; the command line prints it as one line.

    what: the thing that failed, in plain words.  where: file, URI, field or parameter.
    found, expected: the two values that disagree.  remedy: what the user should do next.
    may_pass: the same may succeed later, since nothing is wrong with what was asked
    """

    may_pass = False

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        found: object = None,
        expected: object = None,
        remedy: str = "",
    ) -> None:
        self.what = what
        self.where = where
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(self._sentence())

    def at(self, where: str) -> Self:
        """Give the same error of another place."""
        return type(self)(
            self.what,
            where=where,
            found=self.found,
            expected=self.expected,
            remedy=self.remedy,
        )

    def _sentence(self) -> str:
        parts = [self.what]
        if self.where:
            parts[0] += f" [{self.where}]"
        if self.found is not None:
            parts.append(f"found {self.found}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        sentence = ": ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else parts[0]
        return f"{sentence}. {self.remedy}" if self.remedy else f"{sentence}."


class ConfigError(IceaggrError):
    """A configuration has an unknown key, a missing value or one out of range."""


class StorageError(IceaggrError):
    """An object could not be listed, read or written."""


class RawDataError(IceaggrError):
    """Raw events are structurally damaged: the step stops, nothing is guessed."""


class DetectorError(IceaggrError):
    """A sensor table is incomplete, contradictory or of another detector."""


class ShardError(IceaggrError):
    """A shard or manifest is missing, damaged or of another format version."""


class NormalizationError(IceaggrError):
    """Inputs are not finite or badly scaled after normalisation."""


class ModelError(IceaggrError):
    """A saved model is missing, damaged or of another format."""


class TrainingError(IceaggrError):
    """Training cannot go on: divergence, no learning, or a foreign checkpoint."""


class PartnerError(TrainingError):
    """Another process of the same training failed; its own error says why."""


class EvaluationError(IceaggrError):
    """Predictions cannot be scored as asked."""


class TrackingError(IceaggrError):
    """The tracking server or model registry refused or could not be reached."""


class ServiceError(IceaggrError):
    """A local service did not start, answer or end."""


# What the machine itself refuses to a step: disk, permission, memory.
#
# Any line of any step can meet these, so they are told in one place, around the whole step.

_LOCAL_FILES = {
    errno.ENOSPC: ("the local disk is full", "Free space there"),
    errno.EDQUOT: ("the quota of the local disk is used up", "Free space there"),
    errno.EROFS: ("the local folder is read-only", "Make it writable"),
    errno.EACCES: ("no permission for the local file", "Grant it to this user"),
    errno.EPERM: ("no permission for the local file", "Grant it to this user"),
    errno.EISDIR: ("a folder has the name of the local file", "Remove it"),
    errno.ENOTDIR: ("a file has the name of the local folder", "Remove it"),
    errno.ENAMETOOLONG: ("the local file has too long a name", "Give a shorter one"),
}
_OPEN_FILES = {errno.EMFILE, errno.ENFILE}
_NO_MEMORY_WORDS = ("can't allocate memory", "out of memory", "Cannot allocate memory")
_NO_THREAD_WORDS = "can't start new thread"


class MachineError(IceaggrError):
    """Disk, permission, memory or threads are lacking; nothing is wrong with the data."""


class MemoryLackingError(MachineError):
    """Memory or threads are lacking, maybe only at this moment."""

    may_pass = True


def as_machine_error(error: BaseException) -> MachineError | None:
    """Recognise what the machine refused, None for everything else."""
    words = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and error.errno in _LOCAL_FILES:
        return _local_file_error(error, words)
    if isinstance(error, OSError) and error.errno in _OPEN_FILES:
        return MachineError(
            "too many open files",
            where="this machine",
            found=words,
            expected="room for a few hundred open files",
            remedy="Raise the limit: `ulimit -n 4096`",
        )
    no_memory = isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM
    if no_memory or (isinstance(error, RuntimeError) and _tells(words, *_NO_MEMORY_WORDS)):
        return MemoryLackingError(
            "out of memory",
            where="this machine",
            found=words or type(error).__name__,
            expected="memory for the settings of this step",
            remedy="Give the step more memory, or lower batches.n_events or n_mixed_shards",
        )
    if isinstance(error, RuntimeError) and _tells(words, _NO_THREAD_WORDS):
        return MemoryLackingError(
            "no further thread can be started",
            where="this machine",
            found=words,
            expected="a few dozen threads",
            remedy="Give the step more memory or processes: see `ulimit -a`",
        )
    return None


def _local_file_error(error: OSError, words: str) -> MachineError:
    what, remedy = _LOCAL_FILES[error.errno or 0]
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    elsewhere = ", or set TMPDIR to another folder" if _may_be_temporary(name) else ""
    return MachineError(
        what,
        where=name or "a file that the system does not name",
        # most files without a name are temporary ones, which libraries open for themselves
        found=words if name else f"{words}; temporary files go to {_temporary_folder()}",
        expected="a local folder with space that this user may write to",
        remedy=f"{remedy}{elsewhere}; then run the step again",
    )


def _may_be_temporary(name: str) -> bool:
    """Tell whether another TMPDIR could help: a file system mounted below it is another disk."""
    folder = _temporary_folder()
    if not name or not folder:
        return True
    try:
        same_disk = Path(name).parent.stat().st_dev == Path(folder).stat().st_dev
    except OSError:
        return False
    return same_disk and Path(name).is_relative_to(folder)


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # none of its candidates can be written to
        return os.environ.get("TMPDIR", "")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name this file in the block's OSError: libraries and flushes do not say which it was."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _tells(words: str, *phrases: str) -> bool:
    return any(phrase in words for phrase in phrases)
