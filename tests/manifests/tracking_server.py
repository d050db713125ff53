"""The tracking server of the `standalone` overlay on this machine, on a file for a database."""

import os
import sys
from contextlib import contextmanager

from iceaggr.local_services.processes import LOOPBACK, choose_ports, start_process
from tests.manifests.rendering import find, render
from tests.manifests.waiting import wait_until_well


@contextmanager
def tracking_server(folder, store_environment):
    """Run the manifest's command with its variables; gives the address."""
    server = find(render("standalone"), "Deployment", "mlflow")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    port = choose_ports({"mlflow": 0})["mlflow"]
    arguments = [a.replace("0.0.0.0", LOOPBACK) for a in container["args"]]
    arguments = [
        a.replace("=5000", f"={port}").replace("workers=2", "workers=1") for a in arguments
    ]
    plain = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    plain["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{folder}/mlflow.sqlite"
    command = [sys.executable, "-m", *container["command"], *arguments]
    log = folder / "mlflow.log"
    process = start_process("mlflow", command, log, {**os.environ, **plain, **store_environment})
    url = f"http://{LOOPBACK}:{port}"
    try:
        wait_until_well(process, f"{url}/health", log, within_s=300)
        yield url
    finally:
        process.stop(5.0)
