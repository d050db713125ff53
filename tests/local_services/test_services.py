import os
import stat
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from iceaggr.errors import ServiceError
from iceaggr.local_services import services as object_store
from iceaggr.local_services.processes import start_process
from iceaggr.local_services.services import LocalServices, ServiceState
from iceaggr.storage import open_store


def run(verb, state):
    command = [sys.executable, "-m", "iceaggr.local_services", verb, "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.integration
def test_services_keep_their_data_over_a_restart_by_other_processes(tmp_path):
    """One life of `make up` and `make down`: started, found running, stopped, started again."""
    services = LocalServices(tmp_path)
    try:
        started = run("up", tmp_path)
        assert started.returncode == 0, started.stderr
        assert all(service.is_running for service in services.status())
        addresses = services.start()  # already running: only tells where
        assert addresses.s3_endpoint in started.stdout
        with urllib.request.urlopen(f"{addresses.mlflow_uri}/version", timeout=30) as answer:
            assert answer.status == 200
        open_store(addresses.env).write_bytes("s3://iceaggr/kept", b"data")
        _check_secrets_are_private(services.folder, addresses.env["AWS_SECRET_ACCESS_KEY"])

        pids = [process.pid for process in ServiceState(services.folder).processes().values()]
        stopped = run("down", tmp_path)
        assert stopped.returncode == 0, stopped.stderr
        assert not any(service.is_running for service in services.status())
        assert not any(_is_alive(pid) for pid in pids)

        with services as again:
            assert again.env["AWS_SECRET_ACCESS_KEY"] == addresses.env["AWS_SECRET_ACCESS_KEY"]
            assert open_store(again.env).read_bytes("s3://iceaggr/kept") == b"data"
            second = LocalServices(tmp_path)
            second.__enter__()
        # the first block ends while the second still works
        assert all(service.is_running for service in second.status())
        second.__exit__()
        assert not any(service.is_running for service in services.status())
    finally:
        services.stop()


def test_answer_of_another_server_on_the_port_is_not_taken_for_ours(tmp_path):
    """Somebody took the port between our looking and the service's binding."""
    services = LocalServices(tmp_path)
    services.folder.mkdir(parents=True)
    late = [sys.executable, "-c", "import time; time.sleep(1); exit('address already in use')"]
    process = start_process("tracking server", late, tmp_path / "log", os.environ)
    state = ServiceState(services.folder)
    state.save_processes({"tracking server": process})
    with pytest.raises(ServiceError, match="tracking server ended while it started"):
        services._await("tracking server", 5000, lambda: True, time.monotonic() + 60)


def _check_secrets_are_private(folder, secret):
    holding = [path for path in folder.iterdir() if path.is_file() and _holds(path, secret)]
    assert {path.name for path in holding} == {"credentials.json", "s3_identities.json", "env.sh"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    for process in ServiceState(folder).processes().values():
        leader = psutil.Process(process.pid)
        for member in [leader, *leader.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # what has ended shows nothing
                assert secret not in " ".join(member.cmdline())


def _holds(path: Path, secret: str) -> bool:
    return secret.encode() in path.read_bytes()


def _is_alive(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.integration
def test_context_manager_leaves_services_running_that_ran_before(local_services):
    state_folder = _state_folder_of(local_services)
    with LocalServices(state_folder) as addresses:
        assert addresses == local_services
    assert all(service.is_running for service in LocalServices(state_folder).status())


def test_block_ends_the_services_that_a_killed_process_left_behind(tmp_path, sleeping_services):
    killed = sleeping_services(tmp_path)
    killed.__enter__()
    killed._use._file.close()  # what the kernel does when the process is killed
    assert killed.all_run()
    with sleeping_services(tmp_path):
        assert killed.all_run()
    assert not killed.all_run()


def test_services_that_are_started_to_stay_outlive_the_blocks(tmp_path, sleeping_services):
    with sleeping_services(tmp_path) as first:
        assert not first.stay_up
        first.start()  # `make up` meanwhile
    assert first.stay_up
    assert first.all_run()
    first.stop()


@pytest.fixture
def sleeping_services(monkeypatch):
    """Services whose programs only sleep: who starts and stops them is all that counts."""
    started = []

    class Sleeping(LocalServices):
        def __enter__(self):
            super().__enter__()
            return self

        def _start_all(self):
            for name in ("object store", "tracking server"):
                self._launch(name, ["sleep", "60"], os.environ)

        def _addresses(self):
            return None

    def make(folder):
        started.append(Sleeping(folder))
        return started[-1]

    yield make
    for services in started:
        services.stop()


def _state_folder_of(addresses):
    port = int(addresses.s3_endpoint.rpartition(":")[2])
    for process in psutil.process_iter(["cmdline"]):
        for argument in process.info["cmdline"] or []:
            if argument.startswith("-s3.config=") and f"-s3.port={port}" in process.info["cmdline"]:
                return Path(argument.removeprefix("-s3.config=")).parent.parent
    raise AssertionError("no object store process")


def test_failed_start_tells_the_log_and_leaves_no_process(tmp_path, monkeypatch):
    script = tmp_path / "weed"
    script.write_text("#!/bin/sh\necho no space on this disk\nexit 1\n")
    script.chmod(0o700)
    monkeypatch.setattr(object_store, "_program", lambda: str(script))
    services = LocalServices(tmp_path / "state")
    with pytest.raises(ServiceError, match=r"object store ended.*no space on this disk"):
        services.start()
    assert not any(service.is_running for service in services.status())
    assert ServiceState(services.folder).processes() == {}


def test_service_that_never_answers_is_given_up(tmp_path, monkeypatch):
    script = tmp_path / "weed"
    script.write_text("#!/bin/sh\necho still thinking\nexec sleep 60\n")
    script.chmod(0o700)
    monkeypatch.setattr(object_store, "_program", lambda: str(script))
    services = LocalServices(tmp_path / "state", ready_within_s=3.0)
    with pytest.raises(ServiceError, match=r"does not answer.*still thinking.*within 3 s"):
        services.start()
    assert not any(service.is_running for service in services.status())


def test_missing_object_store_program_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match=r"not installed.*pip install 'iceaggr\[local\]'"):
        LocalServices(tmp_path / "state").start()


def test_stop_and_status_without_any_start_are_no_error(tmp_path):
    services = LocalServices(tmp_path / "never")
    services.stop()
    assert [service.is_running for service in services.status()] == [False, False]
    assert not os.path.exists(tmp_path / "never")


def test_command_line_tells_an_error_in_one_line(tmp_path):
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "pids.json").write_text("{broken")
    done = run("status", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: state of the local services is not readable")
    assert len(done.stderr.splitlines()) == 1
