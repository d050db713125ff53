"""model.json of a saved model: what it holds, sealed, and its check before anything is built.

Weights and geometry have a hash of their own in it; everything else is under its seal: the caps of
an event, the split and the network decide what the weights mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from iceaggr import __version__
from iceaggr.config import parse_config
from iceaggr.errors import ConfigError, ModelError
from iceaggr.validation import shown
from iceaggr.verified import sha256_of

FORMAT_VERSION = 2
WEIGHTS, DOCUMENT, GEOMETRY = "weights.safetensors", "model.json", "geometry.csv"
REMEDY = "Train again, or give the folder of another saved model"
_SEAL = "content_sha256"
_SECTIONS = ("facts", "model", "normalization", "sha256")


def sealed(document: Mapping[str, Any]) -> str:
    """Write model.json: format version, the version of iceaggr, the sections given, their seal."""
    whole = {"format_version": FORMAT_VERSION, "saved_by": f"iceaggr {__version__}", **document}
    plain = json.loads(json.dumps(whole, allow_nan=False))
    return json.dumps(plain | {_SEAL: seal_of(plain)}, indent=1, sort_keys=True)


def parse_document(data: bytes, where: str) -> dict[str, Any]:
    """Read model.json.

    Raises: ModelError if it is none, of another format version, changed since it was saved, or if
    the model was trained with a configuration that this version does not know.
    """
    document = _json_object(data, where)
    _check_version(document, where)
    found = document.pop(_SEAL, None)
    if found != seal_of(document):
        raise ModelError(
            "saved model was changed since it was saved",
            where=where,
            found=f"{_SEAL} {shown(found)}",
            expected=seal_of(document),
            remedy=f"{REMEDY}; {DOCUMENT} is never edited by hand",
        )
    _check_sections(document, where)
    _check_experiment(document, where)
    return document


def seal_of(document: Mapping[str, Any]) -> str:
    """Hash what is under the seal, weights and geometry by their hashes: the model's digest."""
    return sha256_of(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def _json_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
        json.dumps(document)
    except (ValueError, RecursionError) as error:
        document = str(error)
    if not isinstance(document, dict) or "format_version" not in document:
        raise ModelError(
            "not the document of a saved model",
            where=where,
            found=shown(document),
            expected=f"a JSON object with format_version, saved_by, {', '.join(_SECTIONS)}",
            remedy=REMEDY,
        )
    return document


def _check_version(document: Mapping[str, Any], where: str) -> None:
    version = document["format_version"]
    # True and 1.0 equal 1 in Python
    if type(version) is not int or version != FORMAT_VERSION:
        saved_by = document.get("saved_by")
        raise ModelError(
            "saved model of another format",
            where=where,
            found=f"version {shown(version)}" + (f" by {shown(saved_by)}" if saved_by else ""),
            expected=f"version {FORMAT_VERSION}",
            remedy="Use the version of iceaggr that saved it, or train again with this one, from"
            " scratch and under another promotion.model_name if it is the champion",
        )


def _check_sections(document: Mapping[str, Any], where: str) -> None:
    lacking = [name for name in _SECTIONS if not isinstance(document.get(name), dict)]
    listed = {} if "sha256" in lacking else document["sha256"]
    if lacking or set(listed) != {WEIGHTS, GEOMETRY}:
        raise ModelError(
            "not the document of a saved model",
            where=where,
            found=f"no {', '.join(lacking)}" if lacking else f"sha256 of {shown(list(listed))}",
            expected=f"{', '.join(_SECTIONS)}; sha256 of {GEOMETRY}, {WEIGHTS}",
            remedy=REMEDY,
        )


def _check_experiment(document: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration of another version; a model without one is the callers' matter."""
    if "experiment" not in document["facts"]:
        return
    try:
        parse_config(document["facts"]["experiment"])
    except ConfigError as error:
        saved_by = shown(document.get("saved_by"))
        raise ModelError(
            f"saved model was trained with settings that this version does not know: {error.what}",
            where=f"{where} facts.experiment",
            found=f"{error.found}, saved by {saved_by}",
            expected=f"{error.expected}, as in iceaggr {__version__}",
            remedy="Use the version of iceaggr that saved it, or train again",
        ) from None
