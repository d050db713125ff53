"""Checkpoints and models, damaged or of another run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from iceaggr.models.bundle import DOCUMENT, WEIGHTS
from tests.bad_input.case import Case, Stops
from tests.bad_input.document_cases import after, edit, the_file
from tests.bad_input.prediction_cases import predict
from tests.bad_input.scene import Scene
from tests.models.sealing import edit_sealed


def _swap_model(scene: Scene) -> None:
    """Point to a model of another project: the same network, trained on other data."""
    model = the_file(scene, "runs/*/training/model")
    other = scene.folder / "elsewhere"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    edit_sealed(other / DOCUMENT, lambda d: d["facts"].update(manifest_digest="f" * 16))
    scene.edit_document("model.json", lambda d: d.update(model_uri=other.as_uri()))


def _document(scene: Scene) -> Path:
    return the_file(scene, f"runs/*/training/model/{DOCUMENT}")


def _make_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _tear_weights(scene: Scene) -> None:
    scene.flip(the_file(scene, f"runs/*/training/model/{WEIGHTS}"))


def _retrain(**changes: Any) -> Any:
    def damage(scene: Scene) -> None:
        scene.edit_document("run.json", lambda d: d["config"]["training"].update(changes))

    return damage


TRAINED = [
    Case(
        "checkpoint-of-another-config",
        "settings changed, checkpoint of the old ones",
        "training stops and names the setting: it neither resumes nor starts over",
        _retrain(learning_rate=0.5),
        Stops("checkpoints", r"0\.0003", r"0\.5", "restore the setting"),
        enter=after("train"),
    ),
    Case(
        "training-without-end",
        "--max-train-minutes inf",
        "refused before training",
        lambda scene: None,
        Stops("max_train_minutes", "inf", "an end", "0 for no limit"),
        enter=lambda scene: scene.command("train", "--max-train-minutes", "inf"),
    ),
    Case(
        "checkpoint-damaged",
        "a tensor file of the checkpoint cut",
        "training stops and names the file",
        lambda scene: scene.cut(_newest_checkpoint(scene) / "model.safetensors"),
        Stops(r"model\.safetensors", "another hash", "a complete checkpoint", "Restore"),
        enter=after("train"),
    ),
    Case(
        "checkpoint-outside-its-folder",
        "latest.json that names `../../elsewhere`",
        "training stops: a checkpoint lies in its own folder",
        lambda scene: edit(
            the_file(scene, "runs/*/training/checkpoints/latest.json"),
            lambda d: d.update(folders=["../../elsewhere"]),
        ),
        Stops(r"latest\.json", r"\.\./\.\./elsewhere", "a complete checkpoint", "Restore"),
        enter=after("train"),
    ),
    Case(
        "checkpoint-position-impossible",
        "loader position beyond the data",
        "training stops",
        lambda scene: _move_position(scene),
        Stops("checkpoints|train split", r"-5|steps?", "checkpoint|epoch", "."),
        enter=after("train"),
    ),
    Case(
        "checkpoint-not-finite",
        "a weight of the checkpoint NaN, all hashes right",
        "training stops and names the weight",
        lambda scene: _spoil_weight(scene),
        Stops("checkpoints", "is not finite", "a checkpoint of the same model", "empty output"),
        enter=after("train"),
    ),
    Case(
        "model-damaged",
        "one bit of the weights flipped",
        "evaluation stops and names the file",
        _tear_weights,
        Stops(WEIGHTS, r"sha256 \w{16}", r"sha256 \w{16}", "Train again"),
        enter=after("evaluate"),
    ),
    Case(
        "model-of-another-project",
        "model URI of another project's model",
        "evaluation stops: it was trained on other data",
        _swap_model,
        Stops("elsewhere", "trained on f{16}", r"the manifest's \w{16}", "of one run"),
        enter=after("evaluate"),
    ),
    Case(
        "model-folder-absent",
        "model URI of an empty folder",
        "prediction stops",
        lambda scene: the_file(scene, f"runs/*/training/model/{DOCUMENT}").unlink(),
        Stops("training/model", r"no model\.json", "a folder with", "Train again"),
        enter=predict,
    ),
    Case(
        "model-settings-changed",
        "`max_doms_per_event: 2` written into model.json",
        "prediction stops: the seal of the model is broken",
        lambda scene: edit(
            _document(scene),
            lambda d: d["facts"]["experiment"]["batches"].update(max_doms_per_event=2),
        ),
        Stops(r"model\.json", "content_sha256 '", r"\w{64}", "never edited by hand"),
        enter=predict,
    ),
    Case(
        "model-without-a-seal",
        "a model as the version before saved it",
        "prediction stops and names both formats",
        lambda scene: edit(
            _document(scene), lambda d: (d.pop("content_sha256"), d.update(format_version=1))
        ),
        Stops(r"model\.json", "version 1", "version 2", "train again with this one"),
        enter=predict,
    ),
    Case(
        "model-of-newer-settings",
        "a model trained with a setting that this version does not have",
        "prediction stops and names setting and version",
        lambda scene: edit_sealed(
            _document(scene), lambda d: d["facts"]["experiment"]["batches"].update(n_new=2)
        ),
        Stops(r"model\.json facts", "saved by 'iceaggr .*'", "one of n_events", "Use the version"),
        enter=predict,
    ),
    Case(
        "model-weights-are-a-pipe",
        "weights.safetensors that is a pipe",
        "prediction stops and does not wait for it",
        lambda scene: _make_a_pipe(the_file(scene, f"runs/*/training/model/{WEIGHTS}")),
        Stops(WEIGHTS, "not a file, a device, pipe", WEIGHTS, "Train again"),
        enter=predict,
    ),
]


def _newest_checkpoint(scene: Scene) -> Path:
    latest = the_file(scene, "runs/*/training/checkpoints/latest.json")
    return latest.parent / str(json.loads(latest.read_text())["folders"][0])


def _reseal(state: Path) -> None:
    """Write the hashes of the tensors, and of the state itself, anew."""
    folder = state.parent

    def hash_again(document: dict[str, Any]) -> None:
        for name in document["files"]:
            document["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()

    edit(state, hash_again)
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    edit(folder.parent / "latest.json", lambda document: document.update(state_sha256=digest))


def _spoil_weight(scene: Scene) -> None:
    folder = _newest_checkpoint(scene)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    _reseal(folder / "state.json")


def _move_position(scene: Scene) -> None:
    """Set an impossible position and the hashes anew: only the value can tell."""
    state = _newest_checkpoint(scene) / "state.json"
    edit(state, lambda document: document["state"].update(step=-5, stopped=""))
    _reseal(state)
