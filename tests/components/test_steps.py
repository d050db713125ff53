"""The launching step as KFP calls it, against a stand-in Kubernetes whose job really trains."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from kubernetes import client

from components.steps import train_on_machines
from iceaggr.errors import ConfigError
from iceaggr.local_services.processes import choose_ports
from iceaggr.machines.job_api import JobApi
from iceaggr.steps import context
from tests.machines.kubernetes_stand_in import KubernetesStandIn
from tests.training.small_runs import small_config, small_inputs


class Metrics:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log_metric(self, name: str, value: float) -> None:
        self.values[name] = value


@pytest.fixture
def server(monkeypatch):
    with KubernetesStandIn() as running:
        settings = client.Configuration()
        settings.host = running.url
        api = JobApi(client.ApiClient(settings), "runs")
        monkeypatch.setattr(JobApi, "of_this_pod", staticmethod(lambda: api))
        yield running


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """What KFP hands to the step, numbers in lists as floats."""
    inputs = small_inputs(tmp_path / "data", small_config())
    (tmp_path / "manifest").write_text(inputs.manifest.to_json())
    (tmp_path / "normalization").write_text(inputs.normalization.to_json())
    monkeypatch.setenv("KFP_POD_NAME", "launcher")
    monkeypatch.setenv("KFP_POD_UID", "uid-1")
    # untracked: tracking has tests of its own
    monkeypatch.setattr(
        "iceaggr.steps.context.make_context", partial(context.make_context, tracked=False)
    )
    return {
        "manifest": SimpleNamespace(path=str(tmp_path / "manifest")),
        "normalization": SimpleNamespace(path=str(tmp_path / "normalization")),
        "work_uri": (tmp_path / "work").as_uri(),
        "experiment_name": "x",
        "run_id": "run-1",
        "config": inputs.config.model_dump(mode="json"),
        "max_train_minutes": 0.0,
        "start_from": "configured",
        "run_name": "two nodes",
        "n_nodes": "2",
        "gpu_count": "0",
        "gpu_type": "nvidia.com/gpu",
        "cpu": "4",
        "memory": "8Gi",
        "node_selector": {"pool": "train"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 60.0}],
        "image": "registry/iceaggr@sha256:0",
        "model": SimpleNamespace(path=str(tmp_path / "model.json"), metadata={}),
        "metrics": Metrics(),
    }


def play_trainer(server):
    """Do what Trainer does with a job: run its command on every node, here on one machine."""
    while not server.created:
        time.sleep(0.05)
    job = server.created[0]
    trainer = job["spec"]["trainer"]
    n = trainer["numNodes"]
    meeting = {"PET_NNODES": str(n), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
    port = choose_ports({"meeting": 0})["meeting"]
    meeting |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    nodes = [
        subprocess.Popen(
            [sys.executable, *trainer["command"][1:]],
            env={**os.environ, **meeting, "PET_NODE_RANK": str(rank)},
        )
        for rank in range(n)
    ]
    codes = [node.wait(500) for node in nodes]
    server.end(job["metadata"]["name"], "Failed" if any(codes) else "Complete", str(codes))


def test_train_on_machines_trains_on_two_nodes_and_hands_the_model_on(server, arguments):
    trainer = threading.Thread(target=play_trainer, args=(server,), daemon=True)
    trainer.start()
    train_on_machines.python_func(**arguments)
    trainer.join()
    (job,) = server.created
    assert job["spec"]["trainer"]["image"] == "registry/iceaggr@sha256:0"
    assert job["metadata"]["ownerReferences"][0]["name"] == "launcher"
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    pod = patch["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    # with workload identity the keys come with the account of the steps
    assert pod["serviceAccountName"] == "iceaggr-runner"
    assert arguments["model"].metadata["model_uri"].endswith("/runs/run-1/training/model")
    assert arguments["metrics"].values["n_steps"] > 0


def test_train_on_machines_refuses_one_node(server, arguments):
    with pytest.raises(ConfigError, match=r"bad number .train_nodes.*whole number from 2"):
        train_on_machines.python_func(**{**arguments, "n_nodes": "1"})
    assert server.requests == []
