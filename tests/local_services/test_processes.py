import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from iceaggr.errors import ServiceError
from iceaggr.local_services.processes import ServiceProcess, log_tail, start_process

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
