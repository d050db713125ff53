"""The folder that the steps of one run share when they are run by hand."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from iceaggr.config import ExperimentConfig, parse_config
from iceaggr.errors import ConfigError, as_machine_error
from iceaggr.paths import MANIFEST, NORMALIZATION
from iceaggr.service_settings import TRACKING_VARIABLE, tracking_server
from iceaggr.steps.context import RunContext, make_context
from iceaggr.steps.documents import read_document
from iceaggr.storage.file_store import FileStore, irregular
from iceaggr.storage.uris import check_place, file_uri, refuse_among_raw, refuse_work_among_raw
from iceaggr.validation import flattened, shown

# What a run was asked for when it began in a folder, and how another request differs.


class RunSettings(BaseModel):
    """What the first step was asked, and the identity of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="settings of a run")

    run_id: str = Field(min_length=1)
    experiment_name: str
    raw_uri: str
    work_uri: str
    config: dict[str, Any]

    def check_same(self, asked: RunSettings, path: Path) -> None:
        """Let a request pass that asks for the same as the run in this file; ids may differ.

        Fields of the configuration that are newer than the run have their default there.
        Raises: ConfigError naming every setting that differs.
        """
        here, there = self._named(str(path)), asked._named("configuration")
        differing = [name for name in there if here.get(name) != there[name]]
        if differing:
            raise ConfigError(
                "folder holds a run of other settings",
                where=str(path),
                found=_list(here, differing),
                expected=_list(there, differing),
                remedy="Give another --folder; with the settings of the run, it goes on",
            )

    def _named(self, where: str) -> dict[str, Any]:
        """Name every setting, those of the configuration `section.field`."""
        config = parse_config(self.config, where=where).model_dump(mode="json")
        return {
            "raw_uri": self.raw_uri,
            "work_uri": self.work_uri,
            "experiment_name": self.experiment_name,
            **flattened(config),
        }


def _list(settings: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {shown(settings.get(name))}" for name in names)


# One step at a time in a run's folder.

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
                raise ConfigError(
                    "another step works in this folder",
                    where=str(folder),
                    found=f"{LOCK_FILE} held by another process",
                    expected="one step at a time",
                    remedy="Wait until it has ended, or give another --folder",
                ) from None
            log.warning("%s cannot be locked (%s): give one step at a time", folder, error.strerror)
        yield


def _open_lock(path: Path) -> BinaryIO:
    """Open the lock file and create it if needed; a pipe is refused without waiting."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        told = as_machine_error(error)
        if told is None or error.errno == errno.EISDIR:
            raise _no_lock(path, error.strerror or str(error)) from None
        raise told from None
    if found := irregular(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _no_lock(path, found)
    return file


def _no_lock(path: Path, found: str) -> ConfigError:
    return ConfigError(
        "folder cannot be locked for one step at a time",
        where=str(path),
        found=found,
        expected="a regular file, or nothing",
        remedy="Remove what has this name, and run the step again",
    )


_SETTINGS = "run.json"
_UNITS = "units"


class RunFolder:
    """Paths of the documents that each step leaves for the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / MANIFEST
        self.normalization = path / NORMALIZATION
        self.data_card = path / "data_card.html"
        self.learning_table = path / "learning_check.html"
        self.model = path / "model.json"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.html"
        self.summary = path / "summary.json"
        self.verdict = path / "verdict.md"

    @staticmethod
    def create(
        path: Path,
        raw_uri: str,
        work_uri: str,
        experiment_name: str,
        config: ExperimentConfig,
    ) -> RunFolder:
        """Start a run in a new folder, or go on with the same run in its own.

        Raises: ConfigError if the folder holds a run of other settings, or documents of no run, or
        results would lie among the raw events; StorageError if a URI names no place or holds a
        secret. Both come before anything is written.
        """
        path = path.resolve()
        settings = RunSettings(
            run_id=str(uuid.uuid4()),
            experiment_name=experiment_name,
            raw_uri=raw_uri.rstrip("/"),
            work_uri=work_uri.rstrip("/") or (path / "work").as_uri(),
            config=config.model_dump(mode="json"),
        )
        run = RunFolder(path)
        check_place(settings.raw_uri, "raw_uri")
        check_place(settings.work_uri, "work_uri")
        for folder in (path, path / _UNITS):
            refuse_among_raw(settings.raw_uri, file_uri(folder), "--folder")
        refuse_work_among_raw(settings.raw_uri, settings.work_uri, "work_uri")
        run._refuse_foreign_documents()
        run._make()
        document = settings.model_dump_json(indent=1).encode()
        # of two that begin here at once, one is first
        if not FileStore().write_bytes_if_absent(file_uri(path / _SETTINGS), document):
            run._settings().check_same(settings, path / _SETTINGS)
        return run

    def _refuse_foreign_documents(self) -> None:
        """Refuse a folder without a run in which a file has the name of a document of ours."""
        # os.path: a name that no file can have is told when the folder is made
        if os.path.exists(self.path / _SETTINGS):
            return
        for path in vars(self).values():
            if path != self.path and os.path.exists(path):
                raise ConfigError(
                    "folder holds documents of no run",
                    where=f"--folder {self.path}",
                    found=f"{path.name} without {_SETTINGS}",
                    expected="a new folder, or that of a run",
                    remedy="Give another --folder, or move that file away",
                )

    def _make(self) -> None:
        try:
            (self.path / _UNITS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "folder of the run cannot be made",
                where=f"--folder {self.path}",
                found=f"{error.strerror}: {error.filename}",
                expected="a folder, or the name of a new one, where this user may write",
                remedy="Give another --folder",
            ) from None

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Open a run that `iceaggr shard` started. Raises: ConfigError if there is none."""
        path = path.resolve()
        obstacle = _no_settings(path / _SETTINGS)
        if obstacle:
            raise ConfigError(
                "folder holds no run",
                where=str(path),
                found=obstacle,
                expected="a folder of `iceaggr shard`",
                remedy="Start with `iceaggr shard`",
            )
        return RunFolder(path)

    @contextmanager
    def alone(self) -> Iterator[RunFolder]:
        """Work in the folder for the time of one step. Raises: ConfigError if another step does."""
        with alone_in(self.path):
            yield self

    def context(self) -> RunContext:
        """Build the context of the steps; without a tracking server nothing is tracked."""
        settings = self._settings()
        tracked = bool(tracking_server())
        if not tracked:
            print(f"{TRACKING_VARIABLE} is not set: metrics are printed, not tracked", flush=True)
        return make_context(
            settings.run_id,
            settings.experiment_name,
            settings.work_uri,
            settings.config,
            tracked=tracked,
        )

    @property
    def raw_uri(self) -> str:
        """Give the folder of the raw events."""
        return self._settings().raw_uri

    def _settings(self) -> RunSettings:
        return read_document(RunSettings, self.path / _SETTINGS)

    def unit_manifest(self, index: int) -> Path:
        """Name the manifest of one work unit."""
        return self.path / _UNITS / f"{index:05d}.json"

    def unit_manifests(self) -> list[Path]:
        """List the manifests of all work units."""
        return sorted((self.path / _UNITS).glob("*.json"))

    def forget_units(self) -> None:
        """Remove the manifests of all work units, and what was merged from them.

        Raises: OSError.
        """
        for path in (*self.unit_manifests(), self.manifest, self.normalization):
            path.unlink(missing_ok=True)


def _no_settings(path: Path) -> str:
    """Say why there is no file to read, '' if there is one."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else f"{path.name} that is no regular file"
    except PermissionError as error:
        return f"{path.name}: {error.strerror}"
    except OSError:  # none there, or a name that none can have
        return f"no {path.name}"
