"""Compile the graph to KFP IR YAML."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from iceaggr.errors import ConfigError
from launch.run_form import DROPDOWNS, add_dropdowns


def compile_pipeline(pipeline: Any, output: Path) -> Path:
    """Write the graph as IR YAML: pipeline, then what Kubernetes adds to it.

    Raises: ConfigError if the file name does not end in .yaml or the file cannot be written.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            "the compiled pipeline is YAML",
            where="--output",
            found=repr(output.name),
            expected="a name that ends in .yaml",
        )
    # beside nothing of the user's: the dropdowns are added to what the SDK writes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    add_dropdowns(documents[0]["root"], DROPDOWNS)
    write_documents(output, documents, sort_keys=True)
    return output


def write_documents(output: Path, documents: list[dict[str, Any]], *, sort_keys: bool) -> None:
    """Write objects as one stream of YAML. Raises: ConfigError if the file cannot be written."""
    try:
        output.write_text(yaml.safe_dump_all(documents, sort_keys=sort_keys), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "cannot write the compiled pipeline",
            where=f"--output {output}",
            found=error.strerror or str(error),
            expected="a file in a folder that is there and that you may write to",
        ) from None
