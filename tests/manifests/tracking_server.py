"""The tracking server of the `standalone` overlay on this machine, on a file for a database."""

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from iceaggr.local_services.processes import start_process
from tests.manifests.rendering import find, render


@contextmanager
def tracking_server(folder, store_environment):
    """Run the manifest's command with its variables; gives the address."""
    server = find(render("standalone"), "Deployment", "mlflow")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    arguments = [a.replace("0.0.0.0", "127.0.0.1") for a in container["args"]]
    arguments = [
        a.replace("=5000", f"={port}").replace("workers=2", "workers=1") for a in arguments
    ]
    plain = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    plain["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{folder}/mlflow.sqlite"
    command = [sys.executable, "-m", *container["command"], *arguments]
    log = folder / "mlflow.log"
    process = start_process("mlflow", command, log, {**os.environ, **plain, **store_environment})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _is_well(f"{url}/health"):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.3)
        yield url
    finally:
        process.stop(5.0)


def _is_well(url):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
