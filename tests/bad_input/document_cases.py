"""What the steps leave for each other, tampered with between two of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from iceaggr.models.bundle import DOCUMENT, WEIGHTS
from iceaggr.steps.run_folder import RunFolder
from tests.bad_input.case import Case, Stops
from tests.bad_input.place_cases import _moved_detector
from tests.bad_input.scene import Scene, iceaggr

AGAIN = "Shard the raw events again"


def _after(*commands: str) -> Any:
    return lambda scene: [scene.command(name) for name in commands]


def _the(scene: Scene, pattern: str) -> Path:
    return sorted((scene.run / "work").glob(pattern))[0]


def _edit(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _plan_changed(scene: Scene) -> None:
    """Change the plan between planning and sharding."""
    from iceaggr.config import load_config
    from iceaggr.steps.plan_shards import run_plan_shards
    from iceaggr.steps.shard_events import run_shard_events

    config = load_config(scene.write_settings())
    run = RunFolder.create(scene.folder / "other", scene.raw_uri, "", "iceaggr", config)
    [unit] = run_plan_shards(run.context(), scene.raw_uri)
    [plan] = (scene.folder / "other" / "work" / "plans").iterdir()
    _edit(plan, lambda document: document.update(labelled=False))
    run_shard_events(run.context(), unit, run.unit_manifest(0))


SHARDED = [
    Case(
        "plan-tampered",
        "plan edited between planning and sharding",
        "sharding stops: a plan is named by its content",
        lambda scene: None,
        Stops(r"plans/\w+\.json", r"content \w{16}", r"content \w{16}", "plan_shards again"),
        enter=_plan_changed,
    ),
    Case(
        "manifest-tampered",
        "a test shard called train in the manifest",
        "the next step stops: the manifest's seal is broken",
        lambda scene: scene.edit_document(
            "manifest.json",
            lambda d: [e.update(split="train") for e in d["shards"] if e["split"] == "test"],
        ),
        Stops(r"manifest\.json", "content_sha256 '", r"\w{64}", AGAIN),
        enter=_after("check"),
    ),
    Case(
        "manifest-truncated",
        "half a manifest",
        "the next step stops",
        lambda scene: scene.cut(scene.run / "manifest.json"),
        Stops(r"manifest\.json", "line|char", "a JSON object", AGAIN),
        enter=_after("check"),
    ),
    Case(
        "manifest-of-another-version",
        "manifest of format 99",
        "the next step stops",
        lambda scene: scene.edit_document("manifest.json", lambda d: d.update(format_version=99)),
        Stops(r"manifest\.json", "version 99", "version 1", AGAIN),
        enter=_after("check"),
    ),
    Case(
        "manifest-does-not-add-up",
        "a unit manifest that lost a rejected pulse",
        "`iceaggr stats` stops: in = kept + rejected no more",
        lambda scene: _unbalance(scene.run / "units" / "00000.json"),
        Stops(r"00000\.json .*batch_1", r"\d+ pulses in, \d+ kept", "in = kept", AGAIN),
        enter=_after("stats"),
    ),
    Case(
        "shard-bit-flipped",
        "one bit of a shard flipped",
        "training never sees it: the step stops and names the shard",
        lambda scene: scene.flip(_the(scene, "shards/*/train-00000.arrow"), 2000),
        Stops(r"train-00000\.arrow", r"sha256 \w{64}", r"\w{64}", "run sharding again"),
        enter=_after("check"),
    ),
    Case(
        "shard-missing",
        "a shard deleted",
        "the step stops and names the shard",
        lambda scene: _the(scene, "shards/*/train-00000.arrow").unlink(),
        Stops(r"train-00000\.arrow", "nothing at|no such|missing", r"file|object|shard", "."),
        enter=_after("check"),
    ),
    Case(
        "sketch-tampered",
        "statistics of a raw file edited",
        "`iceaggr stats` stops and names field and file",
        lambda scene: _edit(
            _the(scene, "shards/*/sketch.json"),
            lambda d: d["train"]["features"]["time_ns"].update(m2=-1.0),
        ),
        Stops(r"sketch\.json train", r"m2: -1\.0", "0 or more", AGAIN),
        enter=_after("stats"),
    ),
    Case(
        "normalization-tampered",
        "a scale of 0 in the normalisation",
        "the next step stops",
        lambda scene: scene.edit_document(
            "normalization.json", lambda d: d["time_ns"].update(scale=0)
        ),
        Stops(r"normalization\.json", r"time_ns\.scale: 0", "more than 0", "compute_statistics"),
        enter=_after("check"),
    ),
    Case(
        "run-folder-damaged",
        "run.json without a run id",
        "the command stops and names the field",
        lambda scene: scene.edit_document("run.json", lambda d: d.pop("run_id")),
        Stops(r"run\.json", "run_id: nothing", "a value", "again"),
        enter=_after("stats"),
    ),
    Case(
        "run-folder-absent",
        "--folder of no run",
        "the command stops",
        lambda scene: (scene.run / "run.json").unlink(),
        Stops("run", r"no run\.json", "a folder of", "iceaggr shard"),
        enter=_after("stats"),
    ),
]


def _unbalance(path: Path) -> None:
    """Take a pulse away and set the seal anew: only the account can tell."""
    document = json.loads(path.read_text())
    document["source_files"][0]["n_pulses_in"] += 1
    document.pop("content_sha256")
    content = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["content_sha256"] = hashlib.sha256(content.encode()).hexdigest()
    path.write_text(json.dumps(document))


def _swap_model(scene: Scene) -> None:
    """Point to a model of another project: the same network, trained on other data."""
    model = _the(scene, "runs/*/training/model")
    other = scene.folder / "elsewhere"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    _edit(other / DOCUMENT, lambda d: d["facts"].update(manifest_digest="f" * 16))
    scene.edit_document("model.json", lambda d: d.update(model_uri=other.as_uri()))


def _predict(scene: Scene) -> None:
    model = _the(scene, "runs/*/training/model").as_uri()
    output = str(scene.folder / "directions.parquet")
    iceaggr("predict", "--model", model, "--raw-uri", scene.raw_uri, "--output", output)


def _tear_weights(scene: Scene) -> None:
    scene.flip(_the(scene, f"runs/*/training/model/{WEIGHTS}"))


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
        enter=_after("train"),
    ),
    Case(
        "checkpoint-damaged",
        "a tensor file of the checkpoint cut",
        "training stops and names the file",
        lambda scene: scene.cut(_newest_checkpoint(scene) / "model.safetensors"),
        Stops(r"model\.safetensors", "another hash", "a complete checkpoint", "Restore"),
        enter=_after("train"),
    ),
    Case(
        "checkpoint-outside-its-folder",
        "latest.json that names `../../elsewhere`",
        "training stops: a checkpoint lies in its own folder",
        lambda scene: _edit(
            _the(scene, "runs/*/training/checkpoints/latest.json"),
            lambda d: d.update(folders=["../../elsewhere"]),
        ),
        Stops(r"latest\.json", r"\.\./\.\./elsewhere", "a complete checkpoint", "Restore"),
        enter=_after("train"),
    ),
    Case(
        "checkpoint-position-impossible",
        "loader position beyond the data",
        "training stops",
        lambda scene: _move_position(scene),
        Stops("checkpoints|train split", r"-5|steps?", "checkpoint|epoch", "."),
        enter=_after("train"),
    ),
    Case(
        "checkpoint-not-finite",
        "a weight of the checkpoint NaN, all hashes right",
        "training stops and names the weight",
        lambda scene: _spoil_weight(scene),
        Stops("checkpoints", "is not finite", "a checkpoint of the same model", "empty output"),
        enter=_after("train"),
    ),
    Case(
        "model-damaged",
        "one bit of the weights flipped",
        "evaluation stops and names the file",
        _tear_weights,
        Stops(WEIGHTS, r"sha256 \w{16}", r"sha256 \w{16}", "Train again"),
        enter=_after("evaluate"),
    ),
    Case(
        "model-of-another-project",
        "model URI of another project's model",
        "evaluation stops: it was trained on other data",
        _swap_model,
        Stops("elsewhere", "trained on f{16}", r"the manifest's \w{16}", "of one run"),
        enter=_after("evaluate"),
    ),
    Case(
        "model-folder-absent",
        "model URI of an empty folder",
        "prediction stops",
        lambda scene: _the(scene, f"runs/*/training/model/{DOCUMENT}").unlink(),
        Stops("training/model", r"no model\.json", "a folder with", "Train again"),
        enter=_predict,
    ),
    Case(
        "prediction-for-another-detector",
        "events of another detector than the model's",
        "prediction stops",
        _moved_detector,
        Stops(r"sensor_geometry\.csv", "200 sensors", "the 5160 sensors", "on this detector"),
        enter=_predict,
    ),
]


def _newest_checkpoint(scene: Scene) -> Path:
    latest = _the(scene, "runs/*/training/checkpoints/latest.json")
    return latest.parent / str(json.loads(latest.read_text())["folders"][0])


def _reseal(state: Path) -> None:
    """Write the hashes of the tensors, and of the state itself, anew."""
    folder = state.parent

    def hash_again(document: dict[str, Any]) -> None:
        for name in document["files"]:
            document["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()

    _edit(state, hash_again)
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    _edit(folder.parent / "latest.json", lambda document: document.update(state_sha256=digest))


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
    _edit(state, lambda document: document["state"].update(step=-5, stopped=""))
    _reseal(state)
