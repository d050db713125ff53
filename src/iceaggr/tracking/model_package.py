"""Packing a saved model as an MLflow pyfunc: code and weights in one folder, no pickle."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import iceaggr
from iceaggr.errors import TrackingError
from iceaggr.events.schema import PULSE_COLUMNS
from iceaggr.interfaces import ObjectStore
from iceaggr.models.bundle import DOCUMENT, GEOMETRY, WEIGHTS

BUNDLE = "model"
"""Name of the saved model's folder among the artifacts of the MLflow model."""

_OUTPUT = {"event_id": DataType.long, **dict.fromkeys(("azimuth", "zenith", "kappa"), "double")}
_SERVED = Path(__file__).with_name("pyfunc_model.py")


def signature() -> ModelSignature:
    """Describe input and output; times in ns, charges in photo-electrons, angles in radians.

    The input has names and no types: MLflow's server would cast each column to its type in silence,
    time 5.5 to 5 and flag 2 to True. The model looks at every value itself. CSV, which the server
    reads with types alone, is not taken for that.
    """
    inputs = Schema([ColSpec(AnyType(), name) for name in PULSE_COLUMNS])
    return ModelSignature(inputs, Schema([ColSpec(kind, name) for name, kind in _OUTPUT.items()]))


def input_example() -> pd.DataFrame:
    """Make up two small events, a few pulses along one string."""
    n_pulses = 12
    return pd.DataFrame(
        {
            "event_id": np.repeat(np.array([1, 2], np.int64), n_pulses // 2),
            "sensor_id": np.arange(n_pulses, dtype=np.int64) % 6 + 20,
            "time": np.arange(n_pulses, dtype=np.int64) % 6 * 60 + 9_800,
            "charge": np.linspace(0.5, 2.0, n_pulses),
            "auxiliary": np.arange(n_pulses) % 3 == 0,
        }
    )


def requirements() -> list[str]:
    """Pin the packages that prediction imports as installed: MLflow neither guesses nor asks."""
    found = _imports()
    names = {name.partition(".")[0] for name in found.badmodules} - {"iceaggr", "__main__"}
    of = packages_distributions()
    # several packages may bring parts of one name: the one of that name needs the others
    packages = {
        name if name in of[name] else of[name][0].lower()
        for name in names - sys.stdlib_module_names
        if name in of
    }
    return [f"{name}=={version(name).partition('+')[0]}" for name in sorted(packages)]


def copy_code(into: Path) -> None:
    """Copy the files of iceaggr that prediction imports, and no other. into: a new folder."""
    source = Path(iceaggr.__file__).parent
    for name, module in _imports().modules.items():
        if name.partition(".")[0] == "iceaggr":
            path = Path(str(getattr(module, "__file__", "")))
            target = into / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


@cache
def _imports() -> ModuleFinder:
    """Follow the imports of the served model within iceaggr; all others it counts as missing."""
    finder = ModuleFinder(path=[str(Path(iceaggr.__file__).parent.parent)])
    finder.run_script(str(_SERVED))
    return finder


def fetch_bundle(store: ObjectStore, folder_uri: str, into: Path) -> Path:
    """Copy a saved model from storage to a local folder. Raises: StorageError."""
    into.mkdir(parents=True)
    for name in (WEIGHTS, GEOMETRY, DOCUMENT):
        store.download(f"{folder_uri.rstrip('/')}/{name}", into / name)
    return into


def build_package(bundle: Path, target: Path, identity: Mapping[str, Any]) -> None:
    """Write an MLflow model folder, then load it and predict its example.

    bundle: local folder of the saved model. identity: run_id, model_id and artifact_path of MLflow.
    Raises: TrackingError if the finished model cannot predict.
    """
    code = target.with_name(f"{target.name}-code") / "iceaggr"
    copy_code(code)
    mlflow.pyfunc.save_model(
        path=str(target),
        python_model=str(_SERVED),
        artifacts={BUNDLE: str(bundle)},
        code_paths=[str(code)],
        signature=signature(),
        input_example=input_example(),
        pip_requirements=requirements(),
        mlflow_model=Model(**identity),
    )
    _check(target)


def _check(target: Path) -> None:
    example = input_example()
    try:
        answer = mlflow.pyfunc.load_model(str(target)).predict(example)
    except Exception as error:
        raise TrackingError(
            "packed model cannot predict its own example",
            where=str(target),
            found=" ".join(f"{type(error).__name__}: {error}".split())[:400],
            expected="a direction for each event",
            remedy="Nothing was registered; correct the saved model",
        ) from error
    expected = example["event_id"].nunique()
    if list(answer.columns) != list(_OUTPUT) or len(answer) != expected:
        raise TrackingError(
            "packed model predicts something else",
            where=str(target),
            found=f"{len(answer)} rows of {list(answer.columns)}",
            expected=f"{expected} rows of {list(_OUTPUT)}",
            remedy="Nothing was registered; correct the saved model",
        )
