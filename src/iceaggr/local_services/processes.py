"""A service as a process group of its own, which any later process can find again and end."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from iceaggr.errors import ServiceError

# Ports on loopback: the usual ones when they are free, other ones when not.

LOOPBACK = "127.0.0.1"
# Below the range that the kernel hands to outgoing connections, which could take one meanwhile.
_SEARCHED = range(20_000, 32_000)
_MAX_TRIES = 200


def is_free(port: int) -> bool:
    """Tell whether nothing listens on a loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def choose_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Give every name its wanted port, or another free one if that is taken or 0.

    Raises: ServiceError if hardly any port is free.
    """
    chosen: dict[str, int] = {}
    for name, port in wanted.items():
        taken = set(chosen.values())
        tries = [port, *random.sample(_SEARCHED, _MAX_TRIES)]
        free = (p for p in tries if p and p not in taken and is_free(p))
        found = next(free, None)
        if found is None:
            raise ServiceError(
                f"no free port for {name}",
                where=LOOPBACK,
                found=f"{_MAX_TRIES} ports of {_SEARCHED.start}-{_SEARCHED.stop} tried",
                expected="one that nobody listens on",
                remedy="Stop the processes that hold them: see `ss -ltn`",
            )
        chosen[name] = found
    return chosen


# The environment of the local services, and of a run that uses them: stated, not inherited.
#
# What a shell sets for other stores and servers would reach ours, too: a profile that is not there,
# a session token, an endpoint, a run to go on with, a proxy, certificates. A service gets what a
# program needs to run on this machine and nothing else; a run keeps its shell without those
# settings.

# SeaweedFS reads WEED_*, its HTTP library the proxies, MLflow's server those of gunicorn and flask
_OF_THE_MACHINE = re.compile(
    r"HOME|LANG|LC_(ALL|CTYPE)|LD_LIBRARY_PATH|LOGNAME|PATH|TEMP|TMP|TMPDIR|TZ|USER"
)
# for Python and for sed
_FOREIGN = (
    r"(AWS|BOTO|KFP|_?MLFLOW)_[^=]*|(ALL|HTTPS?|NO)_PROXY|(all|https?|no)_proxy|CURL_CA_BUNDLE"
    r"|REQUESTS_CA_BUNDLE|SSL_CERT_(DIR|FILE)|DATABRICKS_(HOST|TOKEN)|NETRC"
)


def client_settings(
    s3_endpoint: str, mlflow_uri: str, access_key: str, secret_key: str
) -> dict[str, str]:
    """List all variables by which a process finds the services, and nothing else than them."""
    return {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ENDPOINT_URL_S3": s3_endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        # the files of ~/.aws speak of other stores
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "NO_PROXY": f"{LOOPBACK},localhost",
        "no_proxy": f"{LOOPBACK},localhost",
    }


def of_the_store(shell: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Make the object store's environment.

    Its users stand in a file: keys in the environment it would take for an administrator's. It
    looks for settings in its home, which is therefore our folder.
    """
    return _of_the_machine(shell) | {"HOME": str(folder)}


def of_the_server(shell: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Make the MLflow server's environment; it stores the artifacts, so it has the store's keys."""
    return _of_the_machine(shell) | {**settings, "PYTHONUTF8": "1"}


def of_a_run(shell: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a run that uses the services from that of its shell."""
    return {k: v for k, v in shell.items() if not re.fullmatch(_FOREIGN, k)} | dict(settings)


def shell_script(settings: Mapping[str, str]) -> str:
    """Write what a shell sources, any of the POSIX kind, to use the services."""
    clean = f"for name in $(env | sed -nE 's/^({_FOREIGN})=.*/\\1/p'); do unset \"$name\"; done\n"
    return clean + "".join(f"export {k}={shlex.quote(v)}\n" for k, v in settings.items())


def _of_the_machine(shell: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in shell.items() if _OF_THE_MACHINE.fullmatch(k)}


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
        """List the living processes of the group, not those of a later group with the same id."""
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
