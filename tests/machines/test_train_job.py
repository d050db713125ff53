from dataclasses import replace

import jsonschema
import pytest

from iceaggr.errors import ConfigError
from iceaggr.machines.supervision import torchrun_command
from iceaggr.machines.train_job import Machines, TrainJobOrder, build_train_job, job_name
from iceaggr.service_settings import environment_references
from tests.machines.kubernetes_stand_in import check_job

RUN_ID = "3f2a9c1e-0b7d-4a55-9f0e-2c1d3e4f5a6b"


def order(**changes):
    machines = {"n_nodes": 2, "n_gpus": 4, "gpu_type": "nvidia.com/gpu"}
    machines |= {"cpu": "16", "memory": "64Gi", **changes}
    return TrainJobOrder(
        run_id=RUN_ID,
        image="registry/iceaggr@sha256:0",
        command=torchrun_command("python3", "s3://b/request.json", None),
        machines=Machines(**machines),
        deadline_s=3600,
        environment={"PLAIN": "value", **environment_references()},
        owner=("launcher", "uid-1"),
    )


def test_build_train_job_is_one_that_trainer_accepts():
    check_job(build_train_job(order()))


@pytest.mark.parametrize(
    "breach",
    [
        {"memory": "64 GB"},
        {"n_gpus": 0, "cpu": "many"},
        {"n_nodes": 2**31},
    ],
)
def test_check_job_refuses_what_the_api_server_would(breach):
    with pytest.raises(
        jsonschema.ValidationError, match=r"does not match|is greater than the maximum"
    ):
        check_job(build_train_job(order(**breach)))


def test_build_train_job_describes_the_machines():
    spec = build_train_job(order())["spec"]
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    wanted = {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}
    assert trainer["resourcesPerNode"] == {"requests": wanted, "limits": wanted}
    assert spec["activeDeadlineSeconds"] == 3600
    assert "runtimePatches" not in spec


def test_build_train_job_asks_for_no_gpu_on_machines_without():
    trainer = build_train_job(order(n_gpus=0))["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 1
    assert set(trainer["resourcesPerNode"]["limits"]) == {"cpu", "memory"}


def test_build_train_job_places_the_pods():
    tolerations = [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 300.0}]
    job = build_train_job(order(node_selector={"pool": "gpu"}, tolerations=tolerations))
    check_job(job)
    replicated = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    (node,) = replicated["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    # KFP makes floats of the numbers inside a list; Kubernetes wants whole seconds
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 300}]


def test_build_train_job_gives_the_pods_the_account_of_their_launcher():
    job = build_train_job(replace(order(), service_account="iceaggr-runner"))
    check_job(job)
    replicated = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    pod = replicated["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod == {"serviceAccountName": "iceaggr-runner"}


def test_build_train_job_refers_to_secrets_and_holds_none():
    environment = {v["name"]: v for v in build_train_job(order())["spec"]["trainer"]["env"]}
    assert environment["PLAIN"]["value"] == "value"
    secret = environment["ICEAGGR_OBJECT_STORE_SECRET_ACCESS_KEY"]
    assert "value" not in secret
    assert secret["valueFrom"]["secretKeyRef"]["name"] == "iceaggr-object-store"
    assert environment["ICEAGGR_TRACKING_URI"]["valueFrom"]["configMapKeyRef"]["optional"] is True


def test_build_train_job_belongs_to_the_pod_that_launched_it():
    (owner,) = build_train_job(order())["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", "launcher", "uid-1")


def test_build_train_job_refuses_a_toleration_that_is_none():
    with pytest.raises(ConfigError, match="machines cannot be described so"):
        build_train_job(order(tolerations=[{"key": 3}]))


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        (RUN_ID, f"iceaggr-{RUN_ID}"),
        ("Run_7", "iceaggr-run-7"),
        ("x" * 80, "iceaggr-" + "x" * 36),
        ("a" * 35 + "-b", "iceaggr-" + "a" * 35),
    ],
)
def test_job_name_is_a_kubernetes_name(run_id, name):
    assert job_name(run_id) == name


def test_torchrun_command_is_the_same_here_and_on_machines_but_for_the_meeting_point():
    here = torchrun_command("python3", "uri", 2)
    there = torchrun_command("python3", "uri", None)
    assert [word for word in here if word not in there] == ["--standalone", "--nproc-per-node=2"]
    assert [word for word in there if word not in here] == []
