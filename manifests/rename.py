"""Name image and namespace in rendered manifests: `python -m manifests.rename FILE --image I`.

Without a file it prints the image that the overlays name.

The overlays name an example image and a namespace of the runs. Users who do not edit the overlays
give both on the command line of `make manifests`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from iceaggr.errors import ConfigError
from launch.compilation import check_image, check_namespace

_IMAGE_COMPONENT = Path(__file__).parent / "image" / "kustomization.yaml"
_NAMESPACE_KEYS = ("namespace", "kubernetes.io/metadata.name", "RUN_NAMESPACE")


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


def main(arguments: list[str] | None = None) -> None:
    """Rename in place, or print the image; an error ends in one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--image", default="")
    parser.add_argument("--namespace", default="")
    given = parser.parse_args(arguments)
    if given.file is None:
        print(image_of_the_overlays())
        return
    try:
        check_namespace(given.namespace, where="--namespace")
        if given.image:
            check_image(given.image, where="--image")
        documents = list(yaml.safe_load_all(given.file.read_text(encoding="utf-8")))
        changed = renamed(documents, given.image, given.namespace)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    given.file.write_text(yaml.safe_dump_all(changed, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
