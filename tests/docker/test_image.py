"""The image runs a component as Kubeflow Pipelines would, in the strictest pod there is."""

import json
from pathlib import Path

import pytest
import yaml
from kfp import compiler

from components.steps import plan_shards as plan_shards_component
from iceaggr.config import ExperimentConfig
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.shards.planning import plan_shards
from iceaggr.storage import open_store

pytestmark = [pytest.mark.slow, pytest.mark.integration]

ROOT = Path(__file__).parents[2]
PROBE = """
id -u; id -g
touch /opt/application/x 2>/dev/null && echo wrote outside /tmp
touch /tmp/x && echo wrote to /tmp
grep CapBnd /proc/self/status
command -v pip && echo pip is there
exit 0
"""


def component_command(component, folder, parameters) -> list[str]:
    """Give the command line that KFP's launcher executes for one task."""
    path = folder / "component.yaml"
    compiler.Compiler().compile(component, str(path))
    spec = next(yaml.safe_load_all(path.read_text()))
    (executor,) = spec["deploymentSpec"]["executors"].values()
    container = executor["container"]
    assert "pip install" not in " ".join(container["command"])
    executor_input = {
        "inputs": {"parameterValues": parameters},
        "outputs": {
            "parameters": {"Output": {"outputFile": "/tmp/kfp/outputs/Output"}},
            "outputFile": "/tmp/kfp/executor_output.json",
        },
    }
    arguments = [json.dumps(executor_input) if a == "{{$}}" else a for a in container["args"]]
    return [*container["command"], *arguments]


def test_image_runs_plan_shards_as_kfp_would(run_in_image, mlflow_service, tmp_path):
    raw_uri, work_uri = "s3://iceaggr/image-test/raw", "s3://iceaggr/image-test/work"
    store = open_store()
    simulate(store, raw_uri, SimulationConfig(n_events=200, n_events_per_file=100, seed=3))
    config = ExperimentConfig()
    parameters = {
        "raw_uri": raw_uri,
        "work_uri": work_uri,
        "experiment_name": "image-test",
        "run_id": "image-test-run",
        "run_name": "image test",
        "config": config.model_dump(mode="json"),
        "gpu_count": "0",
    }
    command = component_command(plan_shards_component, tmp_path, parameters)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = run_in_image(command, scratch, mlflow_service.env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    output = json.loads((scratch / "kfp" / "executor_output.json").read_text(encoding="utf-8"))
    assert output["parameterValues"]["Output"] == plan_shards(store, raw_uri, config.data, work_uri)


def test_image_is_confined_and_holds_no_pip(run_in_image, tmp_path):
    done = run_in_image(["sh", "-c", PROBE], tmp_path, {})
    assert done.stdout.split("\n")[:3] == ["12345", "0", "wrote to /tmp"], done.stderr
    assert "CapBnd:\t0000000000000000" in done.stdout
    assert "pip is there" not in done.stdout


def test_image_states_its_commit_and_name(run_in_image, tmp_path):
    done = run_in_image(["sh", "-c", "echo $ICEAGGR_GIT_COMMIT; echo $ICEAGGR_IMAGE"], tmp_path, {})
    commit, name = done.stdout.split()
    assert len(commit.removesuffix("-dirty")) == 40
    assert ":" in name


def test_image_imports_every_module_of_the_package(run_in_image, tmp_path):
    names = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in sorted((ROOT / "src" / "iceaggr").rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    done = run_in_image(["python3", "-c", code], tmp_path, {})
    assert done.returncode == 0, done.stderr[-3000:]


def test_image_compiles_the_pipeline_for_the_schedule_job(run_in_image, tmp_path):
    command = ["python3", "/opt/application/pipeline.py", "compile", "--output", "/tmp/p.yaml"]
    done = run_in_image(command, tmp_path, {"ICEAGGR_IMAGE": "registry.example.org/iceaggr:1"})
    assert done.returncode == 0, done.stderr[-3000:]
    spec = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))
    executors = spec["deploymentSpec"]["executors"].values()
    images = {executor["container"]["image"] for executor in executors}
    assert images == {"registry.example.org/iceaggr:1"}
