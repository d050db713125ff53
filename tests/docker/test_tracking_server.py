"""The tracking server of the `standalone` overlay, as its manifest starts it, on PostgreSQL."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from iceaggr.local_services.processes import choose_ports
from tests.manifests.rendering import find, render

pytestmark = [pytest.mark.slow, pytest.mark.integration]

PASSWORD = "0123456789abcdef"
CLIENT = """
import json, pathlib, time, urllib.error, urllib.request, mlflow
url = "http://127.0.0.1:%d"
for _ in range(240):
    try:
        if urllib.request.urlopen(url + "/health", timeout=2).status == 200:
            break
    except OSError:
        time.sleep(0.5)
else:
    raise SystemExit("the server does not answer")
mlflow.set_tracking_uri(url)
mlflow.set_experiment("image-test")
with mlflow.start_run() as run:
    mlflow.log_metric("opening_angle_deg", 12.5)
    mlflow.log_text("hello", "report.txt")
kept = mlflow.artifacts.load_text(run.info.artifact_uri + "/report.txt")
found = mlflow.search_runs(experiment_names=["image-test"], output_format="list")
pathlib.Path("/tmp/found.json").write_text(
    json.dumps([kept, [run.data.metrics for run in found]])
)
"""


@contextmanager
def postgresql():
    """Run PostgreSQL as an ordinary user, which it insists on; gives its port."""
    program = shutil.which("postgres")
    if program is None:
        pytest.skip("PostgreSQL is not installed")
    # not below pytest's own folder, which is private to this user
    port = choose_ports({"postgresql": 0})["postgresql"]
    with tempfile.TemporaryDirectory() as name:
        yield from _run_postgresql(Path(program).resolve().parent, Path(name), port)


def _run_postgresql(programs: Path, folder: Path, port: int):
    (folder / "password").write_text(PASSWORD)
    as_user = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = folder / "data"
    init = [programs / "initdb", "-D", data, "-U", "mlflow", f"--pwfile={folder / 'password'}"]
    made = subprocess.run(
        [*as_user, *init, "--auth=scram-sha-256"], check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    server = [programs / "postgres", "-D", data, "-p", str(port), "-k", folder]
    process = subprocess.Popen([*as_user, *server], stderr=subprocess.DEVNULL)
    try:
        connection = ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
        deadline = time.monotonic() + 60
        while subprocess.run([programs / "pg_isready", *connection], check=False).returncode:
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.2)
        create = [programs / "createdb", *connection, "mlflow"]
        subprocess.run(create, check=True, env=os.environ | {"PGPASSWORD": PASSWORD})
        yield port
    finally:
        process.terminate()
        process.wait(30)


def test_tracking_server_keeps_runs_in_postgresql_and_artifacts_in_the_store(
    run_in_image, object_store_service, tmp_path_factory
):
    server = find(render("standalone"), "Deployment", "mlflow")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    port = choose_ports({"mlflow": 0})["mlflow"]
    command = " ".join([*container["command"], *container["args"]])
    command = command.replace("--port=5000", f"--port={port}")
    assert "'" not in command
    scratch = tmp_path_factory.mktemp("scratch")
    (scratch / "client.py").write_text(CLIENT % port)
    script = f"set -f; {command} >/tmp/log 2>&1 & python3 /tmp/client.py; rc=$?; kill $!; exit $rc"
    environment = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    environment |= {
        name: value for name, value in object_store_service.env.items() if name.startswith("AWS_")
    }
    with postgresql() as database_port:
        environment["MLFLOW_BACKEND_STORE_URI"] = (
            environment["MLFLOW_BACKEND_STORE_URI"]
            .replace("$(DATABASE_PASSWORD)", PASSWORD)
            .replace("mlflow-database:5432", f"127.0.0.1:{database_port}")
        )
        done = run_in_image(["sh", "-c", script], scratch, environment)
    log = scratch / "log"
    assert done.returncode == 0, done.stderr[-2000:] + log.read_text()[-3000:]
    assert PASSWORD not in command, "arguments are for everybody to see"
    assert PASSWORD not in log.read_text()
    assert json.loads((scratch / "found.json").read_text()) == [
        "hello",
        [{"opening_angle_deg": 12.5}],
    ]
