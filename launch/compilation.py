"""Compile the graph to KFP IR YAML."""

from pathlib import Path
from typing import Any

from kfp import compiler

from iceaggr.errors import ConfigError


def compile_pipeline(pipeline: Any, output: Path) -> Path:
    """Write the graph as IR YAML.

    Raises: ConfigError if the file name does not end in .yaml or its folder does not exist.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            "the compiled pipeline is YAML",
            where="--output",
            found=repr(output.name),
            expected="a name that ends in .yaml",
        )
    if not output.parent.is_dir():
        raise ConfigError("folder does not exist", where=str(output.parent.absolute()))
    compiler.Compiler().compile(pipeline, str(output))
    return output
