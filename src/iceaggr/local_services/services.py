"""Starts and stops the local services; their state lives in a folder, so any process can do it."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iceaggr.errors import ServiceError, StorageError
from iceaggr.local_services import environment, object_store
from iceaggr.local_services.ports import LOOPBACK, choose_ports
from iceaggr.local_services.processes import died, log_tail, start_process
from iceaggr.local_services.state import ServiceState, Use, locked, write_private
from iceaggr.storage import open_store

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
        ports = choose_ports({**object_store.PORTS, "mlflow": _MLFLOW_PORT, **before})
        access_key, secret_key = self._state.credentials()
        write_private(
            self.folder / "s3_identities.json", object_store.s3_identities(access_key, secret_key)
        )
        self._state.save_ports(ports)
        addresses = self._addresses()
        try:
            command = object_store.object_store_command(self.folder, ports)
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
        grace = {STORE: object_store.GRACE_S, TRACKING: _MLFLOW_GRACE_S}
        for name, process in reversed(self._state.processes().items()):
            process.stop(grace[name])
        self._state.save_processes({})
        if ports := self._state.ports():
            object_store.remove_sockets(ports)

    def _lost_a_port(self) -> bool:
        """Tell whether somebody took a port between our looking and the service's binding."""
        logs = [self._log(name) for name in (STORE, TRACKING)]
        told = [log.read_text(errors="replace", encoding="utf-8") for log in logs if log.exists()]
        return any("address already in use" in text for text in told)

    def _mlflow_command(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.sqlite'}"),
            *("--artifacts-destination", "s3://mlflow/"),
            *("--host", LOOPBACK, "--port", str(port), "--workers", "1"),
        ]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.log"

    def _addresses(self) -> ServiceAddresses:
        ports = self._state.ports()
        access_key, secret_key = self._state.credentials()
        s3_endpoint = f"http://{LOOPBACK}:{ports['s3']}"
        mlflow_uri = f"http://{LOOPBACK}:{ports['mlflow']}"
        env = environment.client_settings(s3_endpoint, mlflow_uri, access_key, secret_key)
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
        for bucket in object_store.BUCKETS:
            store.ensure_bucket(f"s3://{bucket}")
        store.write_bytes(f"s3://{object_store.BUCKETS[0]}/.ready", b"1")
    except StorageError:
        return False
    return True
