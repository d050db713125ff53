"""A saved model: a folder that holds all that prediction from raw pulses needs, and no pickle.

weights.safetensors   every parameter and buffer
model.json            model configuration, normalisation, free facts, sha256; see bundle_document
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

from iceaggr.config import ExperimentConfig, ModelConfig, parse_config
from iceaggr.detector import Detector, parse_geometry
from iceaggr.errors import ModelError, NormalizationError, StorageError
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle_document import (
    DOCUMENT,
    GEOMETRY,
    REMEDY,
    WEIGHTS,
    parse_document,
    seal_of,
    sealed,
)
from iceaggr.models.hierarchical import DirectionModel, build_model
from iceaggr.normalization import Normalization, Normalizer, parse_normalization
from iceaggr.validation import first_problem
from iceaggr.verified import read_verified, sha256_of

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
