"""One raw file of several that is wrong as a whole, and files that change under a run."""

from __future__ import annotations

import numpy as np

from iceaggr.config import load_config
from iceaggr.steps.plan_shards import run_plan_shards, run_shard_events
from iceaggr.steps.run_folder import RunFolder
from tests.bad_input.case import Accepts, Case, Stops
from tests.bad_input.scene import Scene

SECOND = r"batch_2\.parquet"
AWAY = r"move the file away and set data\.allow_missing_files"
STATS = "`iceaggr stats` stops and names the file"


def _second(column: str, value: object) -> object:
    """Give all pulses of the second file of two one value."""
    return lambda scene: scene.change_pulses(lambda f: f.assign(**{column: value}), 2)


def _one_direction(scene: Scene) -> None:
    """Set the labels of the second file to zero."""
    labels = ["azimuth", "zenith"]
    scene.change_meta(lambda f: f.loc.__setitem__((f["batch_id"] == 2, labels), 0.0))


def _few_of_one_direction(scene: Scene) -> None:
    """Leave the second file 29 events with a label, all of one direction."""
    _one_direction(scene)
    scene.settings["data"]["max_rejected_share"] = 0.5
    scene.change_meta(lambda f: f.loc.__setitem__((f.index >= 40 + 29, "zenith"), np.nan))


def _kept_29(scene: Scene) -> None:
    assert scene.manifest().source_files[1].n_events_kept == 29


def _shard_around_a_new_meta_file(scene: Scene) -> None:
    """Shard the first file, turn all directions, shard the second file."""
    config = load_config(scene.write_settings())
    run = RunFolder.create(scene.run, scene.raw_uri, "", "iceaggr", config)
    [unit] = run_plan_shards(run.context(), scene.raw_uri)
    plan_uri = unit.rpartition("#")[0]
    run_shard_events(run.context(), f"{plan_uri}#0:1", run.unit_manifest(0))
    scene.change_meta(lambda f: f.assign(azimuth=np.mod(f["azimuth"] + 1, 6.25)))
    run_shard_events(run.context(), f"{plan_uri}#1:2", run.unit_manifest(1))


SEVERAL_FILES = [
    Case(
        "one-file-in-microseconds",
        "the times of one file of two in microseconds",
        f"{STATS}: light could not cross the detector in such times",
        lambda scene: scene.change_pulses(lambda f: f.assign(time=f["time"] // 1000), 2),
        Stops(f"{SECOND} time$", "a spread .* over 40 events", "light needs 6,200 ns", AWAY),
        enter=Scene.shard_and_count,
    ),
    Case(
        "one-file-of-one-time",
        "one time in one file of two",
        STATS,
        _second("time", np.int64(10_000)),
        Stops(f"{SECOND} time$", "time 10000 in each", "differ from pulse to pulse", AWAY),
        enter=Scene.shard_and_count,
    ),
    Case(
        "one-file-of-one-sensor",
        "one `sensor_id` in one file of two",
        STATS,
        _second("sensor_id", np.int16(17)),
        Stops(f"{SECOND} sensor_id$", "sensor_id 17 in each", "several sensors", AWAY),
        enter=Scene.shard_and_count,
    ),
    Case(
        "one-file-of-one-direction",
        "azimuth and zenith of one file of two all zero",
        STATS,
        _one_direction,
        Stops(f"{SECOND} azimuth and", "zenith 0 in each of 40", "from event to event", AWAY),
        enter=Scene.shard_and_count,
    ),
    Case(
        "few-events-of-one-direction",
        "the same in a file of 29 events with labels",
        "kept: a file is judged from its thirtieth event on",
        _few_of_one_direction,
        Accepts(_kept_29),
        enter=Scene.shard_and_count,
    ),
    Case(
        "meta-replaced-between-work-units",
        "meta file with other labels between one work unit and the next",
        "sharding stops: the meta file is not the one that was planned",
        lambda scene: None,
        Stops(r"train_meta\.parquet", "tag .* bytes", "tag .* bytes", "plan_shards again"),
        enter=_shard_around_a_new_meta_file,
    ),
]
