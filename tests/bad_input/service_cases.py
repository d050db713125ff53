"""Bad input behind a real object store and a real model registry."""

from __future__ import annotations

import shutil
import uuid

import mlflow
import numpy as np
import pandas as pd

from iceaggr.storage import open_store
from tests.bad_input.case import Accepts, Case, Stops
from tests.bad_input.document_cases import the_file
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


def _evaluate(scene: Scene) -> None:
    """Shard, train and evaluate in a tracked run."""
    scene.settings["promotion"] = {"model_name": f"bad-input-{uuid.uuid4().hex[:8]}"}
    scene.shard_and_count()
    scene.command("train")
    scene.command("evaluate")


def _train_anew(scene: Scene) -> None:
    """Train another model in the place of the evaluated one."""
    _evaluate(scene)
    shutil.rmtree(the_file(scene, "runs/*/training"))
    scene.edit_document("run.json", lambda d: d["config"]["training"].update(seed=7))
    scene.command("train")


def _improve_table(scene: Scene) -> None:
    """Make the events of the table better than they were."""
    _evaluate(scene)
    path = the_file(scene, "runs/*/evaluation/events.parquet")
    events = pd.read_parquet(path)
    events["opening_angle_deg"] /= 2
    events.to_parquet(path, index=False)


def _registered_nothing(scene: Scene) -> None:
    """Promote; whatever comes of it, no version may be there."""
    try:
        scene.command("promote")
    finally:
        name = scene.settings["promotion"]["model_name"]
        assert not mlflow.MlflowClient().search_model_versions(f"name='{name}'")


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
    Case(
        "evaluation-of-another-model",
        "trained anew after the evaluation",
        "promotion stops: the figures are those of another model; nothing is registered",
        _train_anew,
        Stops("runs/.*/model", r"model \w{16} was", r"model \w{16}, which", "evaluate_model again"),
        enter=_registered_nothing,
    ),
    Case(
        "evaluation-table-tampered",
        "table of test events changed after the evaluation",
        "promotion stops and names the table; nothing is registered",
        _improve_table,
        Stops(r"events\.parquet", r"sha256 \w{16}", r"sha256 \w{16}", "evaluate_model again"),
        enter=_registered_nothing,
    ),
]
