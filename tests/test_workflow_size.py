"""A run of many work units fits into the one Kubernetes object in which Argo keeps it.

The object is estimated from the compiled pipeline: the nodes that Argo makes of each unit, with the
inputs and outputs that KFP's drivers put there, packed as Argo packs them. Argo's limit is 1 MiB.

Seen on a cluster with Kubeflow Pipelines 2.17.0 and Argo 4.0.5, when each unit had the settings,
too: 82 units, 6.1 MB of nodes, 438 KB packed, 618 KB in all. For that pipeline this estimate
gives 5.6 to 6.6 MB and 324 to 362 KB, with settings of 0.6 to 1.9 KB.
"""

import base64
import gzip
import json
import random
import uuid
from pathlib import Path

import pytest
import yaml

import pipeline
from iceaggr.config import DataConfig, load_config
from iceaggr.steps.convert import MAX_CONVERSION_UNITS
from launch.submission import compile_text

LIMIT = 1 << 20
NOT_NODES = 180_000
"""Bytes of the object seen that are no nodes: specification, templates, annotations."""
SEEN_TO_ESTIMATED = 438 / 324
RUN_ID = "0b8b2a9e-9d1f-4f5e-8a43-0123456789ab"
IMAGE = "registry.example.org/physics/iceaggr@sha256:" + "0123456789abcdef" * 4
SHARD, CONVERT = "shard-events", "convert-events"
OF_CONVERSION = {"plan-conversion", CONVERT, "plan-shards-2"}
"""Steps of the branch of another layout; the run's own plan of shards stands for its second one."""


@pytest.fixture(scope="module")
def documents():
    made = pipeline.make_pipeline(cluster=True)
    return list(yaml.safe_load_all(compile_text(made, made.name).text))


def text(document):
    return json.dumps(document, separators=(",", ":"), sort_keys=True)


class Workflow:
    """The nodes of a run, by the identities that Argo hashes from their names."""

    def __init__(self, documents):
        self._graph, kubernetes = documents
        self._executors = self._graph["deploymentSpec"]["executors"]
        self._platform = kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self._random = random.Random(7)
        self.nodes = {}
        self.loop = self.loop_of(SHARD)

    def loop_of(self, step):
        """Name the loop of a step; the SDK counts them."""
        (loop,) = {
            name.removeprefix("comp-")
            for name, component in self._graph["components"].items()
            if step in component.get("dag", {}).get("tasks", {})
        }
        return loop

    def task(self, name):
        """Give a task wherever in the graph it is."""
        parts = [self._graph["root"], *self._graph["components"].values()]
        dags = [part["dag"]["tasks"] for part in parts if "dag" in part]
        return next(tasks[name] for tasks in dags if name in tasks)

    def component(self, name):
        return self._graph["components"][f"comp-{name}"]

    def tasks(self):
        return [name.removeprefix("exec-") for name in self._executors]

    def packed_bytes(self):
        plain = text(self.nodes).encode()
        return len(base64.b64encode(gzip.compress(plain)))

    def add_unit(self, index, config, n_attempts, work=SHARD):
        """Add what Argo makes of one turn of the loop."""
        name = self.loop_of(work)
        turn = f"{name}.iteration-iterations({index}:{index})"
        parent, step = {"parent-dag-id": "212"}, {"iteration-index": str(index)}
        self._add_twice(turn, "DAG", {**parent, **step})
        loop, task = self.component(name), self.task(name)
        driver = {"component": text(loop), "task": text(task), "task-name": name}
        self._add_twice(
            f"{turn}.iteration-item-driver",
            "Pod",
            {**driver, **parent, **step, "driver-type": "DAG", "runtime-config": ""},
            {"execution-id": str(index), "iteration-count": "0", "condition": "true"},
        )
        self._add_twice(f"{turn}.iteration-item", "DAG", parent)
        plan = f"s3://iceaggr/work/plans/0123456789abcdef.json#{index}:{index + 1}"
        self.add_task(work, {"config": config, "work_unit": plan}, n_attempts, turn)

    def add_task(self, name, values, n_attempts, below="direction"):
        """Add the driver of a step, the step, and each attempt at it."""
        component, executor = self.component(name), self._executors[f"exec-{name}"]
        known = component["inputDefinitions"]["parameters"]
        values = {key: values.get(key, "s3://iceaggr/work") for key in known if key != "status"}
        patch = text(self._pod(name, component, executor, values))
        driver = {
            "component": text(component),
            "task": text(self.task(name)),
            "container": text(executor["container"]),
            "kubernetes-config": text(self._platform[f"exec-{name}"]),
        }
        outputs = {"pod-spec-patch": patch, "cached-decision": "false", "condition": "true"}
        self._add_twice(f"{below}.{name}-driver", "Pod", driver, outputs)
        self._add_twice(f"{below}.{name}", "DAG", {"pod-spec-patch": patch})
        self._add(f"{below}.{name}.executor", "Retry", {"pod-spec-patch": patch})
        for attempt in range(n_attempts):
            self._add(f"{below}.{name}.executor({attempt})", "Pod", {"pod-spec-patch": patch})

    def _add_twice(self, name, kind, inputs, outputs=None):
        # KFP 2.17 sets a retry strategy for all templates: each node is below one that repeats it
        self._add(name, "Retry", inputs, outputs)
        self._add(f"{name}(0)", kind, inputs, outputs)

    def _add(self, name, kind, inputs, outputs=None):
        identity = self._identity()
        self.nodes[identity] = {
            "id": identity,
            "name": f"iceaggr-direction-x7k2p.root.exit-handler-1.{name}",
            "displayName": name.rpartition(".")[2],
            "type": kind,
            "templateName": f"system-container-{kind}",
            "templateScope": "local/iceaggr-direction-x7k2p",
            "phase": "Succeeded",
            "boundaryID": self._identity(),
            "startedAt": self._moment(),
            "finishedAt": self._moment(),
            "progress": "1/1",
            "resourcesDuration": {"cpu": self._random.randrange(9), "memory": 35},
            "inputs": _parameters(inputs),
            "outputs": _parameters(outputs or {}),
            "children": [self._identity()],
            "hostNodeName": "node-1",
        }

    def _identity(self):
        return f"iceaggr-direction-x7k2p-{self._random.randrange(1 << 32)}"

    def _moment(self):
        minute, second = self._random.randrange(60), self._random.randrange(60)
        return f"2026-11-28T10:{minute:02d}:{second:02d}Z"

    def _pod(self, name, component, executor, values):
        # Source: kubeflow/pipelines 2.17.0, backend/src/v2/driver/driver.go, initPodSpecPatch
        container = executor["container"]
        launcher = ["/kfp-launcher/launch", "--pipeline_name", "iceaggr-direction"]
        launcher += ["--run_id", RUN_ID, "--execution_id", str(self._random.randrange(999))]
        outputs = {"unit_manifest": {"artifacts": [self.artifact(name)]}}
        told = {"inputs": {"parameterValues": values}, "outputs": {"artifacts": outputs}}
        launcher += ["--executor_input", text(told), "--component_spec", text(component)]
        launcher += ["--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"]
        launcher += ["--mlmd_server_address", "metadata-grpc-service.kubeflow", "--"]
        platform = self._platform[f"exec-{name}"]
        sources = [*platform["secretAsEnv"], *platform["configMapAsEnv"]]
        names = [pair["envVar"] for source in sources for pair in source["keyToEnv"]]
        reference = {"name": "iceaggr-object-store", "key": "access-key-id", "optional": True}
        container = {
            "name": "main",
            "image": IMAGE,
            "command": launcher,
            "args": container["command"] + container["args"],
            "env": [{"name": n, "valueFrom": {"secretKeyRef": reference}} for n in names],
            "resources": {"limits": {"memory": "4Gi"}, "requests": {"cpu": "2"}},
        }
        return {"containers": [container]}

    def artifact(self, step):
        identity = uuid.UUID(int=self._random.getrandbits(128))
        folder = f"minio://mlpipeline/v2/artifacts/iceaggr-direction/{RUN_ID}/{step}"
        session = {
            "endpoint": "minio-service.kubeflow:9000",
            "secretName": "mlpipeline-minio-artifact",
        }
        return {
            "name": str(identity),
            "type": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"},
            "uri": f"{folder}/{identity}/unit_manifest",
            "metadata": {
                **{name: self._random.randrange(10**7) for name in ("n_events", "n_pulses")},
                "store_session_info": text({"Provider": "minio", "Params": session}),
            },
        }


def _parameters(values):
    return {"parameters": [{"name": name, "value": value} for name, value in values.items()]}


def estimated_bytes(documents, n_units, n_attempts, config, n_converting=0):
    """Estimate the whole object of a run, as large as what was seen is to its estimate.

    n_converting: work units of the conversion of another layout, 0 = it needs none.
    """
    run = Workflow(documents)
    for index in range(n_units):
        run.add_unit(index, config, n_attempts)
    for index in range(n_converting):
        run.add_unit(index, config, n_attempts, CONVERT)
    if n_converting:
        run.add_task("plan-conversion", {"config": config}, n_attempts)
    manifests = [run.artifact(SHARD) for _ in range(n_units)]
    for name in run.tasks():
        # the driver puts the collected artifacts beside the parameters
        values = {"config": [config, manifests] if name == "compute-statistics" else config}
        if name != SHARD and name not in OF_CONVERSION:
            run.add_task(name, values, n_attempts)
    return NOT_NODES + SEEN_TO_ESTIMATED * run.packed_bytes()


@pytest.fixture(scope="module")
def settings():
    """All settings written out, none left to its default."""
    path = Path(__file__).parent.parent / "configs" / "laptop.yaml"
    return load_config(path).model_dump(mode="json")


def test_run_with_every_unit_retried_stays_below_half_of_argos_limit(documents, settings):
    n_units = DataConfig.model_fields["max_work_units"].metadata[1].le
    n_attempts = 1 + Workflow(documents).task(SHARD)["retryPolicy"]["maxRetryCount"]
    assert n_attempts > 1
    assert estimated_bytes(documents, n_units, n_attempts, settings) < LIMIT / 2


def test_conversion_first_leaves_a_third_of_argos_limit(documents, settings):
    most = DataConfig.model_fields["max_work_units"].metadata[1].le
    size = estimated_bytes(documents, most, 3, settings, MAX_CONVERSION_UNITS)
    assert estimated_bytes(documents, most, 3, settings) < size < LIMIT * 2 / 3


def test_estimate_grows_with_units_and_attempts(documents, settings):
    sizes = [
        estimated_bytes(documents, n_units, n_attempts, settings)
        for n_units, n_attempts in ((8, 1), (8, 3), (32, 3))
    ]
    assert sizes == sorted(sizes)
    assert sizes[2] - sizes[1] > 24 * 2_000
    # what a cluster's own limit would meet at 128 units
    assert estimated_bytes(documents, 128, 3, settings) > LIMIT / 2


def test_unit_is_told_its_run_and_no_settings(documents):
    component = documents[0]["components"]["comp-shard-events"]
    parameters = component["inputDefinitions"]["parameters"]
    assert set(parameters) == {"work_unit", "work_uri", "run_id"}
    assert {p["parameterType"] for p in parameters.values()} == {"STRING"}
    run = Workflow(documents)
    handed_down = run.component(run.loop)["inputDefinitions"]["parameters"]
    assert not [name for name in handed_down if "config" in name]


def test_size_of_a_unit_does_not_depend_on_the_settings(documents, settings):
    def size(config):
        run = Workflow(documents)
        run.add_unit(0, config, 1)
        return len(text(run.nodes))

    assert size(settings) == size({})
