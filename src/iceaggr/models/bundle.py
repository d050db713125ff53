"""A saved model: a folder that holds all that prediction from raw pulses needs, and no pickle.

weights.safetensors   every parameter and buffer
model.json            format version, model configuration, normalisation, free facts, sha256
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

from iceaggr.config import ModelConfig
from iceaggr.detector import Detector, parse_geometry
from iceaggr.errors import ModelError, NormalizationError, StorageError
from iceaggr.interfaces import ObjectStore
from iceaggr.models.hierarchical import DirectionModel, build_model
from iceaggr.normalization import Normalization, Normalizer, parse_normalization
from iceaggr.validation import shown
from iceaggr.verified import read_verified, sha256_of

FORMAT_VERSION = 1
WEIGHTS, DOCUMENT, GEOMETRY = "weights.safetensors", "model.json", "geometry.csv"
_UNFIT = (
    *(ValidationError, NormalizationError, SafetensorError),
    *(RuntimeError, LookupError, TypeError, ValueError, OverflowError),
)
_REMEDY = "Train again, or give the folder of another saved model"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict, its detector, and what was noted when it was saved."""

    model: DirectionModel
    detector: Detector
    facts: dict[str, Any]


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
        "format_version": FORMAT_VERSION,
        "model": model.config.model_dump(),
        "normalization": json.loads(model.normalization.to_json()),
        "sha256": {
            WEIGHTS: sha256_of(weights),
            GEOMETRY: sha256_of(geometry_csv.encode()),
        },
        "facts": dict(facts),
    }
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    store.write_bytes(f"{folder_uri}/{WEIGHTS}", weights)
    store.write_bytes(f"{folder_uri}/{GEOMETRY}", geometry_csv.encode())
    store.write_bytes(f"{folder_uri}/{DOCUMENT}", text.encode())
    return folder_uri


def load_model(store: ObjectStore, folder_uri: str) -> LoadedModel:
    """Read a model, in evaluation mode, on the CPU.

    Raises: ModelError if the folder is not a saved model, damaged or of another format version.
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
    except _UNFIT as error:
        raise ModelError(
            "saved model does not fit this version of the network",
            where=where,
            found=" ".join(f"{type(error).__name__}: {error}".split())[:300],
            expected="configuration, normalisation and weights of one network",
            remedy="Use the version of iceaggr that saved it, or train again",
        ) from None
    _check_numbers(model, where=f"{folder_uri}/{WEIGHTS}")
    detector = parse_geometry(geometry, where=f"{folder_uri}/{GEOMETRY}")
    return LoadedModel(model.eval(), detector, dict(document.get("facts", {})))


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
            remedy=_REMEDY,
        )
    for name, stated in Normalizer(model.normalization).named_buffers():
        carried = model.normalizer.get_buffer(name)
        if not torch.equal(carried, stated):
            raise ModelError(
                f"weights carry another normalisation than {DOCUMENT} states",
                where=where,
                found=f"{name} {carried.tolist()}",
                expected=f"{name} {stated.tolist()}",
                remedy=_REMEDY,
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
            remedy=_REMEDY,
        )
    try:
        document = json.loads(store.read_bytes(where))
        version = document["format_version"]
        listed = set(document["sha256"])
        dict(document.get("facts", {}))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            "not the document of a saved model",
            where=where,
            found=f"{type(error).__name__}: {error}"[:300],
            expected="a JSON object with format_version, model, normalization, sha256, facts",
            remedy=_REMEDY,
        ) from None
    if version != FORMAT_VERSION or listed != {WEIGHTS, GEOMETRY}:
        raise ModelError(
            "saved model of another format",
            where=where,
            found=f"version {shown(version)} of {', '.join(sorted(map(str, listed)))}",
            expected=f"version {FORMAT_VERSION} of {GEOMETRY}, {WEIGHTS}",
            remedy="Use the version of iceaggr that saved it",
        )
    loaded: dict[str, Any] = document
    return loaded


def _verified(store: ObjectStore, folder_uri: str, name: str, document: Mapping[str, Any]) -> bytes:
    where = f"{folder_uri}/{name}"
    expected = str(document["sha256"][name])
    try:
        data, found = read_verified(store, where, expected)
    except StorageError as error:
        raise ModelError(
            "saved model is incomplete",
            where=where,
            found=error.what,
            expected=f"{WEIGHTS} and {GEOMETRY} beside {DOCUMENT}",
            remedy=_REMEDY,
        ) from None
    if found != expected:
        raise ModelError(
            "saved model is damaged",
            where=where,
            found=f"sha256 {found[:16]}",
            expected=f"sha256 {expected[:16]}",
            remedy=_REMEDY,
        )
    return data
