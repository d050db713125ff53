"""Compile the graph to KFP IR YAML."""

from __future__ import annotations

import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from components.form import DROPDOWNS, add_dropdowns
from iceaggr.config import ExperimentConfig
from iceaggr.errors import ConfigError
from iceaggr.steps.documents import holds, refuse_other_content
from iceaggr.steps.training_choices import AS_CONFIGURED

# Names: of a run, and those that a cluster or its API would refuse or take for another.

# Source: Kubernetes, "Object Names and IDs": RFC 1123 label and subdomain
_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_DNS_LABEL = re.compile(rf"(?=.{{1,63}}\Z){_LABEL}")
_DNS_SUBDOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_MAX_DISPLAY_NAME = 127
# Source: distribution/reference of the OCI registries: [domain[:port]/]path[:tag][@digest]
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?"
_PATH = r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*"
_MAX_RUN_NAME = 80
_MAX_EVENTS_NAME = 18
_IMAGE = re.compile(
    rf"({_HOST}/)?{_PATH}(/{_PATH})*(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?P<digest>@sha256:[0-9a-f]{64})?"
)


def name_run(settings: ExperimentConfig, raw_uri: str, start: str) -> str:
    """Name a run by what tells it apart: preset, events, start of the weights, day and time (UTC).

    The day has no year, so that a list of runs shows the whole name.
    """
    start = settings.training.start_from if start == AS_CONFIGURED else start
    events = re.sub(r"[^A-Za-z0-9_.-]+", "-", raw_uri.rstrip("/").rpartition("/")[2])
    started = time.strftime("%m%d-%H%M%S", time.gmtime())
    return "-".join([settings.name, events[:_MAX_EVENTS_NAME].strip("-"), start, started])


def check_run_name(name: str, where: str) -> None:
    """Check the name of a run; empty = one is made. Raises: ConfigError.

    It becomes part of file names, too.
    """
    if not name:
        return
    check_display_name(name, where)
    if len(name) > _MAX_RUN_NAME or "/" in name or name.startswith("."):
        expected = f"at most {_MAX_RUN_NAME} characters, no / and no leading dot"
        raise _refused("invalid name of a run", name, where, expected)


def check_display_name(name: str, where: str) -> None:
    """Check a name that people read: of a schedule or an experiment. Raises: ConfigError.

    The API takes an empty name for no filter, which means all. A long one would be refused or cut
    by a database: KFP keeps 127 characters of a name, MLflow 256 of an experiment.
    """
    is_long = len(name) > _MAX_DISPLAY_NAME
    if not name.strip() or name != name.strip() or not name.isprintable() or is_long:
        expected = f"1 to {_MAX_DISPLAY_NAME} printable characters, no blank at either end"
        raise _refused("invalid name", name, where, expected)


def check_namespace(name: str, where: str) -> None:
    """Check the name of a namespace; empty = none given. Raises: ConfigError."""
    if name and not _DNS_LABEL.fullmatch(name):
        expected = "at most 63 of a-z, 0-9 and -, a letter or digit at both ends"
        raise _refused("invalid name of a namespace", name, where, expected)


def check_service_account(name: str, where: str) -> None:
    """Check the name of a service account; empty = the installation's. Raises: ConfigError."""
    if name and not _DNS_SUBDOMAIN.fullmatch(name):
        expected = "at most 253 of a-z, 0-9, - and ., a letter or digit at both ends"
        raise _refused("invalid name of a service account", name, where, expected)


def check_image(image: str, where: str) -> None:
    """Check that an image reference is well formed and does not follow the newest build.

    Raises: ConfigError.
    """
    match = _IMAGE.fullmatch(image)
    if match is None:
        expected = "REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:64 hexadecimal digits"
        raise _refused("not an image reference", image, where, expected)
    tag = (match["tag"] or "").lower()
    if not match["digest"] and (not tag or tag.endswith("latest")):
        expected = "a tag of one version, such as :1.4.2, or a digest"
        raise _refused("the tag of the image names no fixed version", image, where, expected)


def _refused(what: str, name: str, where: str, expected: str) -> ConfigError:
    return ConfigError(what, where=where, found=repr(name), expected=expected)


def compile_pipeline(pipeline: Any, output: Path) -> Path:
    """Write the graph as IR YAML: pipeline, then what Kubernetes adds to it.

    Raises: ConfigError if the file name does not end in .yaml, or the file holds something else or
    cannot be written.
    """
    if output.suffix not in (".yaml", ".yml"):
        what = "the compiled pipeline must be a YAML file"
        raise _refused(what, output.name, "--output", "a name that ends in .yaml")
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
    """Give each choice a name, of layout or of ways to train: dsl.If takes one for a branch only.

    What the graph shows is changed, and no key: KFP's driver looks tasks and outputs up by keys.
    """
    components = graph.get("components", {})
    for component in components.values():
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            if key.startswith("condition-branches-"):
                branches = components[task["componentRef"]["name"]]["dag"]["tasks"].values()
                names = {branch["taskInfo"]["name"] for branch in branches}
                task["taskInfo"]["name"] = "layout" if "own-layout" in names else "training"


def _refuse_other(output: Path, name: str) -> None:
    """Replace only a compiled version of this pipeline: other YAML files have such names, too."""
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
            expected="a file in an existing folder that you may write to",
        ) from None
