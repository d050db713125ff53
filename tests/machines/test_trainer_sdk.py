"""Kubeflow's own SDK reads, follows and ends our TrainJob, and would write the same object.

`pip install -e ".[sdk]"` brings it; `make test-all` does.
"""

import copy
import json

import pytest
from kubernetes import client

from iceaggr.machines.job_api import JobApi
from iceaggr.machines.train_job import RUN_LABEL, RUNTIME, build_train_job
from tests.machines.kubernetes_stand_in import JOBS, PODS, KubernetesStandIn
from tests.machines.test_train_job import order
from tests.manifests.rendering import find, render
from tests.stand_in import Answer, HttpError, Request

pytest.importorskip("kubeflow.trainer", reason='needs the SDK: pip install -e ".[sdk]"')

from kubeflow.trainer import (
    CustomTrainerContainer,
    KubernetesBackendConfig,
    TrainerClient,
    options,
)

RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"
NAME = order().name
PLACED = {"node_selector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}


class SdkStandIn(KubernetesStandIn):
    """What the SDK asks besides: the runtime that our manifests install, pods with their labels."""

    def answer(self, request: Request) -> Answer:
        if request.path == f"{RUNTIMES}/{RUNTIME}":
            return Answer.of(
                find(render("existing", trainer=True), "ClusterTrainingRuntime", RUNTIME)
            )
        if request.path == PODS:
            return Answer.of({"kind": "PodList", "apiVersion": "v1", "items": self.pods})
        if request.path.endswith("/log"):
            lines = self.logs[request.path.split("/")[-2]]
            return Answer(parts=tuple(f"{line}\n".encode() for line in lines))
        if request.path == JOBS and request.method == "POST":
            job = json.loads(request.body)
            self.jobs[job["metadata"]["name"]] = job
            return Answer.of(job, 201)
        if "configmaps" in request.path:
            raise HttpError(404, "which version Trainer has is not public here")
        return super().answer(request)


@pytest.fixture
def server():
    with SdkStandIn() as running:
        yield running


@pytest.fixture
def settings(server):
    made = client.Configuration()
    made.host = server.url
    return made


@pytest.fixture
def sdk(settings):
    return TrainerClient(KubernetesBackendConfig(namespace="runs", client_configuration=settings))


@pytest.fixture
def our_job(server, settings):
    """A job that our launcher created, with one pod."""
    # the stand-in of our own tests checks what it is given
    KubernetesStandIn._create(server, build_train_job(order()))
    server.add_pod("node-0-0-abcde", "Running", ["epoch 1", "done"])
    server.pods[0]["metadata"]["labels"] = {
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    return JobApi(client.ApiClient(settings), "runs")


def test_sdk_reads_our_job_and_its_runtime(sdk, our_job):
    found = sdk.get_job(NAME)
    assert (found.name, found.num_nodes, found.status) == (NAME, 2, "Created")
    assert (found.runtime.name, found.runtime.trainer.framework) == (RUNTIME, "torch")
    assert [(step.name, step.status) for step in found.steps] == [("node-0", "Running")]


def test_sdk_follows_the_log_of_our_job(sdk, our_job):
    assert list(sdk.get_job_logs(NAME, follow=True)) == ["epoch 1", "done"]


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_sdk_sees_the_end_of_our_job(sdk, our_job, server, end):
    server.end(NAME, end)
    ended = sdk.wait_for_job_status(NAME, {"Complete", "Failed"}, timeout=4, polling_interval=1)
    assert ended.status == end


def test_sdk_deletes_our_job(sdk, our_job, server):
    sdk.delete_job(NAME)
    assert our_job.get(NAME) is None


def train_with_the_sdk(sdk, asked):
    """Ask the SDK for the same training, as far as it can be asked."""
    machines = asked.machines
    pod = options.PodSpecPatch(
        node_selector=machines.node_selector, tolerations=machines.tolerations
    )
    template = options.JobTemplatePatch(
        spec=options.JobSpecPatch(template=options.PodTemplatePatch(spec=pod))
    )
    job_set = options.JobSetSpecPatch(
        replicated_jobs=[options.ReplicatedJobPatch(name="node", template=template)]
    )
    patch = options.TrainingRuntimeSpecPatch(template=options.JobSetTemplatePatch(spec=job_set))
    return sdk.train(
        runtime=RUNTIME,
        trainer=CustomTrainerContainer(
            image=asked.image,
            num_nodes=machines.n_nodes,
            resources_per_node={
                "cpu": machines.cpu,
                "memory": machines.memory,
                machines.gpu_type: str(machines.n_gpus),
            },
            env={"PLAIN": "value"},
        ),
        options=[
            options.Name(asked.name),
            options.Labels({RUN_LABEL: asked.name[8:]}),
            options.TrainerCommand(asked.command),
            options.ActiveDeadlineSeconds(asked.deadline_s),
            options.RuntimePatch(patch),
        ],
    )


def test_sdk_would_send_our_job_but_for_what_it_cannot_say(sdk, server):
    asked = order(**PLACED)
    train_with_the_sdk(sdk, asked)
    theirs, ours = server.jobs[NAME], copy.deepcopy(build_train_job(asked))
    # variables whose values lie in secrets: the SDK takes plain values only
    trainer = ours["spec"]["trainer"]
    by_reference = [v for v in trainer["env"] if "valueFrom" in v]
    assert len(by_reference) > 5
    trainer["env"] = [v for v in trainer["env"] if "value" in v]
    # processes per machine, which the SDK leaves to the runtime
    assert trainer.pop("numProcPerNode") == 4
    # the pod that takes the job along when it is deleted
    assert ours["metadata"].pop("ownerReferences")
    # who patches
    for job in (ours, theirs):
        assert job["spec"]["runtimePatches"][0].pop("manager")
    assert theirs == ours
