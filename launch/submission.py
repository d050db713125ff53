"""Submit a run: upload the pipeline version if its content is new, start, follow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import yaml
from kfp_server_api.exceptions import ApiException

from components.image import EXAMPLE_IMAGE
from iceaggr.errors import ConfigError
from launch.api_errors import ServerAwayError, SubmissionError, api_errors
from launch.compilation import compile_pipeline
from launch.names import check_image

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_CONFLICT = 409
_MAX_FAILURES = 10
_ANSWER_S = 60


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

    @property
    def parameters(self) -> dict[str, Any]:
        """Give the parameters of the run form with their types, defaults and allowed values."""
        document = next(yaml.safe_load_all(self.text))
        inputs: dict[str, Any] = document["root"].get("inputDefinitions", {})
        return dict(inputs.get("parameters", {}))

    @property
    def images(self) -> set[str]:
        """Give the images of the steps."""
        document = next(yaml.safe_load_all(self.text))
        executors = document.get("deploymentSpec", {}).get("executors", {}).values()
        return {item["container"]["image"] for item in executors if "container" in item}


def check_images(compiled: CompiledPipeline) -> None:
    """Check that the steps have an image a cluster can pull. Raises: ConfigError."""
    for image in sorted(compiled.images):
        check_image(image, where="ICEAGGR_IMAGE")
    if EXAMPLE_IMAGE in compiled.text:
        raise ConfigError(
            "the image of the steps is not named",
            where="ICEAGGR_IMAGE",
            found=f"{EXAMPLE_IMAGE}, which stands for yours",
            expected="the image that `make image` made and your cluster can pull",
            remedy="export ICEAGGR_IMAGE=..., best with its digest",
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
        pipeline_id = _find_pipeline(client, compiled.name) or _upload_pipeline(
            client, path, compiled.name
        )
        known = _find_version(client, pipeline_id, name)
        if known is None:
            version_id, uploaded = _upload_version(client, path, pipeline_id, name)
            return PipelineVersion(pipeline_id, version_id, name, uploaded)
        return PipelineVersion(pipeline_id, known, name, uploaded=False)


def _find_pipeline(client: kfp.Client, name: str) -> str | None:
    # not client.get_pipeline_id(), which cannot be told the namespace
    found = client._pipelines_api.pipeline_service_list_pipelines(
        filter=equals("display_name", name), **_namespace(client)
    )
    pipelines = found.pipelines or []
    return str(pipelines[0].pipeline_id) if pipelines else None


def _upload_pipeline(client: kfp.Client, path: Path, name: str) -> str:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = client.upload_pipeline(str(path), pipeline_name=name, **_namespace(client))
        return str(made.pipeline_id)
    except ApiException as error:
        # somebody else makes the pipeline at this moment: its versions tell contents apart
        other = _find_pipeline(client, name) if error.status == _CONFLICT else None
        if other is None:
            raise
        return other


def _upload_version(
    client: kfp.Client, path: Path, pipeline_id: str, name: str
) -> tuple[str, bool]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = client.upload_pipeline_version(
                str(path), pipeline_version_name=name, pipeline_id=pipeline_id
            )
        return str(made.pipeline_version_id), True
    except ApiException as error:
        # somebody else uploads the same content at this moment: the name says that it is the same
        other = _find_version(client, pipeline_id, name) if error.status == _CONFLICT else None
        if other is None:
            raise
        return other, False


def _find_version(client: kfp.Client, pipeline_id: str, name: str) -> str | None:
    token = ""
    while True:
        page = client.list_pipeline_versions(pipeline_id, page_token=token, page_size=100)
        for version in page.pipeline_versions or []:
            if version.display_name == name:
                return str(version.pipeline_version_id)
        token = page.next_page_token or ""
        if not token:
            return None


def equals(key: str, value: str) -> str:
    """Write the API's filter for one equal field."""
    predicate = {"operation": "EQUALS", "key": key, "stringValue": value}
    return json.dumps({"predicates": [predicate]})


def _namespace(client: kfp.Client) -> dict[str, str]:
    namespace = client.get_user_namespace()
    return {"namespace": namespace} if namespace else {}


def find_or_create_experiment(client: kfp.Client, name: str) -> str:
    """Find or create the experiment that lists the runs. Returns its id."""
    with api_errors(f"experiment {name}"), contextlib.redirect_stdout(io.StringIO()):
        try:
            made = client.create_experiment(name)
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            # somebody else made it between the client's question and its request: now it is there
            made = client.create_experiment(name)
        return str(made.experiment_id)


@dataclass(frozen=True)
class RunOrder:
    """Which run to start, and where it is listed.

    experiment: KFP experiment.  values: parameters that differ from their defaults.
    service_account: of the pods; empty = that of the installation
    """

    version: PipelineVersion
    experiment: str
    values: dict[str, Any]
    service_account: str = ""


def start_run(client: kfp.Client, order: RunOrder) -> str:
    """Start a run of an uploaded version. Returns the run's id."""
    experiment_id = find_or_create_experiment(client, order.experiment)
    started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    with api_errors("run creation"), contextlib.redirect_stdout(io.StringIO()):
        run = client.run_pipeline(
            experiment_id=experiment_id,
            job_name=f"{order.version.name}-{started}",
            params=order.values,
            pipeline_id=order.version.pipeline_id,
            version_id=order.version.version_id,
            service_account=order.service_account or None,
        )
    return str(run.run_id)


def _state_of(client: kfp.Client, run_id: str) -> str:
    # not client.get_run(), which waits for ever on a connection that went silent
    with api_errors(f"state of run {run_id}"):
        run = client._run_api.run_service_get_run(run_id, _request_timeout=_ANSWER_S)
    return str(run.state or "PENDING")


def follow_run(
    client: kfp.Client, run_id: str, say: Callable[[str], None], pause_s: float = 10.0
) -> None:
    """Wait for the end of a run, saying each change of state.

    A server that is away for a while is waited for: the run goes on without us.
    Raises: SubmissionError if the run does not succeed, or if the server stays away.
    """
    state, n_failures = "", 0
    while state not in FINAL_STATES:
        if state:
            time.sleep(pause_s)
        try:
            now = _state_of(client, run_id)
        except ServerAwayError as error:
            n_failures += 1
            if n_failures == _MAX_FAILURES:
                raise
            say(f"{error.what}, asking again")
            state = state or "unknown"
            continue
        n_failures = 0
        if now != state:
            say(now)
        state = now
    if state != "SUCCEEDED":
        raise SubmissionError(
            "the run did not succeed", where=run_id, found=state, remedy="See its steps in the UI"
        )
