"""What kubectl cannot render: the user's names in rendered manifests, and the pipeline's objects.

python -m manifests.objects image                       the image that the overlays name
python -m manifests.objects rename FILE --image I       an image and a namespace of the user's own
python -m manifests.objects pipeline FILE               the pipeline as objects of Kubernetes
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from iceaggr.errors import ConfigError, IceaggrError
from launch.compilation import check_image, check_namespace, write_documents
from launch.settings import run_values
from launch.submission import CompiledPipeline, compile_text
from pipeline import PIPELINE_NAME, make_pipeline

_IMAGE_COMPONENT = Path(__file__).parent / "image" / "kustomization.yaml"
_NAMESPACE_KEYS = ("namespace", "kubernetes.io/metadata.name", "RUN_NAMESPACE")
_API_VERSION = "pipelines.kubeflow.org/v2beta1"

_app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error ends in one line and exit code 1."""
    try:
        _app(arguments)
    except IceaggrError as error:
        sys.exit(f"error: {error}")


# The overlays name an example image and a namespace of the runs. Users who do not edit the overlays
# give both on the command line of `make manifests`.


@_app.command("image")
def print_image() -> None:
    """Print the image that the overlays name."""
    print(image_of_the_overlays())


@_app.command("rename")
def rename(
    file: Annotated[Path, typer.Argument(help="Rendered manifests, changed in place")],
    image: Annotated[str, typer.Option(help="Image of all steps; empty = as it is")] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the runs; empty = as it is")] = "",
) -> None:
    """Give rendered manifests another image and another namespace of the runs."""
    check_namespace(namespace, where="--namespace")
    if image:
        check_image(image, where="--image")
    documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    changed = renamed(documents, image, namespace)
    file.write_text(yaml.safe_dump_all(changed, sort_keys=False), encoding="utf-8")


def image_of_the_overlays() -> str:
    """Read the image that the overlays name."""
    (image,) = yaml.safe_load(_IMAGE_COMPONENT.read_text(encoding="utf-8"))["images"]
    mark = f"@{image['digest']}" if "digest" in image else f":{image['newTag']}"
    return f"{image['newName']}{mark}"


def run_namespace(documents: list[dict[str, Any]]) -> str:
    """Find the namespace of the runs: the one of the schedule's settings."""
    for document in documents:
        if (document["kind"], document["metadata"]["name"]) == ("ConfigMap", "iceaggr-schedule"):
            return str(document["metadata"]["namespace"])
    raise ConfigError(
        "the namespace of the runs is not known",
        where="--namespace",
        found="no ConfigMap iceaggr-schedule",
        expected="the ConfigMap with the namespace of the runs",
        remedy="Change the namespace in the kustomization.yaml of the overlay",
    )


def renamed(documents: list[dict[str, Any]], image: str, namespace: str) -> list[dict[str, Any]]:
    """Give the objects with another image and namespace of the runs; '' leaves either as it is."""
    text = json.dumps(documents)
    if image:
        text = text.replace(json.dumps(image_of_the_overlays()), json.dumps(image))
    if namespace:
        old = run_namespace(documents)
        for key in _NAMESPACE_KEYS:
            text = text.replace(f'"{key}": "{old}"', f'"{key}": {json.dumps(namespace)}')
        text = text.replace(f".{old}.svc", f".{namespace}.svc")
    changed: list[dict[str, Any]] = json.loads(text)
    return changed


# The pipeline itself, for an API server that keeps its pipelines in Kubernetes. The name of the
# version carries a hash of its content, because the API server refuses to change a version;
# `pipeline.py submit` gives the same content the same name.


@_app.command("pipeline")
def write_pipeline_objects(
    output: Annotated[Path, typer.Argument(help="YAML file to write")],
    namespace: Annotated[str, typer.Option(help="Namespace of the pipeline")] = "kubeflow",
    check: Annotated[
        list[Path] | None, typer.Option(help="Parameters of a schedule to check; may be repeated")
    ] = None,
) -> None:
    """Write the pipeline and its version as Kubernetes objects."""
    check_namespace(namespace, where="--namespace")
    graph = make_pipeline(cluster=True)
    compiled = compile_text(graph, PIPELINE_NAME)
    for path in check or []:
        run_values(compiled.parameters, [], None, path)
    objects = pipeline_objects(compiled, graph.description or "", namespace)
    write_documents(output, objects, PIPELINE_NAME, sort_keys=False)
    print(f"wrote {output}: {compiled.version_name}")


def pipeline_objects(
    compiled: CompiledPipeline, description: str, namespace: str
) -> list[dict[str, Any]]:
    """Describe the pipeline and one version of it, in the order in which they must be applied.

    Built from the compiled text: the SDK's own manifests lack what is added after compiling.
    """
    graph, *platform = yaml.safe_load_all(compiled.text)
    pipeline = _object("Pipeline", compiled.name, namespace, {"description": description})
    version: dict[str, Any] = {
        "description": description,
        "pipelineName": compiled.name,
        "pipelineSpec": graph,
    }
    if platform:
        version["platformSpec"] = platform[0]
    return [pipeline, _object("PipelineVersion", compiled.version_name, namespace, version)]


def _object(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": _API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"displayName": name, **spec},
    }


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
