"""A saved model: a folder that holds all that prediction from raw pulses needs, and no pickle.

weights.safetensors   every parameter and buffer
model.json            model configuration, normalisation, map of kappa, free facts, sha256
geometry.csv          the detector's table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors

from iceaggr import __version__
from iceaggr.config import ExperimentConfig, ModelConfig, parse_config
from iceaggr.detector import Detector, parse_geometry
from iceaggr.errors import ConfigError, ModelError, NormalizationError, StorageError
from iceaggr.interfaces import ObjectStore
from iceaggr.models.hierarchical import DirectionModel, build_model
from iceaggr.models.kappa_map import KappaMap
from iceaggr.models.normalizer import Normalizer
from iceaggr.normalization_document import Normalization, parse_normalization
from iceaggr.validation import first_problem, read_json_object, read_verified, sha256_of, shown

# model.json of a saved model: what it holds, sealed, and its check before anything is built.
#
# Weights and geometry have a hash of their own in it; everything else is under its seal: the caps
# of an event, the split and the network decide what the weights mean.

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
    def refused(found: str) -> ModelError:
        return ModelError(
            "not the document of a saved model",
            where=where,
            found=found,
            expected=f"a JSON object with format_version, saved_by, {', '.join(_SECTIONS)}",
            remedy=REMEDY,
        )

    document = read_json_object(data, refused)
    try:
        json.dumps(document)
    except RecursionError as error:  # it can be read deeper than it can be sealed
        raise refused(str(error)) from None
    if "format_version" not in document:
        raise refused(shown(document))
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


__all__ = ["DOCUMENT", "GEOMETRY", "WEIGHTS", "LoadedModel", "load_model", "save_model"]

_UNFIT = (
    *(ValidationError, NormalizationError, SafetensorError),
    *(RuntimeError, LookupError, TypeError, ValueError, OverflowError),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict, its detector, and what was noted when it was saved.

    digest: of all that its folder holds, weights included; empty for one that was not saved
    """

    model: DirectionModel
    detector: Detector
    facts: dict[str, Any]
    digest: str = ""

    @property
    def experiment(self) -> ExperimentConfig | None:
        """Give the configuration it was trained with; None where the facts do not have it."""
        found = self.facts.get("experiment")
        return None if found is None else parse_config(found, "facts.experiment")


def save_model(
    store: ObjectStore,
    folder_uri: str,
    model: DirectionModel,
    geometry_csv: str,
    facts: Mapping[str, Any],
) -> str:
    """Write a model. facts: anything JSON can hold, such as the run and its metrics.

    model.json is written last: a folder without it is an interrupted save, and does not load.
    Returns the URI of the folder, without a trailing slash.
    Raises: DetectorError if the geometry is not valid, StorageError.
    """
    folder_uri = folder_uri.rstrip("/")
    parse_geometry(geometry_csv, where="geometry of the model")
    tensors = {name: value.detach().cpu().contiguous() for name, value in _state(model).items()}
    weights = dump_tensors(tensors)
    document = {
        "model": model.config.model_dump(),
        "normalization": json.loads(model.normalization.to_json()),
        "sha256": {
            WEIGHTS: sha256_of(weights),
            GEOMETRY: sha256_of(geometry_csv.encode()),
        },
        "facts": dict(facts),
    }
    if model.kappa_map is not None:
        document["kappa_map"] = model.kappa_map.model_dump()
    text = sealed(document)
    store.write_bytes(f"{folder_uri}/{WEIGHTS}", weights)
    store.write_bytes(f"{folder_uri}/{GEOMETRY}", geometry_csv.encode())
    store.write_bytes(f"{folder_uri}/{DOCUMENT}", text.encode())
    return folder_uri


def load_model(store: ObjectStore, folder_uri: str) -> LoadedModel:
    """Read a model, in evaluation mode, on the CPU.

    Raises: ModelError if the folder is not a saved model, damaged, changed since it was saved or of
    another version.
    """
    folder_uri = folder_uri.rstrip("/")
    document = _document(store, folder_uri)
    weights = _verified(store, folder_uri, WEIGHTS, document)
    geometry = _verified(store, folder_uri, GEOMETRY, document)
    where = f"{folder_uri}/{DOCUMENT}"
    try:
        config = ModelConfig.model_validate(document["model"])
        normalization = parse_normalization(json.dumps(document["normalization"]), where)
        _check_size(config, normalization, len(weights))
        model = build_model(config, normalization)
        model.load_state_dict(parse_tensors(weights))
        # models of before have none: their kappa is the network's own
        if document.get("kappa_map") is not None:
            model.kappa_map = KappaMap.model_validate(document["kappa_map"])
    except _UNFIT as error:
        raise ModelError(
            "saved model does not fit this version of the network",
            where=where,
            found=_words(error),
            expected="configuration, normalisation and weights of one network",
            remedy="Use the version of iceaggr that saved it, or train again",
        ) from None
    _check_numbers(model, where=f"{folder_uri}/{WEIGHTS}")
    detector = parse_geometry(geometry, where=f"{folder_uri}/{GEOMETRY}")
    return LoadedModel(model.eval(), detector, dict(document["facts"]), seal_of(document))


def _words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        if error.title == KappaMap.__name__:
            problem = first_problem(error, KappaMap)
            field = f".{problem.found_in_field}" if problem.field else ""
            return f"kappa_map{field}: {problem.expected.removeprefix('Value error, ')}"
        return f"model.{first_problem(error, ModelConfig).found_in_field}"
    if isinstance(error, NormalizationError):
        return f"{error.what}, {error.found}"
    return " ".join(str(error).split())[:300]


def _check_size(config: ModelConfig, normalization: Normalization, n_bytes: int) -> None:
    """Refuse a network larger than its weights before it takes any memory. Raises: ValueError."""
    with torch.device("meta"):
        sketched = _state(build_model(config, normalization)).values()
    needed = sum(value.numel() * value.element_size() for value in sketched)
    if needed > n_bytes:
        raise ValueError(f"a network of {needed:,} bytes, weights of {n_bytes:,}")


def _check_numbers(model: DirectionModel, where: str) -> None:
    """Refuse weights that are not finite, and a normalisation that is not the document's."""
    spoiled = [name for name, value in _state(model).items() if not value.isfinite().all()]
    if spoiled:
        raise ModelError(
            "saved model has weights that are not finite",
            where=where,
            found=", ".join(spoiled[:3]),
            expected="finite numbers",
            remedy=REMEDY,
        )
    for name, stated in Normalizer(model.normalization).named_buffers():
        carried = model.normalizer.get_buffer(name)
        if not torch.equal(carried, stated):
            raise ModelError(
                f"weights carry another normalisation than {DOCUMENT} states",
                where=where,
                found=f"{name} {carried.tolist()}",
                expected=f"{name} {stated.tolist()}",
                remedy=REMEDY,
            )


def _state(model: DirectionModel) -> Mapping[str, Any]:
    state: Mapping[str, Any] = model.state_dict()
    return state


def _document(store: ObjectStore, folder_uri: str) -> dict[str, Any]:
    where = f"{folder_uri}/{DOCUMENT}"
    if store.stat(where) is None:
        raise ModelError(
            "no saved model here",
            where=folder_uri,
            found=f"no {DOCUMENT}",
            expected=f"a folder with {DOCUMENT}, {WEIGHTS} and {GEOMETRY}",
            remedy=REMEDY,
        )
    return parse_document(store.read_bytes(where), where)


def _verified(store: ObjectStore, folder_uri: str, name: str, document: Mapping[str, Any]) -> bytes:
    where = f"{folder_uri}/{name}"
    expected = str(document["sha256"][name])
    try:
        data, found = read_verified(store, where, expected)
    except StorageError as error:
        raise ModelError(
            "saved model is incomplete",
            where=where,
            found=f"{error.what}, {error.found}",
            expected=f"{WEIGHTS} and {GEOMETRY} beside {DOCUMENT}",
            remedy=REMEDY,
        ) from None
    if found != expected:
        raise ModelError(
            "saved model is damaged",
            where=where,
            found=f"sha256 {found[:16]}",
            expected=f"sha256 {expected[:16]}",
            remedy=REMEDY,
        )
    return data
