"""The pipeline as objects of Kubernetes: `python -m manifests.pipeline_objects FILE`.

For an API server that keeps its pipelines in Kubernetes. The name of the version carries a hash of
its content, because the API server refuses to change a version; `pipeline.py submit` gives the
same content the same name.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from iceaggr.errors import IceaggrError
from launch.compilation import check_namespace, write_documents
from launch.settings import run_values
from launch.submission import CompiledPipeline, compile_text
from pipeline import PIPELINE_NAME, make_pipeline

_API_VERSION = "pipelines.kubeflow.org/v2beta1"


def pipeline_objects(
    compiled: CompiledPipeline, description: str, namespace: str
) -> list[dict[str, Any]]:
    """Describe the pipeline and one version of it, in the order in which they must be applied.

    Built from the compiled text: the SDK's own manifests lack what is added after compiling.
    """
    documents = list(yaml.safe_load_all(compiled.text))
    pipeline = {
        "apiVersion": _API_VERSION,
        "kind": "Pipeline",
        "metadata": {"name": compiled.name, "namespace": namespace},
        "spec": {"displayName": compiled.name, "description": description},
    }
    version: dict[str, Any] = {
        "apiVersion": _API_VERSION,
        "kind": "PipelineVersion",
        "metadata": {"name": compiled.version_name, "namespace": namespace},
        "spec": {
            "displayName": compiled.version_name,
            "description": description,
            "pipelineName": compiled.name,
            "pipelineSpec": documents[0],
        },
    }
    if len(documents) > 1:
        version["spec"]["platformSpec"] = documents[1]
    return [pipeline, version]


def write_pipeline_objects(
    output: Annotated[Path, typer.Argument(help="YAML file to write")],
    namespace: Annotated[str, typer.Option(help="Namespace of the pipeline")] = "kubeflow",
    check: Annotated[
        list[Path] | None, typer.Option(help="Parameters of a schedule to check; may be repeated")
    ] = None,
) -> None:
    """Write the pipeline and its version as Kubernetes objects."""
    try:
        check_namespace(namespace, where="--namespace")
        graph = make_pipeline(cluster=True)
        compiled = compile_text(graph, PIPELINE_NAME)
        for path in check or []:
            run_values(compiled.parameters, [], None, path)
        objects = pipeline_objects(compiled, graph.description or "", namespace)
        write_documents(output, objects, PIPELINE_NAME, sort_keys=False)
    except IceaggrError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {output}: {compiled.version_name}")


if __name__ == "__main__":
    from iceaggr.entry import run

    run(lambda: typer.run(write_pipeline_objects))
