"""The compiled graph: what a cluster will be given."""

import json
import math
import re

import pytest
import yaml
from kfp import components

import pipeline
from components.form import DROPDOWNS, IMAGE
from iceaggr.config import DataConfig, parse_config
from iceaggr.service_settings import (
    OBJECT_STORE_ENVIRONMENT,
    SETTINGS_ENVIRONMENT,
    TRACKING_ENVIRONMENT,
)
from launch.compilation import compile_pipeline

LOCAL_STEPS = {
    "plan-shards",
    "shard-events",
    "compute-statistics",
    "check-learning",
    "train-model",
    "evaluate-model",
    "promote-model",
    "close-run",
}
CONVERSION = {"plan-conversion", "convert-events"}
STEPS = {*LOCAL_STEPS, *CONVERSION, "plan-shards-2", "train-on-machines"}
"""The shards of events in another layout are planned behind their conversion: plan-shards-2."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    return compile_pipeline(pipeline.make_pipeline(cluster=True), path)


@pytest.fixture(scope="module")
def graph(compiled):
    return next(yaml.safe_load_all(compiled.read_text()))


@pytest.fixture(scope="module")
def kubernetes(compiled):
    return list(yaml.safe_load_all(compiled.read_text()))[1]["platforms"]["kubernetes"]


def containers(graph):
    executors = graph["deploymentSpec"]["executors"]
    return {n.removeprefix("exec-"): e["container"] for n, e in executors.items()}


def dags(graph):
    """Every DAG with the parameters that are handed into it."""
    found = [("root", graph["root"])]
    found += [(name, part) for name, part in graph["components"].items() if "dag" in part]
    return [
        (name, part["dag"]["tasks"], set(part.get("inputDefinitions", {}).get("parameters", {})))
        for name, part in found
    ]


def tasks(graph):
    return {name: task for _, dag, _ in dags(graph) for name, task in dag.items()}


def test_compiled_graph_loads_with_the_sdk(compiled):
    loaded = components.load_component_from_file(str(compiled))
    assert loaded.name == pipeline.PIPELINE_NAME


def test_compiled_graph_is_the_same_every_time(compiled, tmp_path):
    again = compile_pipeline(pipeline.make_pipeline(cluster=True), tmp_path / "again.yaml")
    assert again.read_text() == compiled.read_text()


def test_compiled_graph_has_all_steps_on_one_image(graph):
    assert set(containers(graph)) == STEPS
    assert {container["image"] for container in containers(graph).values()} == {IMAGE}


def test_compiled_graph_installs_nothing_at_run_time(compiled):
    assert not re.search(r"pip\s+install|packages_to_install|ensurepip", compiled.read_text())


def test_compiled_graph_names_credentials_but_holds_none(compiled, kubernetes):
    text = compiled.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|://[^/\s]*:[^/\s]*@", text)
    for step, settings in kubernetes["deploymentSpec"]["executors"].items():
        secrets = {
            pair["envVar"]: pair["secretKey"]
            for secret in settings["secretAsEnv"]
            for pair in secret["keyToEnv"]
        }
        expected = {**OBJECT_STORE_ENVIRONMENT, **TRACKING_ENVIRONMENT}
        assert secrets == {variable: key for key, variable in expected.items()}, step
        maps = {
            pair["envVar"]: pair["configMapKey"]
            for config_map in settings["configMapAsEnv"]
            for pair in config_map["keyToEnv"]
        }
        assert maps == {variable: key for key, variable in SETTINGS_ENVIRONMENT.items()}, step


def test_mlflow_is_told_the_name_that_kubeflow_has_for_the_run(graph):
    # KFP's driver puts the run's name in the place of exactly this constant
    named = {
        name: task["inputs"]["parameters"]["run_name"]
        for name, task in tasks(graph).items()
        if "run_name" in task.get("inputs", {}).get("parameters", {})
    }
    placeholder = {"runtimeValue": {"constant": "{{$.pipeline_job_name}}"}}
    # a sharding task reads it where plan_shards noted it
    assert set(named) == STEPS - {"shard-events", "convert-events"}
    assert all(value == placeholder for value in named.values())


def test_groups_of_the_graph_have_names_of_ours(graph):
    shown = {key: task["taskInfo"]["name"] for key, task in tasks(graph).items()}
    groups = {key: name for key, name in shown.items() if key not in STEPS}
    assert sorted(groups.values()) == [
        "convert",
        "direction",
        "layout",
        "one-machine",
        "other-layout",
        "own-layout",
        "several-machines",
        "shard",
        "training",
    ]


def test_no_step_sets_an_environment_variable_to_a_value(graph):
    assert not [name for name, container in containers(graph).items() if container.get("env")]


def test_every_step_has_requests_and_a_memory_limit(graph):
    for name, container in containers(graph).items():
        resources = container["resources"]
        assert resources["resourceCpuRequest"], name
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"], name


def test_no_step_is_ended_or_given_up_before_the_run_is(graph):
    # Argo ends a pod, however well it works, when this time has passed since the step's first start
    for name in STEPS:
        window = tasks(graph)[name]["retryPolicy"]["backoffMaxDuration"]
        assert float(window.removesuffix("s")) >= pipeline.RUN_DEADLINE_HOURS * 3600, name


def test_every_step_is_retried_with_growing_pauses_and_never_cached(graph):
    for name in STEPS:
        task = tasks(graph)[name]
        assert task["retryPolicy"]["maxRetryCount"] >= 2, name
        assert task["retryPolicy"]["backoffFactor"] > 1, name
        assert not task["cachingOptions"].get("enableCache"), name


def test_every_parameter_that_a_task_reads_is_handed_down_to_it(graph):
    # the SDK forgets parameters that are read for resources only; the backend's driver then fails
    for dag, dag_tasks, given in dags(graph):
        for task, spec in dag_tasks.items():
            for value in spec.get("inputs", {}).get("parameters", {}).values():
                name = value.get("componentInputParameter")
                assert name is None or name in given, f"{dag}: {task} lacks {name}"


def test_every_parameter_of_the_form_is_read_by_a_step(graph):
    for name in graph["root"]["inputDefinitions"]["parameters"]:
        readers = [
            task
            for task in graph["root"]["dag"]["tasks"].values()
            for value in task["inputs"]["parameters"].values()
            if value.get("componentInputParameter") == name
        ]
        assert readers, name


def test_every_parameter_has_a_default_and_a_description(graph):
    for name, parameter in graph["root"]["inputDefinitions"]["parameters"].items():
        assert parameter.get("defaultValue") is not None, name
        assert parameter.get("description", "").endswith("."), name


def test_default_configuration_is_valid_after_its_numbers_became_floats(graph):
    default = graph["root"]["inputDefinitions"]["parameters"]["config"]["defaultValue"]
    assert all(math.isfinite(v) for v in default["model"].values() if isinstance(v, float))
    assert parse_config(default) == parse_config(pipeline.DEFAULT_CONFIG)


def test_training_takes_its_gpus_from_text_parameters(graph):
    parameters = graph["root"]["inputDefinitions"]["parameters"]
    accelerator = containers(graph)["train-model"]["resources"]["accelerator"]
    for key, name in (("resourceCount", "train_gpu_count"), ("resourceType", "train_gpu_type")):
        assert accelerator[key] == f"{{{{$.inputs.parameters['pipelinechannel--{name}']}}}}"
        assert parameters[name]["parameterType"] == "STRING"


def test_several_machines_are_launched_by_a_pod_without_gpus(graph):
    assert "accelerator" not in containers(graph)["train-on-machines"]["resources"]
    given = tasks(graph)["train-on-machines"]["inputs"]["parameters"]
    assert given["image"]["runtimeValue"]["constant"] == IMAGE
    assert given["n_nodes"]["componentInputParameter"].endswith("train_nodes")


def test_one_of_the_two_trainings_runs_and_its_model_goes_on(graph):
    branches = [
        task["triggerPolicy"]["condition"]
        for task in tasks(graph).values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    condition = "inputs.parameter_values['pipelinechannel--train_nodes'] == '1'"
    assert [b for b in branches if "train_nodes" in b] == [condition, f"!({condition})"]
    selected = [
        part["dag"]["outputs"]["artifacts"]
        for part in graph["components"].values()
        if len(part.get("dag", {}).get("outputs", {}).get("artifacts", {})) == 1
    ]
    producers = {
        selector["producerSubtask"]
        for outputs in selected
        for output in outputs.values()
        for selector in output["artifactSelectors"]
    }
    assert {"train-model", "train-on-machines"} <= producers


def test_every_parameter_that_kubernetes_reads_is_handed_down_to_the_task(graph, kubernetes):
    for executor, settings in kubernetes["deploymentSpec"]["executors"].items():
        step = executor.removeprefix("exec-")
        (given,) = [names for _, dag_tasks, names in dags(graph) if step in dag_tasks]
        read = set(re.findall(r"componentInputParameter': '([^']+)'", str(settings)))
        assert read <= given, step


def test_training_alone_is_placed_and_has_shared_memory(kubernetes):
    executors = kubernetes["deploymentSpec"]["executors"]
    training = executors["exec-train-model"]
    assert training["emptyDirMounts"][0] == {
        "mountPath": "/dev/shm",
        "medium": "Memory",
        "sizeLimit": "8Gi",
        "volumeName": "dshm",
    }
    assert training["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]
    assert training["tolerations"][0]["tolerationJson"]["componentInputParameter"]
    others = [e for name, e in executors.items() if name != "exec-train-model"]
    assert not [e for e in others if "emptyDirMounts" in e or "nodeSelector" in e]


def test_dropdowns_offer_the_allowed_values(graph):
    parameters = graph["root"]["inputDefinitions"]["parameters"]
    with_literals = {n: tuple(p["literals"]) for n, p in parameters.items() if "literals" in p}
    assert with_literals == DROPDOWNS


def test_the_whole_run_has_a_deadline(kubernetes):
    seconds = kubernetes["pipelineConfig"]["activeDeadlineSeconds"]
    assert seconds == pipeline.RUN_DEADLINE_HOURS * 3600


def test_the_last_step_runs_whatever_the_end(graph):
    closing = graph["root"]["dag"]["tasks"]["close-run"]
    assert closing["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert closing["inputs"]["parameters"]["status"]["taskFinalStatus"]["producerTask"]


def test_the_local_graph_has_the_same_steps_without_retries(tmp_path):
    local = compile_pipeline(pipeline.make_pipeline(cluster=False), tmp_path / "local.yaml")
    graph = next(yaml.safe_load_all(local.read_text()))
    assert set(containers(graph)) == LOCAL_STEPS
    assert not [name for name, task in tasks(graph).items() if "retryPolicy" in task]


def test_the_local_graph_of_another_layout_converts_first(tmp_path):
    made = pipeline.make_pipeline(cluster=False, here_layout="nubench")
    local = compile_pipeline(made, tmp_path / "local.yaml")
    graph = next(yaml.safe_load_all(local.read_text()))
    assert set(containers(graph)) == {*LOCAL_STEPS, *CONVERSION}
    plan = tasks(graph)["plan-shards"]
    assert plan["inputs"]["parameters"]["conversion"]["taskOutputParameter"]["producerTask"]
    (loop,) = [name for name in plan["dependentTasks"] if name.startswith("for-loop")]
    assert tasks(graph)[loop]["taskInfo"]["name"] == "convert"


def test_both_plans_of_shards_go_on_as_one_of_which_the_layout_decides(graph):
    ways = {
        name: task["triggerPolicy"]["condition"]
        for _, dag, _ in dags(graph)
        for task in dag.values()
        for name in [task["taskInfo"]["name"]]
        if name in ("own-layout", "other-layout")
    }
    condition = "inputs.parameter_values['pipelinechannel--raw_layout'] == 'nubench'"
    assert ways == {"other-layout": condition, "own-layout": f"!({condition})"}
    inputs = {n: tasks(graph)[n]["inputs"]["parameters"] for n in ("plan-shards", "plan-shards-2")}
    converted = {n: "taskOutputParameter" in given["conversion"] for n, given in inputs.items()}
    assert sorted(converted.values()) == [False, True]
    same = [{k: v for k, v in given.items() if k != "conversion"} for given in inputs.values()]
    assert same[0] == same[1]


def test_the_results_of_all_sharding_tasks_fit_into_one_command_line():
    # the backend hands them to compute_statistics as one argument, which Linux bounds at 128 KiB;
    # to what the step itself records it adds how its object store is reached
    identity = "0f0e0d0c-0b0a-4908-8706-050403020100"
    counts = (
        "n_source_files",
        "n_source_files_reused",
        "n_events",
        "n_pulses",
        "n_pulses_rejected",
    )
    session = {"endpoint": "minio-service.kubeflow.svc.cluster.local:9000", "fromEnv": "false"}
    session |= {"accessKeyKey": "accesskey", "secretKeyKey": "secretkey", "disableSSL": "true"}
    session |= {"secretName": "mlpipeline-minio-artifact", "region": "minio"}
    folder = f"minio://mlpipeline/v2/artifacts/{pipeline.PIPELINE_NAME}/{identity}/shard-events"
    artifact = {
        "artifactId": identity,
        "name": identity,
        "type": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"},
        "uri": f"{folder}/{identity}/unit_manifest",
        "metadata": {
            **dict.fromkeys(counts, 21_640_443_536.0),
            "display_name": "unit_manifest",
            "store_session_info": json.dumps({"Provider": "minio", "Params": session}),
        },
    }
    n_bytes = len(json.dumps([artifact] * DataConfig().max_work_units))
    assert n_bytes < 0.9 * 128 * 1024
