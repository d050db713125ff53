"""Events, their labels and ids, and the meta file that describes them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from iceaggr.shards.reading import read_shard
from iceaggr.storage import open_store
from tests.bad_input.case import Accepts, Case, Quarantines, Stops
from tests.bad_input.raw_cases import COMPLETE, COPY
from tests.bad_input.scene import Scene

META = r"train_meta\.parquet"
ANEW = "write the meta file and the batch file anew"


def _resize(scene: Scene, row: int, n_pulses: int) -> None:
    """Give one event of the first file another number of pulses."""
    meta = pd.read_parquet(scene.meta)
    first_file = meta["batch_id"] == 1
    counts = (
        (meta["last_pulse_index"] - meta["first_pulse_index"] + 1)[first_file].to_numpy().copy()
    )
    starts = np.concatenate([[0], np.cumsum(counts)])

    def change(pulses: pd.DataFrame) -> pd.DataFrame:
        rows = np.arange(starts[row], starts[row + 1])
        chosen = np.resize(rows, n_pulses)
        order = np.concatenate(
            [np.arange(starts[row]), chosen, np.arange(starts[row + 1], starts[-1])]
        )
        return pulses.iloc[order]

    scene.change_pulses(change)
    counts[row] = n_pulses
    last = np.cumsum(counts) - 1
    meta.loc[first_file, "first_pulse_index"] = last - counts + 1
    meta.loc[first_file, "last_pulse_index"] = last
    meta.to_parquet(scene.meta, index=False)


def _holds_event_of(n_pulses: int) -> Accepts:
    def check(scene: Scene) -> None:
        sizes = [
            np.diff(read_shard(open_store(), entry).event_pulse_offsets())
            for entry in scene.manifest().shards
        ]
        assert n_pulses in np.concatenate(sizes)
        assert sum(s.n_pulses_rejected for s in scene.manifest().source_files) == 0

    return Accepts(check)


def _spoil_third_event(pulses: pd.DataFrame) -> None:
    pulses.loc[pulses["event_id"] == pulses["event_id"].unique()[2], "charge"] = -1


def _n_pulses_of(row: int) -> int:
    """Count the pulses of an event of the sound scene, whose draw is fixed."""
    from tests.bad_input.sound import sound_meta

    meta = sound_meta()
    return int(meta["last_pulse_index"][row] - meta["first_pulse_index"][row] + 1)


EVENTS = [
    Case(
        "event-without-pulses",
        "event without pulses",
        "the event is rejected as `no_pulses`",
        lambda scene: _resize(scene, 3, 0),
        Quarantines(events={"no_pulses": 1}),
    ),
    Case(
        "event-with-one-pulse",
        "event with one pulse",
        "kept",
        lambda scene: _resize(scene, 3, 1),
        _holds_event_of(1),
    ),
    Case(
        "event-with-200000-pulses",
        "event with 200,000 pulses",
        "kept, in bounded memory",
        lambda scene: _resize(scene, 3, 200_000),
        _holds_event_of(200_000),
    ),
    Case(
        "event-of-bad-pulses",
        "event whose every pulse is bad",
        "pulses and event are rejected, the event as `no_valid_pulses`",
        lambda scene: scene.change_pulses(_spoil_third_event),
        Quarantines(pulses={"charge_not_positive": _n_pulses_of(2)}, events={"no_valid_pulses": 1}),
    ),
    Case(
        "label-nan",
        "zenith NaN",
        "the event is rejected as `label_not_finite`, its pulses as `event_rejected`",
        lambda scene: scene.set_meta("zenith", 1, np.nan),
        Quarantines(pulses={"event_rejected": _n_pulses_of(1)}, events={"label_not_finite": 1}),
    ),
    Case(
        "label-out-of-range",
        "azimuth 400 (degrees?)",
        "the event is rejected as `label_out_of_range`, its pulses as `event_rejected`",
        lambda scene: scene.set_meta("azimuth", 1, 400),
        Quarantines(pulses={"event_rejected": _n_pulses_of(1)}, events={"label_out_of_range": 1}),
    ),
    Case(
        "labels-constant",
        "azimuth and zenith of all events the same",
        "`iceaggr stats` stops: there is nothing to learn",
        lambda scene: scene.change_meta(lambda f: f.assign(azimuth=0.0, zenith=0.0)),
        Stops("azimuth and zenith", "azimuth 0, zenith 0", "differ from event to event", "default"),
        enter=Scene.shard_and_count,
    ),
    Case(
        "declination-for-zenith",
        "declination in the zenith column: half of the labels are out of range",
        "`iceaggr stats` stops: too many events are rejected (data.max_rejected_share)",
        lambda scene: scene.change_meta(lambda f: f.assign(zenith=np.pi / 2 - f["zenith"])),
        Stops(
            r"batch_\d\.parquet",
            r"[456]\d\.\d% of 40 events: label_out_of_range .*; such as azimuth .* rad, zenith -",
            r"at most 10\.0% \(data.*zenith from 0 to pi",
            r"All would fit if zenith .* set data\.label_reading: \[elevation\]; .*quarantine",
        ),
        enter=Scene.shard_and_count,
    ),
    Case(
        "event-id-twice-in-a-file",
        "one event_id twice in one file",
        "the step stops and names the id",
        lambda scene: scene.change_meta(
            lambda f: f.assign(event_id=f["event_id"].where(f.index != 1, f["event_id"][0]))
        ),
        Stops(META, r"event_id \d+", "each event_id once|unique ids", "[Rr]enumber"),
    ),
    Case(
        "event-id-twice-across-files",
        "one event_id in two files",
        "planning stops, before anything is sharded, and names id and files",
        lambda scene: share_an_id(scene),
        Stops(META, r"event_id \d+ in batch_id 1, 2", "over all batch files", "added twice"),
    ),
]


def share_an_id(scene: Scene) -> None:
    """Give an event of the second file the id of one of the first."""
    meta = pd.read_parquet(scene.meta)
    second = meta.index[meta["batch_id"] == 2][0]
    old, new = meta["event_id"][second], meta["event_id"][0]
    scene.change_meta(lambda f: f.assign(event_id=f["event_id"].replace(old, new)))
    scene.change_pulses(lambda f: f.assign(event_id=f["event_id"].replace(old, new)), 2)


META_FILE = [
    Case(
        "meta-missing",
        "no meta file",
        "the step stops and says how the layout looks",
        lambda scene: scene.meta.unlink(),
        Stops(META, "no such object", r"beside train/batch_N\.parquet", "Check the raw URI"),
    ),
    Case(
        "meta-truncated",
        "meta file cut to half its length",
        "the step stops and names the file",
        lambda scene: scene.cut(scene.meta),
        Stops(META, "magic bytes|footer", COMPLETE, COPY),
    ),
    Case(
        "meta-without-rows",
        "meta file without rows",
        "the step stops",
        lambda scene: scene.change_meta(lambda frame: frame.iloc[:0]),
        Stops(META, "no rows", "one row per event", "anew"),
    ),
    Case(
        "meta-without-labels",
        "labelled set without `zenith`",
        "the step stops and names the column",
        lambda scene: scene.change_meta(lambda frame: frame.drop(columns="zenith")),
        Stops(META, "columns batch_id", "one column zenith", r"data_formats\.md"),
    ),
    Case(
        "meta-with-nulls",
        "`first_pulse_index` null",
        "the step stops and names the column",
        lambda scene: scene.change_meta(
            lambda f: f.assign(first_pulse_index=f["first_pulse_index"].where(f.index != 1)).astype(
                {"first_pulse_index": "Int64"}
            )
        ),
        Stops(META, "1 nulls", "none", "anew"),
    ),
    Case(
        "meta-points-outside",
        "last event ends beyond its file",
        "the step stops: found and expected number of pulses",
        lambda scene: scene.change_meta(
            lambda f: f.assign(last_pulse_index=f["last_pulse_index"] + 9 * (f.index == len(f) - 1))
        ),
        Stops(r"batch_2\.parquet", r"\d+ pulses", r"greatest last_pulse_index", "meta file"),
    ),
    Case(
        "meta-overlaps",
        "two events share pulses",
        "the step stops and names batch and event",
        lambda scene: scene.change_meta(
            lambda f: f.assign(first_pulse_index=f["first_pulse_index"] - (f.index == 5))
        ),
        Stops(META + " batch_id 1", "first_pulse_index", "first_pulse_index", ANEW),
    ),
    Case(
        "meta-leaves-a-gap",
        "pulses between two events belong to none",
        "the step stops and names batch and event",
        lambda scene: scene.change_meta(
            lambda f: f.assign(first_pulse_index=f["first_pulse_index"] + (f.index == 5))
        ),
        Stops(META + " batch_id 1", "first_pulse_index", "first_pulse_index", ANEW),
    ),
    Case(
        "meta-without-file",
        "meta file lists a batch whose file is missing",
        "the step stops and counts the events (unless data.allow_missing_files)",
        lambda scene: scene.batch(2).unlink(),
        Stops(META, r"no batch_2\.parquet", "the files of 40 more events", "allow_missing_files"),
    ),
    Case(
        "file-without-meta",
        "batch file that the meta file does not know",
        "the step stops and names the file",
        lambda scene: scene.copy_batch("batch_7.parquet"),
        Stops(r"batch_7\.parquet", "no row with batch_id 7", "one row per event", "Remove"),
    ),
]
