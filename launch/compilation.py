"""Compile the graph to KFP IR YAML."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from iceaggr.errors import ConfigError
from iceaggr.steps.documents import holds, refuse_other_content
from launch.run_form import DROPDOWNS, add_dropdowns


def compile_pipeline(pipeline: Any, output: Path) -> Path:
    """Write the graph as IR YAML: pipeline, then what Kubernetes adds to it.

    Raises: ConfigError if the file name does not end in .yaml, or the file holds something else or
    cannot be written.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            "the compiled pipeline is YAML",
            where="--output",
            found=repr(output.name),
            expected="a name that ends in .yaml",
        )
    _refuse_other(output, pipeline.name)
    # beside nothing of the user's: the dropdowns are added to what the SDK writes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    add_dropdowns(documents[0]["root"], DROPDOWNS)
    _name_branches(documents[0])
    write_documents(output, documents, pipeline.name, sort_keys=True)
    return output


def _name_branches(graph: dict[str, Any]) -> None:
    """Give the choice between the ways of training a name: dsl.If takes one for a branch only.

    What the graph shows is changed, and no key: KFP's driver looks tasks and outputs up by keys.
    """
    for component in graph.get("components", {}).values():
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            if key.startswith("condition-branches-"):
                task["taskInfo"]["name"] = "training"


def _refuse_other(output: Path, name: str) -> None:
    """Replace this pipeline, compiled before, only: settings and manifests have such names, too."""
    is_own = holds("deploymentSpec:", "pipelineInfo:", f"name: {name}\n")
    with suppress(OSError):  # told when it is written
        refuse_other_content(output, "--output", is_own)


def write_documents(
    output: Path, documents: list[dict[str, Any]], name: str, *, sort_keys: bool
) -> None:
    """Write objects as one stream of YAML.

    name: of the pipeline in them.  Raises: ConfigError if the file cannot be written, or is
    anything but the same pipeline, compiled before.
    """
    try:
        _refuse_other(output, name)
        output.write_text(yaml.safe_dump_all(documents, sort_keys=sort_keys), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "cannot write the compiled pipeline",
            where=f"--output {output}",
            found=error.strerror or str(error),
            expected="a file in a folder that is there and that you may write to",
        ) from None
