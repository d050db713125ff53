"""A service as a process group of its own, which any later process can find again and end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from iceaggr.errors import ServiceError

_LOG_TAIL_LINES = 8
_POLL_S = 0.05
_KILLED_WITHIN_S = 30.0
"""A process that the disk keeps waiting ends only when that has answered."""
_SAME_START_S = 5.0
"""Times of starting are told by the clock of the machine, which may have been set meanwhile."""


@dataclass(frozen=True)
class ServiceProcess:
    """The leader of a process group; the start time tells it from a later process of that id."""

    name: str
    pid: int
    started_at: float

    def is_alive(self) -> bool:
        """Tell whether the leader is this very process and still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < _SAME_START_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def listens_on(self, port: int) -> bool:
        """Tell whether it is this service, not somebody else's, that has a TCP port."""
        for member in self._members():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                for socket in member.net_connections(kind="tcp"):
                    if socket.status == psutil.CONN_LISTEN and socket.laddr.port == port:
                        return True
        return False

    def stop(self, grace_s: float) -> None:
        """Ask the whole group to end, and kill what is left after `grace_s` seconds.

        Raises: ServiceError if something survives even that.
        """
        members = self._members()
        for sent, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILLED_WITHIN_S)):
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(sent)
            deadline = time.monotonic() + wait_s
            while (members := self._members()) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            if not members:
                return
        raise ServiceError(
            f"{self.name} does not end",
            where=f"process group {self.pid}",
            found=f"processes {[member.pid for member in members]}",
            expected="none left after SIGKILL",
            remedy="End these processes by hand",
        )

    def _members(self) -> list[psutil.Process]:
        """List what lives of the group; a leader gone for good leaves its id to others."""
        with suppress(ChildProcessError):  # reap the leader if it is our own child
            os.waitpid(self.pid, os.WNOHANG)
        members = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                in_group = os.getpgid(process.pid) == self.pid
                not_older = process.create_time() > self.started_at - _SAME_START_S
                if in_group and not_older and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members


def start_process(
    name: str, command: list[str], log: Path, environment: Mapping[str, str]
) -> ServiceProcess:
    """Start a detached process whose output goes to a log file.

    Raises: ServiceError if the program does not exist.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=log.parent,
            start_new_session=True,
        )
    except OSError as error:
        raise ServiceError(
            f"{name} cannot be started",
            where=command[0],
            found=error.strerror,
            expected="a program that this user may run",
            remedy="Install the project again: `make setup`",
        ) from None
    finally:
        os.close(descriptor)
    child.returncode = 0  # it outlives us on purpose: Popen must not warn about that
    with suppress(psutil.NoSuchProcess):
        return ServiceProcess(name, child.pid, psutil.Process(child.pid).create_time())
    raise died(name, log)


def died(name: str, log: Path) -> ServiceError:
    """Explain a service's death with the end of its log."""
    return ServiceError(
        f"{name} ended while it started",
        where=str(log),
        found=f"at the end of its log: {log_tail(log)}",
        expected="a service that stays up",
        remedy="The log file has the rest",
    )


def log_tail(log: Path) -> str:
    """Join the last lines of a log into one."""
    lines = log.read_text(errors="replace", encoding="utf-8").splitlines() if log.exists() else []
    kept = [line.strip() for line in lines if line.strip()][-_LOG_TAIL_LINES:]
    return " | ".join(kept) or "(nothing was logged)"
