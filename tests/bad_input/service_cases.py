"""Bad input behind a real object store and a real model registry."""

from __future__ import annotations

import mlflow
import numpy as np
import pandas as pd

from iceaggr.storage import open_store
from tests.bad_input.case import Accepts, Case, Stops
from tests.bad_input.place_cases import all_events_kept
from tests.bad_input.scene import Scene, iceaggr


class _ForeignModel(mlflow.pyfunc.PythonModel):
    """Somebody else's model."""

    def predict(self, context: object, model_input: pd.DataFrame, params: object = None) -> object:
        return np.zeros(len(model_input))


def _register_foreign_model(scene: Scene) -> None:
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(name="model", python_model=_ForeignModel())
    mlflow.register_model(logged.model_uri, "foreign-model")


def _predict_with_it(scene: Scene) -> None:
    output = str(scene.folder / "directions.parquet")
    model = "models:/foreign-model/1"
    iceaggr("predict", "--model", model, "--raw-uri", scene.raw_uri, "--output", output)


def _empty_bucket(scene: Scene) -> None:
    open_store().ensure_bucket("s3://bad-input-empty")
    scene.raw_uri = "s3://bad-input-empty/raw"


def _upload(scene: Scene) -> None:
    store, target = open_store(), "s3://bad-input/rohe Ereignisse 100 % – größer ☃"
    store.ensure_bucket(target)
    for path in sorted(scene.raw.rglob("*.*")):
        store.upload(path, f"{target}/{path.relative_to(scene.raw)}")
    scene.raw_uri = target


SERVICES = [
    Case(
        "bucket-empty",
        "an empty bucket",
        "the step stops and says what it looked for",
        _empty_bucket,
        Stops("s3://bad-input-empty/raw/train_meta", "no such object", "beside train/", "raw URI"),
    ),
    Case(
        "bucket-wrong",
        "a bucket that does not exist",
        "the step stops and names the bucket",
        lambda scene: setattr(scene, "raw_uri", "s3://bad-input-nobodys/raw"),
        Stops("s3://bad-input-nobodys", "no bucket", "a bucket of that name", "Create the bucket"),
    ),
    Case(
        "object-keys-with-spaces-and-unicode",
        "spaces, percent signs and umlauts in object keys",
        "sharded like any other",
        _upload,
        Accepts(all_events_kept),
    ),
    Case(
        "registered-model-of-another-project",
        "a registered model that iceaggr did not make",
        "prediction stops and names the model",
        _register_foreign_model,
        Stops(
            "models:/foreign-model/1", "without the tag", "iceaggr registered", "name of the model"
        ),
        enter=_predict_with_it,
    ),
]
