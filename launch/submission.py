"""Submit a run: upload the pipeline version if its content is new, start, print, follow."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import yaml

from iceaggr.errors import ConfigError
from launch.compilation import compile_pipeline
from launch.kfp_api import SubmissionError, api_errors

_FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_SECONDS_BETWEEN_POLLS = 10.0


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
        """Give the parameters of the run form with their types and defaults."""
        document = next(yaml.safe_load_all(self.text))
        inputs: dict[str, Any] = document["root"].get("inputDefinitions", {})
        return dict(inputs.get("parameters", {}))


def compile_text(pipeline: Any, name: str) -> CompiledPipeline:
    """Compile the graph in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = compile_pipeline(pipeline, Path(folder) / "pipeline.yaml")
        return CompiledPipeline(name=name, text=path.read_text())


def parse_settings(compiled: CompiledPipeline, settings: list[str]) -> dict[str, Any]:
    """Read `name=value` settings by the types of the pipeline's parameters.

    Raises: ConfigError for an unknown parameter or a value of another type.
    """
    known = compiled.parameters
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                "unknown parameter" if equals else "not a setting",
                where=f"--set {setting}",
                expected=f"name=value with one of {', '.join(sorted(known))}",
            )
        values[name] = _typed(text, known[name]["parameterType"], setting)
    return values


def _typed(text: str, kind: str, setting: str) -> Any:
    if kind == "STRING":
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    expected: dict[str, tuple[type, ...]] = {
        "NUMBER_DOUBLE": (int, float),
        "NUMBER_INTEGER": (int,),
        "BOOLEAN": (bool,),
        "LIST": (list,),
        "STRUCT": (dict,),
    }
    right = isinstance(value, expected[kind]) and (kind == "BOOLEAN" or not isinstance(value, bool))
    if not right:
        raise ConfigError(
            "bad value of a parameter", where=f"--set {setting}", expected=f"{kind}, as JSON"
        )
    return value


def upload_version(client: kfp.Client, compiled: CompiledPipeline) -> PipelineVersion:
    """Upload the graph unless this very content is there already."""
    with api_errors("pipeline upload"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(compiled.text)
        pipeline_id = client.get_pipeline_id(compiled.name)
        if pipeline_id is None:
            pipeline_id = client.upload_pipeline(str(path), pipeline_name=compiled.name).pipeline_id
        known = _find_version(client, pipeline_id, compiled.version_name)
        if known is not None:
            return PipelineVersion(pipeline_id, known, compiled.version_name, uploaded=False)
        made = client.upload_pipeline_version(
            str(path), pipeline_version_name=compiled.version_name, pipeline_id=pipeline_id
        )
        return PipelineVersion(
            pipeline_id, made.pipeline_version_id, compiled.version_name, uploaded=True
        )


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


def start_run(
    client: kfp.Client, version: PipelineVersion, experiment: str, values: dict[str, Any]
) -> str:
    """Start a run of an uploaded version in a named experiment. Returns the run's id."""
    with api_errors("run creation"):
        experiment_id = client.create_experiment(experiment).experiment_id
        run = client.run_pipeline(
            experiment_id=experiment_id,
            job_name=f"{version.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
            params=values,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
        )
    return str(run.run_id)


def follow_run(client: kfp.Client, run_id: str, say: Callable[[str], None]) -> None:
    """Wait for the end of a run, saying each change of state.

    Raises: SubmissionError if it does not succeed.
    """
    state = ""
    while state not in _FINAL_STATES:
        with api_errors("run status"):
            now = str(client.get_run(run_id).state or "PENDING")
        if now != state:
            say(f"{run_id} {now}")
            state = now
        if state not in _FINAL_STATES:
            time.sleep(_SECONDS_BETWEEN_POLLS)
    if state != "SUCCEEDED":
        raise SubmissionError(
            "the run did not succeed", where=run_id, found=state, remedy="See its steps in the UI"
        )
