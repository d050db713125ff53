"""What must outlive the process that started the services: ports, processes, credentials."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iceaggr.errors import ServiceError
from iceaggr.local_services.processes import ServiceProcess

_UNTIL_UNUSED = "until_unused"


class ServiceState:
    """Small JSON files in the state folder, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ports(self) -> dict[str, int]:
        """Read the ports of the last start, {} before the first."""
        return self._load("ports.json")

    def save_ports(self, ports: Mapping[str, int]) -> None:
        """Remember the ports, to take the same next time."""
        self._save("ports.json", dict(ports))

    def processes(self) -> dict[str, ServiceProcess]:
        """Read which processes were started and not yet stopped, in order."""
        return {name: ServiceProcess(**entry) for name, entry in self._load("pids.json").items()}

    def save_processes(self, processes: Mapping[str, ServiceProcess]) -> None:
        """Remember the processes, so that somebody else can stop them."""
        self._save("pids.json", {name: asdict(process) for name, process in processes.items()})

    def credentials(self) -> tuple[str, str]:
        """Read the access key and the secret key, made at random when first asked for."""
        found = self._load("credentials.json")
        if not found:
            found = {"access_key": f"iceaggr{secrets.token_hex(6)}", "secret_key": _new_secret()}
            self._save("credentials.json", found)
        return found["access_key"], found["secret_key"]

    def until_unused(self) -> bool:
        """Tell whether the services are to stop with the last block that uses them."""
        return (self._folder / _UNTIL_UNUSED).exists()

    def set_until_unused(self, wanted: bool) -> None:
        """Say whether the services are to stop with the last block that uses them."""
        if wanted:
            (self._folder / _UNTIL_UNUSED).touch()
        else:
            (self._folder / _UNTIL_UNUSED).unlink(missing_ok=True)

    def _load(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise ServiceError(
                "state of the local services is not readable",
                where=str(path),
                found=str(error),
                expected="the JSON of the last start",
                remedy="Stop the services' processes and delete this file",
            ) from None

    def _save(self, name: str, document: Mapping[str, Any]) -> None:
        write_private(self._folder / name, json.dumps(document, indent=1))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time start or stop the services of a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Use:
    """That a block uses the services of a folder, which other blocks and processes can see.

    The kernel takes it back with the process, however that ends.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = (folder / "in_use").open("w", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    @contextmanager
    def ending(self) -> Iterator[bool]:
        """End it after the block; gives whether it was the last: then nobody begins meanwhile."""
        with self._file:
            try:
                # of two that end at once the second is the last: the first has let go by then
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _new_secret() -> str:
    return secrets.token_urlsafe(30)
