"""Submit a run: upload the pipeline version if its content is new, then start."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import kfp
import yaml
from kfp_server_api import (
    V2beta1Pipeline,
    V2beta1PipelineVersionReference,
    V2beta1Run,
    V2beta1RuntimeConfig,
)
from kfp_server_api.exceptions import ApiException

from components.form import EXAMPLE_IMAGE
from iceaggr.errors import ConfigError
from launch.compilation import check_image, compile_pipeline
from launch.kfp_api import all_pages, api_errors

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_CONFLICT = 409
_REFUSED = 400


@dataclass(frozen=True)
class PipelineVersion:
    """One uploaded content of the pipeline."""

    pipeline_id: str
    version_id: str
    name: str
    uploaded: bool


@dataclass(frozen=True)
class CompiledPipeline:
    """The graph as YAML text, with a name that its content determines."""

    name: str
    text: str

    @property
    def version_name(self) -> str:
        """Name the version by the content: the same graph has the same name."""
        return f"{self.name}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    @cached_property
    def graph(self) -> dict[str, Any]:
        """Read the graph, without what Kubernetes adds to it."""
        graph: dict[str, Any] = next(yaml.safe_load_all(self.text))
        return graph

    @property
    def parameters(self) -> dict[str, Any]:
        """Give the parameters of the run form with their types, defaults and allowed values."""
        return dict(self.graph["root"].get("inputDefinitions", {}).get("parameters", {}))

    @property
    def executors(self) -> dict[str, Any]:
        """Give how each step is executed, by the step's name as the graph shows it."""
        executors = self.graph.get("deploymentSpec", {}).get("executors", {})
        return {name.removeprefix("exec-"): executors[name] for name in sorted(executors)}

    @property
    def looped_steps(self) -> set[str]:
        """Name the steps that run once per item of a loop."""
        components = self.graph.get("components", {})
        loops = [components[name] for name in components if name.startswith("comp-for-loop-")]
        return {task for loop in loops for task in loop["dag"]["tasks"]}


def check_images(compiled: CompiledPipeline) -> None:
    """Check that the steps have an image a cluster can pull. Raises: ConfigError."""
    steps = compiled.executors.values()
    for image in sorted({step["container"]["image"] for step in steps if "container" in step}):
        check_image(image, where="ICEAGGR_IMAGE")
    if EXAMPLE_IMAGE in compiled.text:
        raise ConfigError(
            "the image of the steps is not set",
            where="ICEAGGR_IMAGE",
            found=f"the example {EXAMPLE_IMAGE}",
            expected="the image that `make image` made and your cluster can pull",
            remedy="Set ICEAGGR_IMAGE to it, best with its digest",
        )


def compile_text(pipeline: Any, name: str) -> CompiledPipeline:
    """Compile the graph in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = compile_pipeline(pipeline, Path(folder) / "pipeline.yaml")
        return CompiledPipeline(name=name, text=path.read_text(encoding="utf-8"))


def upload_version(client: kfp.Client, compiled: CompiledPipeline) -> PipelineVersion:
    """Upload the graph unless this very content is there already."""
    name = compiled.version_name
    with api_errors("pipeline upload"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(compiled.text, encoding="utf-8")
        find = partial(_find_pipeline, client, compiled.name)
        # versions tell contents apart
        pipeline_id = (
            find() or _made_or_found(lambda: _make_pipeline(client, compiled.name), find)[0]
        )
        if known := _find_version(client, pipeline_id, name):
            return PipelineVersion(pipeline_id, known, name, uploaded=False)
        # equal names mean equal content
        version_id, uploaded = _made_or_found(
            lambda: _upload(client, path, pipeline_id, name),
            lambda: _find_version(client, pipeline_id, name),
        )
        return PipelineVersion(pipeline_id, version_id, name, uploaded)


def _made_or_found(make: Callable[[], str], find: Callable[[], str | None]) -> tuple[str, bool]:
    """Make something, unless another client did meanwhile. Returns its id, and if it was made."""
    try:
        return make(), True
    except ApiException as error:
        other = find() if error.status == _CONFLICT else None
        if other is None:
            raise
        return other, False


def _find_pipeline(client: kfp.Client, name: str) -> str | None:
    # not client.get_pipeline_id(), which cannot be told the namespace
    found = client._pipelines_api.pipeline_service_list_pipelines(
        filter=equals("display_name", name), **_namespace(client)
    )
    pipelines = found.pipelines or []
    return str(pipelines[0].pipeline_id) if pipelines else None


def _make_pipeline(client: kfp.Client, name: str) -> str:
    # not client.upload_pipeline(): it makes a version called like the pipeline, beside ours
    asked = V2beta1Pipeline(display_name=name, name=name, **_namespace(client))
    return str(client._pipelines_api.pipeline_service_create_pipeline(asked).pipeline_id)


def _upload(client: kfp.Client, path: Path, pipeline_id: str, name: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()):
        made = client.upload_pipeline_version(
            str(path), pipeline_version_name=name, pipeline_id=pipeline_id
        )
    return str(made.pipeline_version_id)


def _find_version(client: kfp.Client, pipeline_id: str, name: str) -> str | None:
    ask = partial(client.list_pipeline_versions, pipeline_id)
    versions = all_pages(ask, "pipeline_versions")
    found = (str(v.pipeline_version_id) for v in versions if v.display_name == name)
    return next(found, None)


def equals(key: str, value: str) -> str:
    """Write the API's filter for one equal field."""
    predicate = {"operation": "EQUALS", "key": key, "stringValue": value}
    return json.dumps({"predicates": [predicate]})


def _namespace(client: kfp.Client) -> dict[str, str]:
    namespace = client.get_user_namespace()
    return {"namespace": namespace} if namespace else {}


def find_or_create_experiment(client: kfp.Client, name: str) -> str:
    """Find or create the experiment that lists the runs. Returns its id."""

    def make() -> str:
        return str(client.create_experiment(name).experiment_id)

    # it gives the one that exists, such as another client's
    with api_errors(f"experiment {name}"), contextlib.redirect_stdout(io.StringIO()):
        return _made_or_found(make, make)[0]


@dataclass(frozen=True)
class RunOrder:
    """Which run to start, and where it is listed.

    experiment: KFP experiment.  values: parameters that differ from their defaults.
    service_account: of the pods; empty = that of the installation.
    tracking_experiment: MLflow experiment of the run, for KFP's MLflow plugin; empty = its default
    """

    version: PipelineVersion
    experiment: str
    values: dict[str, Any]
    service_account: str = ""
    tracking_experiment: str = ""

    @property
    def plugins_input(self) -> dict[str, Any] | None:
        """Tell KFP's MLflow plugin where the run belongs; others should ignore it."""
        if not self.tracking_experiment:
            return None
        return {"mlflow": {"experiment_name": self.tracking_experiment}}

    def request(self) -> dict[str, Any]:
        """Give the fields that a request for a run and one for a schedule have in common."""
        return {
            "pipeline_version_reference": V2beta1PipelineVersionReference(
                pipeline_id=self.version.pipeline_id, pipeline_version_id=self.version.version_id
            ),
            "runtime_config": V2beta1RuntimeConfig(parameters=self.values),
            "service_account": self.service_account or None,
            "plugins_input": self.plugins_input,
        }


def start_run(client: kfp.Client, order: RunOrder, name: str) -> str:
    """Start a run of an uploaded version under a name. Returns the run's id."""
    experiment_id = find_or_create_experiment(client, order.experiment)
    # not client.run_pipeline(), which has no argument for plugins
    run = V2beta1Run(experiment_id=experiment_id, display_name=name, **order.request())
    with api_errors("run creation"):
        made = without_plugins_if_refused(client._run_api.run_service_create_run, run)
        return str(made.run_id)


def without_plugins_if_refused(create: Callable[[Any], Any], asked: Any) -> Any:
    """Send a request, and once more without the plugin's part if the server refuses just that."""
    try:
        return create(asked)
    except ApiException as error:
        if error.status != _REFUSED or "plugin" not in str(error.body).lower():
            raise
        asked.plugins_input = None
        return create(asked)
