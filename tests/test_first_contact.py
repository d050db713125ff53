"""The first seconds of a pod: its connections are refused, then dropped, then they work.

Each client that a pod has stands before a door that opens after 15 s; all of them at the same time.
"""

import contextlib
import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from kubernetes import client

from iceaggr.machines.job_api import JobApi
from iceaggr.machines.train_job import run_train_job, stop_train_job
from iceaggr.patience import FIRST_CONTACT_S, ask_patiently, first_contact_s
from iceaggr.storage import open_store
from iceaggr.tracking.registry import ModelRegistry
from iceaggr.tracking.run import open_tracker
from launch.kfp_api import Connection, connect
from tests.launch.kfp_stand_in import KfpStandIn
from tests.machines.kubernetes_stand_in import KubernetesStandIn
from tests.machines.test_train_job import order

DROPS_AFTER_S, OPENS_AFTER_S = 5.0, 15.0
IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


class LateDoor:
    """Refuses connections for five seconds, drops them for ten, then passes them to a server."""

    def __init__(self, target_uri):
        target = urlsplit(target_uri)
        self._target = (target.hostname, target.port)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self.opens_at = time.monotonic() + OPENS_AFTER_S
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self._socket.close()

    @property
    def is_open(self):
        return time.monotonic() >= self.opens_at

    def _work(self):
        self._over.wait(DROPS_AFTER_S)
        self._socket.listen(0)
        # a full queue: Linux drops what asks for more connections
        queue = [socket.socket() for _ in range(3)]
        for one in queue:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", self.port))
        self._over.wait(max(0.0, self.opens_at - time.monotonic()))
        for one in queue:
            one.close()
        self._socket.listen(64)
        self._socket.settimeout(0.1)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                threading.Thread(
                    target=self._pass, args=(self._socket.accept()[0],), daemon=True
                ).start()

    def _pass(self, near):
        far = socket.create_connection(self._target)
        with near, far, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            near.settimeout(None)
            other = {near: far, far: near}
            for one in other:
                ready.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    other[key.fileobj].sendall(data)


def read_object(door, services):
    environment = {**services.env, **IN_A_POD}
    store = open_store({**environment, "AWS_ENDPOINT_URL": door.url, "AWS_ENDPOINT_URL_S3": ""})
    store.write_bytes("s3://iceaggr/first/contact", b"pulses")
    assert store.read_bytes("s3://iceaggr/first/contact") == b"pulses"


def open_first_step(door, services):
    tracker = open_tracker(door.url, "first-contact", f"run-{door.port}", "run", "plan_shards")
    assert tracker.run_id
    assert tracker.finish("FINISHED", 60.0) is None


def open_later_step(door, services):
    tracker = open_tracker(
        door.url, "first-contact", f"run-{door.port}", "run", "train_model", must_answer=False
    )
    assert tracker.run_id, "it went on without a run, though the server was about to come"
    assert tracker.finish("FINISHED", 60.0) is None


def ask_registry(door, services):
    assert ModelRegistry(door.url).champion("nobody-has-this-name") is None


def ask_kubeflow(door, services):
    connect(Connection(door.url))


def kubernetes_api(door):
    return JobApi(client.ApiClient(client.Configuration(host=door.url)), "runs")


def read_own_pod(door, services):
    assert kubernetes_api(door).account_of("launcher") == "iceaggr-runner"


def launch_train_job(door, services):
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(run_train_job, kubernetes_api(door), order(), print, 0.2)
        while not door.server.created and not launched.done():
            time.sleep(0.05)
        assert door.server.created, launched.exception()
        door.server.end(order().name, "Complete")
        launched.result()


def stop_train_job_of_nobody(door, services):
    assert not stop_train_job(kubernetes_api(door), "nobody", 1.0)


CLIENTS = {
    read_object: lambda services: contextlib.nullcontext(services.s3_endpoint),
    open_first_step: lambda services: contextlib.nullcontext(services.mlflow_uri),
    open_later_step: lambda services: contextlib.nullcontext(services.mlflow_uri),
    ask_registry: lambda services: contextlib.nullcontext(services.mlflow_uri),
    ask_kubeflow: lambda services: KfpStandIn(),
    read_own_pod: lambda services: KubernetesStandIn(),
    launch_train_job: lambda services: KubernetesStandIn(),
    stop_train_job_of_nobody: lambda services: KubernetesStandIn(),
}


def contact(ask, services):
    """Let one client come to its door; gives when it was done after the door had opened."""
    with CLIENTS[ask](services) as server, LateDoor(getattr(server, "url", server)) as door:
        door.server = server
        ask(door, services)
        assert door.is_open, "nobody came through a door that was shut"
        return time.monotonic() - door.opens_at


@pytest.fixture(scope="module")
def contacts(local_services):
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(CLIENTS)) as pool:
        for name, value in IN_A_POD.items():
            patch.setenv(name, value)
        yield {ask: pool.submit(contact, ask, local_services) for ask in CLIENTS}


@pytest.mark.integration
@pytest.mark.parametrize("ask", CLIENTS, ids=lambda ask: ask.__name__)
def test_first_contact_of_a_pod_waits_for_its_network(contacts, ask):
    # a connection that was dropped is tried again by the system, after up to 15 s
    assert contacts[ask].result() < FIRST_CONTACT_S - OPENS_AFTER_S


def test_first_contact_waits_in_a_pod_only():
    assert first_contact_s(IN_A_POD) == FIRST_CONTACT_S
    assert first_contact_s({}) == 0


class AwayError(Exception):
    pass


def count_attempts(patience_s, error, longest_pause_s=0.02):
    attempts = []

    def request():
        attempts.append(time.monotonic())
        raise error

    with pytest.raises(type(error)):
        ask_patiently(
            request,
            is_away=lambda error: isinstance(error, AwayError),
            patience_s=patience_s,
            first_pause_s=0.01,
            longest_pause_s=longest_pause_s,
        )
    return attempts


def test_what_can_never_succeed_is_told_at_once():
    assert len(count_attempts(60.0, ValueError("wrong"))) == 1


def test_patience_ends_with_an_attempt_and_says_once_what_it_waits_for(caplog):
    attempts = count_attempts(0.3, AwayError("no answer from x\nsecond line"))
    assert len(attempts) > 5
    assert 0.25 < attempts[-1] - attempts[0] < 30
    assert [r.getMessage().split(";")[0] for r in caplog.records] == ["no answer from x"]


def test_without_patience_there_is_one_attempt():
    assert len(count_attempts(0.0, AwayError("away"))) == 1
