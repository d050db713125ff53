"""What the steps leave for each other, tampered with between two of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from iceaggr.shards.manifest import parse_manifest
from iceaggr.steps.run_folder import RunFolder
from tests.bad_input.case import Case, Stops
from tests.bad_input.place_cases import move_a_sensor
from tests.bad_input.scene import Scene

AGAIN = "Shard the raw events again"


def after(*commands: str) -> Any:
    """Give these commands once the damage is done."""
    return lambda scene: [scene.command(name) for name in commands]


def the_file(scene: Scene, pattern: str) -> Path:
    """Find the first file of a run's storage that matches."""
    return sorted((scene.run / "work").glob(pattern))[0]


def edit(path: Path, change: Any) -> None:
    """Change a JSON document."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def _plan_changed(scene: Scene, **change: object) -> None:
    """Change the plan between planning and sharding."""
    from iceaggr.config import load_config
    from iceaggr.steps.plan_shards import run_plan_shards, run_shard_events

    config = load_config(scene.write_settings())
    run = RunFolder.create(scene.folder / "other", scene.raw_uri, "", "iceaggr", config)
    [unit] = run_plan_shards(run.context(), scene.raw_uri)
    [plan] = (scene.folder / "other" / "work" / "plans").iterdir()
    edit(plan, lambda document: document.update(change))
    run_shard_events(run.context(), unit, run.unit_manifest(0))


SHARDED = [
    Case(
        "plan-tampered",
        "plan edited between planning and sharding",
        "sharding stops: a plan is named by its content",
        lambda scene: None,
        Stops(r"plans/\w+\.json", r"content \w{16}", r"content \w{16}", "plan_shards again"),
        enter=lambda scene: _plan_changed(scene, labelled=False),
    ),
    Case(
        "plan-of-another-version",
        "plan of the version before",
        "sharding stops and names both versions",
        lambda scene: None,
        Stops(r"plans/\w+\.json", "version 1", "version 2", "plan_shards again with this version"),
        enter=lambda scene: _plan_changed(scene, plan_version=1),
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
        enter=after("check"),
    ),
    Case(
        "manifest-truncated",
        "half a manifest",
        "the next step stops",
        lambda scene: scene.cut(scene.run / "manifest.json"),
        Stops(r"manifest\.json", "line|char", "a JSON object", AGAIN),
        enter=after("check"),
    ),
    Case(
        "manifest-of-another-version",
        "manifest of format 99",
        "the next step stops",
        lambda scene: scene.edit_document("manifest.json", lambda d: d.update(format_version=99)),
        Stops(r"manifest\.json", "version 99", "version 3", AGAIN),
        enter=after("check"),
    ),
    Case(
        "manifest-does-not-add-up",
        "a unit manifest that lost a rejected pulse",
        "`iceaggr stats` stops: in = kept + rejected no more",
        lambda scene: _unbalance(scene.run / "units" / "00000.json"),
        Stops(r"00000\.json .*batch_1", r"\d+ pulses in, \d+ kept", "in = kept", AGAIN),
        enter=after("stats"),
    ),
    Case(
        "geometry-changed-after-sharding",
        "geometry file changed between sharding and training",
        "training stops: the manifest holds the digest of the geometry",
        move_a_sensor,
        Stops(r"sensor_geometry\.csv", r"digest \w{16}", r"digest \w{16}, as", "shard again"),
        enter=after("train"),
    ),
    Case(
        "unit-manifest-is-a-folder",
        "a folder in the place of a unit manifest",
        "`iceaggr stats` stops and names it",
        lambda scene: _make_a_folder(scene.run / "units" / "00000.json"),
        Stops(r"units/00000\.json", "a folder", "the document of an earlier step", AGAIN),
        enter=after("stats"),
    ),
    Case(
        "unit-manifest-missing",
        "a unit manifest deleted, or sharding ended before it was written",
        "`iceaggr stats` stops and says how many work units and events are missing",
        lambda scene: (scene.run / "units" / "00000.json").unlink(),
        Stops(
            r"plans/\w+\.json",
            "manifests of 0 work units",
            r"all 1 that were planned; missing are 0:\d with \d+ events of batch_1",
            "the same `iceaggr shard` command",
        ),
        enter=after("stats"),
    ),
    Case(
        "unit-manifest-of-another-plan",
        "a unit manifest of a raw file that was not planned",
        "`iceaggr stats` stops and names the file",
        lambda scene: _claim_another_file(scene.run / "units"),
        Stops(r"batch_99\.parquet", "tag e", "only the raw files of the plan", AGAIN),
        enter=after("stats"),
    ),
    Case(
        "work-units-missing",
        "the list of work units deleted",
        "`iceaggr stats` stops: nobody can tell whether all is there",
        lambda scene: the_file(scene, "runs/*/work_units.json").unlink(),
        Stops(r"work_units\.json", "no such object", "that plan_shards wrote", AGAIN),
        enter=after("stats"),
    ),
    Case(
        "step-lock-is-a-pipe",
        "step.lock that is a pipe",
        "the command stops and does not wait for it",
        lambda scene: _make_a_pipe(scene.run / "step.lock"),
        Stops(r"step\.lock", "a device, pipe or socket", "a regular file", "Remove"),
        enter=after("stats"),
    ),
    Case(
        "step-lock-is-a-folder",
        "step.lock that is a folder",
        "the command stops and names it",
        lambda scene: _make_a_folder(scene.run / "step.lock"),
        Stops(r"step\.lock", "Is a directory", "a regular file", "Remove"),
        enter=after("stats"),
    ),
    Case(
        "run-folder-of-another-run",
        "`iceaggr shard` over a run of other settings",
        "refused: every setting that differs is named",
        lambda scene: scene.edit_document("run.json", lambda d: d.update(raw_uri="file:///other")),
        Stops(r"run\.json", "^raw_uri 'file:///other'$", "raw_uri 'file:///", "another --folder"),
        enter=Scene.shard,
    ),
    Case(
        "shard-bit-flipped",
        "one bit of a shard flipped",
        "training never sees it: the step stops and names the shard",
        lambda scene: scene.flip(the_file(scene, "shards/*/train-00000.arrow"), 2000),
        Stops(r"train-00000\.arrow", r"blake3 \w{64}", r"\w{64}", "run sharding again"),
        enter=after("check"),
    ),
    Case(
        "shard-missing",
        "a shard deleted",
        "the step stops and names the shard",
        lambda scene: the_file(scene, "shards/*/train-00000.arrow").unlink(),
        Stops(r"train-00000\.arrow", "nothing at|no such|missing", r"file|object|shard", "."),
        enter=after("check"),
    ),
    Case(
        "sketch-tampered",
        "statistics of a raw file edited",
        "`iceaggr stats` stops and names field and file",
        lambda scene: edit(
            the_file(scene, "shards/*/sketch.json"),
            lambda d: d["train"]["features"]["time_ns"].update(m2=-1.0),
        ),
        Stops(r"sketch\.json train", r"m2: -1\.0", "0 or more", AGAIN),
        enter=after("stats"),
    ),
    Case(
        "normalization-tampered",
        "a scale of 0 in the normalisation",
        "the next step stops",
        lambda scene: scene.edit_document(
            "normalization.json", lambda d: d["time_ns"].update(scale=0)
        ),
        Stops(r"normalization\.json", r"time_ns\.scale: 0", "more than 0", "compute_statistics"),
        enter=after("check"),
    ),
    Case(
        "cache-folder-is-a-file",
        "`batches.cache_folder` that is a file",
        "the step stops before it reads a shard, and names the setting",
        lambda scene: scene.edit_document(
            "run.json", lambda d: d["config"]["batches"].update(cache_folder=str(scene.geometry))
        ),
        Stops(
            r"batches\.cache_folder .*sensor_geometry\.csv",
            "File exists",
            "a folder, or the name of a new one",
            r"another batches\.cache_folder",
        ),
        enter=after("check"),
    ),
    Case(
        "run-folder-damaged",
        "run.json without a run id",
        "the command stops and names the field",
        lambda scene: scene.edit_document("run.json", lambda d: d.pop("run_id")),
        Stops(r"run\.json", "run_id: nothing", "a value", "again"),
        enter=after("stats"),
    ),
    Case(
        "run-folder-absent",
        "--folder of no run",
        "the command stops",
        lambda scene: (scene.run / "run.json").unlink(),
        Stops("run", r"no run\.json", "a folder of", "iceaggr shard"),
        enter=after("stats"),
    ),
]


def _make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _claim_another_file(units: Path) -> None:
    """Add the manifest of a unit whose raw file the plan does not have, under a sound seal."""
    manifest = parse_manifest((units / "00000.json").read_bytes(), "unit")
    empty: dict[str, Any] = dict.fromkeys(
        ("n_events_in", "n_events_kept", "n_pulses_in", "n_pulses_kept"), 0
    )
    empty |= {"rejected_events": {}, "rejected_pulses": {}}
    empty |= {"uri": "file:///batch_99.parquet", "etag": "e"}
    source = manifest.source_files[0].model_copy(update=empty)
    other = manifest.model_copy(update={"source_files": (source,), "shards": ()})
    (units / "00001.json").write_text(other.to_json())


def _unbalance(path: Path) -> None:
    """Take a pulse away and set the seal anew: only the account can tell."""
    document = json.loads(path.read_text(encoding="utf-8"))
    document["source_files"][0]["n_pulses_in"] += 1
    document.pop("content_sha256")
    content = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["content_sha256"] = hashlib.sha256(content.encode()).hexdigest()
    path.write_text(json.dumps(document), encoding="utf-8")
