"""Where the events lie: folders, names, times; and the geometry of the detector."""

from __future__ import annotations

import os
import shutil

from iceaggr.detector import icecube86
from iceaggr.steps.plan_shards import run_plan_shards, run_shard_events
from iceaggr.steps.run_folder import RunFolder
from tests.bad_input.case import Accepts, Case, Quarantines, Stops
from tests.bad_input.scene import Scene, iceaggr

GEOMETRY = r"sensor_geometry\.csv"
FORMAT = r"docs/data_formats\.md"


def _move(scene: Scene, name: str) -> None:
    target = scene.folder / name
    shutil.move(scene.raw, target)
    scene.raw_uri = target.as_uri()


def all_events_kept(scene: Scene) -> None:
    assert sum(source.n_events_kept for source in scene.manifest().source_files) == 80


def _set_times(scene: Scene, seconds: int) -> None:
    for path in [scene.meta, *scene.raw.rglob("*.parquet")]:
        os.utime(path, (seconds, seconds))


def _plan_change_shard(scene: Scene) -> None:
    """Plan, put another file in place with an older time, shard."""
    from iceaggr.config import load_config

    config = load_config(scene.write_settings())
    run = RunFolder.create(scene.run, scene.raw_uri, "", "iceaggr", config)
    [unit] = run_plan_shards(run.context(), scene.raw_uri)
    scene.change_pulses(lambda frame: frame.assign(charge=2 * frame["charge"]))
    os.utime(scene.batch(), (1, 1))
    run_shard_events(run.context(), unit, run.unit_manifest(0))


def _shard(scene: Scene, *options: str) -> None:
    iceaggr("shard", "--raw-uri", scene.raw_uri, *options)


def _uri(uri: str) -> object:
    return lambda scene: setattr(scene, "raw_uri", uri)


PLACES = [
    Case(
        "folder-empty",
        "raw folder (or bucket) without objects",
        "the step stops and says what it looked for",
        lambda scene: (shutil.rmtree(scene.raw), scene.raw.mkdir()),
        Stops(r"train_meta\.parquet", "no such object", "beside train/batch_N", "Check the raw"),
    ),
    Case(
        "folder-without-batches",
        "meta file alone, no batch file",
        "the step stops",
        lambda scene: shutil.rmtree(scene.raw / "train"),
        Stops("raw/train/", r"no object named batch_N", "at least one", "Check the raw URI"),
    ),
    Case(
        "uri-without-scheme",
        "a path where a URI belongs",
        "the step stops and writes the URI",
        _uri("/data/raw"),
        Stops("raw", "'/data/raw", "file:///absolute/path", "Write file:///data/raw"),
    ),
    Case(
        "uri-with-a-secret",
        "access key and secret in the URI",
        "refused before anything is written, and not quoted",
        _uri("s3://AKIACANARY:canary/secret@bucket/raw"),
        Stops("^raw_uri$", r"^'s3://\*\*\*@bucket/raw'$", "s3://bucket/key", "AWS_SECRET_ACCESS"),
    ),
    Case(
        "run-folder-among-raw-events",
        "--folder that is the raw folder",
        "refused before anything is written: raw events are never written to",
        lambda scene: None,
        Stops("^--folder$", "/raw in file:.*/raw$", "outside the raw folder", "another place"),
        enter=lambda scene: _shard(scene, "--folder", str(scene.raw)),
    ),
    Case(
        "work-among-raw-events",
        "--work-uri below the raw folder, through a link",
        "refused before anything is written: raw events are never written to",
        lambda scene: (scene.folder / "link").symlink_to(scene.raw / "train"),
        Stops("^work_uri$", "/link/work in file:.*/raw$", "outside the raw folder", "another"),
        enter=lambda scene: _shard(
            scene,
            *("--folder", str(scene.run), "--work-uri", f"{scene.folder.as_uri()}/link/work"),
        ),
    ),
    Case(
        "keys-with-spaces-and-unicode",
        "spaces, percent signs and umlauts in names",
        "sharded like any other",
        lambda scene: _move(scene, "rohe Ereignisse 100 % – größer ☃"),
        Accepts(all_events_kept),
    ),
    Case(
        "times-in-the-future",
        "raw files dated 2100: a clock that is wrong",
        "sharded: tags are compared for equality, never for order",
        lambda scene: _set_times(scene, 4_102_444_800),
        Accepts(all_events_kept),
    ),
    Case(
        "file-replaced-with-older-time",
        "raw file exchanged after planning, dated 1970",
        "sharding stops: the file is not the planned one",
        lambda scene: None,
        Stops(r"batch_1\.parquet", "tag .*, .* bytes", "tag .*, .* bytes", "plan_shards again"),
        enter=_plan_change_shard,
    ),
]


def _drop_sensors(lines: list[str]) -> None:
    """Leave out 30 sensors, some of which the sound events hit."""
    del lines[1 + 100 : 1 + 130]


def _n_pulses_on(first: int, stop: int) -> int:
    import tempfile
    from pathlib import Path

    import pandas as pd

    from tests.bad_input.sound import write_sound

    with tempfile.TemporaryDirectory() as folder:
        write_sound(Path(folder))
        files = sorted(Path(folder, "train").glob("*.parquet"))
        sensors = pd.concat([pd.read_parquet(file)["sensor_id"] for file in files])
    return int(sensors.between(first, stop - 1).sum())


def move_a_sensor(scene: Scene) -> None:
    scene.edit_geometry(lambda lines: lines.__setitem__(5, "4,1,2,3"))


def moved_detector(scene: Scene) -> None:
    table = icecube86()
    rows = [f"{i},{x},{y},{z}" for i, (x, y, z) in enumerate(table.xyz_m[:200].tolist())]
    scene.geometry.write_text("sensor_id,x,y,z\n" + "\n".join(rows) + "\n")


def _in_kilometres(lines: list[str]) -> None:
    for row, line in enumerate(lines[1:], 1):
        cells = line.split(",")
        lines[row] = ",".join([cells[0], *(str(float(cell) / 1000) for cell in cells[1:4])])
    lines[0] = "sensor_id,x,y,z"


GEOMETRIES = [
    Case(
        "geometry-without-column",
        "geometry without `z`",
        "the step stops and lists the columns found",
        lambda s: s.edit_geometry(
            lambda lines: lines.__setitem__(
                slice(None), [",".join(line.split(",")[:3]) for line in lines]
            )
        ),
        Stops(GEOMETRY, "'sensor_id', 'x', 'y'", "sensor_id, x, y, z", FORMAT),
    ),
    Case(
        "geometry-not-csv",
        "geometry that is no text",
        "the step stops",
        lambda scene: scene.geometry.write_bytes(b"\xff\xfe\x00\x01" * 20),
        Stops(GEOMETRY, "codec can't decode", "a CSV with sensor_id, x, y, z", FORMAT),
    ),
    Case(
        "geometry-is-folder",
        "a folder where the geometry belongs",
        "the step stops: IceCube-86 is not assumed",
        lambda scene: (scene.geometry.unlink(), scene.geometry.mkdir()),
        Stops(GEOMETRY, "a folder", "a file sensor_geometry", "move it out"),
    ),
    Case(
        "geometry-missing",
        "no geometry, sensor ids from 0 on",
        "the step stops: IceCube-86 is not assumed",
        lambda scene: scene.geometry.unlink(),
        Stops(GEOMETRY, "no such file", "the sensor table", "data.detector: icecube86"),
    ),
    Case(
        "geometry-in-other-letters",
        "geometry called `Sensor_Geometry.csv`",
        "the step stops: IceCube-86 is not assumed",
        lambda scene: scene.geometry.rename(scene.raw / "Sensor_Geometry.csv"),
        Stops(r"Sensor_Geometry\.csv", "Sensor_Geometry", "a file sensor_geometry", "Rename"),
    ),
    Case(
        "source-notes-no-sentences",
        "`source_notes.json` that is an object",
        "the step stops: what the source lacks would not be told",
        lambda scene: (scene.raw / "source_notes.json").write_text('{"a": 1}'),
        Stops(r"source_notes\.json", r"\{'a': 1\}", "a sentence", "Convert the source again"),
    ),
    Case(
        "geometry-empty",
        "geometry with a header only",
        "the step stops",
        lambda scene: scene.geometry.write_text("sensor_id,x,y,z\n"),
        Stops(GEOMETRY, "no row", "at least one row", FORMAT),
    ),
    Case(
        "geometry-row-missing",
        "30 sensors missing in the geometry",
        "their pulses are rejected as `sensor_not_in_geometry`",
        lambda scene: scene.edit_geometry(_drop_sensors),
        Quarantines(pulses={"sensor_not_in_geometry": _n_pulses_on(100, 130)}),
    ),
    Case(
        "geometry-row-twice",
        "a sensor twice in the geometry",
        "the step stops and names the sensor",
        lambda scene: scene.edit_geometry(lambda lines: lines.append(lines[8])),
        Stops(GEOMETRY, "sensor_id 7 2 times", "one row per sensor", "Remove the rows"),
    ),
    Case(
        "geometry-not-finite",
        "a position that is NaN",
        "the step stops and names line and column",
        lambda scene: scene.edit_geometry(lambda lines: lines.__setitem__(3, "2,1.5,nan,3")),
        Stops(GEOMETRY + " line 4", "'nan'", "metres within 1000 km", FORMAT),
    ),
    Case(
        "geometry-id-not-whole",
        "sensor_id 2.5",
        "the step stops and names line and value",
        lambda scene: scene.edit_geometry(lambda lines: lines.__setitem__(3, "2.5,1,2,3")),
        Stops(GEOMETRY + " line 4", r"'2\.5'", "a whole number", FORMAT),
    ),
    Case(
        "geometry-row-broken",
        "a row with a cell too many",
        "the step stops and names the line",
        lambda scene: scene.edit_geometry(lambda lines: lines.__setitem__(3, "2,1,2,3,4")),
        Stops(GEOMETRY + " line 4", "5 cells", "4 as in the header", FORMAT),
    ),
    Case(
        "geometry-in-kilometres",
        "positions in kilometres",
        "the step stops and names the extent",
        lambda scene: scene.edit_geometry(_in_kilometres),
        Stops(GEOMETRY, r"5160 sensors within 1\.\d+", "5 to 100000 m", FORMAT),
    ),
    Case(
        "geometry-of-another-detector",
        "geometry of a detector of 200 sensors",
        "`iceaggr stats` stops: most pulses hit sensors that it does not have",
        moved_detector,
        Stops(r"batch_\d\.parquet", "sensor_not_in_geometry|event", r"at most 10\.0%", "geometry"),
        enter=Scene.shard_and_count,
    ),
]
