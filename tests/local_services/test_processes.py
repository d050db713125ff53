import os
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from iceaggr.errors import ServiceError
from iceaggr.local_services import processes
from iceaggr.local_services.processes import (
    LOOPBACK,
    ServiceProcess,
    choose_ports,
    client_settings,
    is_free,
    log_tail,
    of_a_run,
    shell_script,
    start_process,
)
from iceaggr.local_services.services import LocalServices
from iceaggr.storage import open_store


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_wanted_port_is_kept_when_free(taken_port):
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        free = probe.getsockname()[1]
    assert choose_ports({"a": free}) == {"a": free}


def test_other_port_is_chosen_when_taken(taken_port):
    chosen = choose_ports({"a": taken_port, "b": 0})
    assert taken_port not in chosen.values()
    assert all(is_free(port) for port in chosen.values())


def test_names_get_different_ports_when_they_want_the_same(taken_port):
    chosen = choose_ports(dict.fromkeys("abcd", 0))
    assert len(set(chosen.values())) == 4


def test_no_free_port_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "is_free", lambda port: False)
    with pytest.raises(ServiceError, match=r"no free port for s3 .*: found 200 ports"):
        choose_ports({"s3": 8333})


# What a shell sets for other stores and servers does not reach ours.

FOREIGN = {
    "AWS_PROFILE": "gone",
    "AWS_SESSION_TOKEN": "of another store",
    "AWS_CA_BUNDLE": "/gone/ca.pem",
    "AWS_CONFIG_FILE": "/gone/config",
    "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9",
    "AWS_MAX_ATTEMPTS": "many",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
    "MLFLOW_RUN_ID": "0" * 32,
    "MLFLOW_TRACKING_TOKEN": "of another server",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "soon",
    "REQUESTS_CA_BUNDLE": "/gone/ca.pem",
    "SSL_CERT_FILE": "/gone/ca.pem",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "no_proxy": "example.org",
    "KFP_MLFLOW_CONFIG": "{}",
}
SETTINGS = client_settings(
    "http://127.0.0.1:1", "http://127.0.0.1:2", "key", "secret with 'quotes'"
)


def test_run_keeps_its_shell_but_for_the_settings_of_other_services():
    shell = {**FOREIGN, "PATH": "/bin", "OMP_NUM_THREADS": "1", "ICEAGGR_STATE_FOLDER": "x"}
    assert of_a_run(shell, SETTINGS) == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
        "ICEAGGR_STATE_FOLDER": "x",
        **SETTINGS,
    }


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shell_that_sources_the_settings_has_no_others(tmp_path, shell):
    (tmp_path / "env.sh").write_text(shell_script(SETTINGS), encoding="utf-8")
    done = subprocess.run(
        [shell, "-euc", ". ./env.sh; env -0"],
        cwd=tmp_path,
        env={**FOREIGN, "PATH": os.environ["PATH"], "KEPT": "two\nlines"},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert {n: v for n, v in seen.items() if n not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")} == {
        **SETTINGS,
        "KEPT": "two\nlines",
    }


@pytest.mark.integration
def test_services_work_in_a_shell_that_is_set_up_for_others(tmp_path, monkeypatch):
    (tmp_path / "boto3.py").write_text("raise ImportError('another one')", encoding="utf-8")
    for name, value in {**FOREIGN, "PYTHONPATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with LocalServices(tmp_path / "state") as addresses:
        open_store(addresses.env).write_bytes("s3://iceaggr/x", b"1")
        # the server hands what it is given on to the store
        artifact = f"{addresses.mlflow_uri}/api/2.0/mlflow-artifacts/artifacts/x"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(urllib.request.Request(artifact, b"2", method="PUT"), timeout=60).close()
        assert open_store(addresses.env).read_bytes("s3://mlflow/x") == b"2"


SLEEP = "import time; time.sleep(60)"
WITH_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); {SLEEP}"


def start(tmp_path, code):
    return start_process("helper", [sys.executable, "-u", "-c", code], tmp_path / "log", os.environ)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_stop_ends_the_children_as_well(tmp_path):
    process = start(tmp_path, WITH_CHILD)
    leader = psutil.Process(process.pid)
    wait_for(leader.children)
    (child,) = leader.children()
    process.stop(grace_s=5)
    assert not process.is_alive()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


LISTEN = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
"""


def test_port_belongs_to_the_service_that_listens_on_it(tmp_path):
    process = start(tmp_path, WITH_CHILD.replace(repr(SLEEP), repr(LISTEN + SLEEP)))
    stranger = socket.create_server(("127.0.0.1", 0))
    try:
        wait_for(lambda: log_tail(tmp_path / "log").isdigit())
        assert process.listens_on(int(log_tail(tmp_path / "log")))
        assert not process.listens_on(stranger.getsockname()[1])
    finally:
        stranger.close()
        process.stop(5)


def test_stop_kills_what_ignores_the_request(tmp_path):
    process = start(tmp_path, STUBBORN)
    wait_for(lambda: log_tail(tmp_path / "log") == "up")
    process.stop(grace_s=0.2)
    assert not process.is_alive()


def test_stop_works_from_another_process(tmp_path):
    process = start(tmp_path, SLEEP)
    code = (
        "from iceaggr.local_services.processes import ServiceProcess;"
        f"ServiceProcess('helper', {process.pid}, {process.started_at!r}).stop(5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not process.is_alive()


def test_stop_leaves_a_later_process_of_the_same_id_alone(tmp_path):
    process = start(tmp_path, SLEEP)
    try:
        earlier = ServiceProcess("helper", process.pid, process.started_at + 100.0)
        assert not earlier.is_alive()
        earlier.stop(grace_s=0.1)
        assert process.is_alive()
    finally:
        process.stop(grace_s=1)


def test_missing_program_is_named(tmp_path):
    with pytest.raises(
        ServiceError, match=r"cannot be started \[/no/such/program\]: found No such"
    ):
        start_process("helper", ["/no/such/program"], tmp_path / "log", os.environ)
