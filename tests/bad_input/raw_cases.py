"""Batch files: the file itself, its columns, its single pulses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_input.case import Accepts, Case, Quarantines, Stops
from tests.bad_input.scene import Scene

BATCH = r"train/batch_1\.parquet"
COMPLETE = "a complete parquet file"
COPY = "Copy the file again"
LAYOUT = r"docs/data_formats\.md"


def _checksummed_then_flipped(scene: Scene) -> None:
    table = pq.read_table(scene.batch())
    pq.write_table(table, scene.batch(), write_page_checksum=True)
    scene.flip(scene.batch(), 4000)


def _in_a_folder(scene: Scene) -> None:
    data = scene.batch().read_bytes()
    scene.batch().unlink()
    scene.batch().mkdir()
    (scene.batch() / "part-0.parquet").write_bytes(data)


def _doubled_column(scene: Scene) -> None:
    table = pq.read_table(scene.batch())
    pq.write_table(table.append_column("charge", table.column("charge")), scene.batch())


def _unsigned_ids(frame: pd.DataFrame) -> None:
    frame["event_id"] = frame["event_id"].to_numpy(np.uint64) + np.uint64(2**63)


def _times_are_sorted(scene: Scene) -> None:
    assert scene.manifest().source_files[0].rejected_pulses == {}


def _reversed_times(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[::-1].sort_values("event_id", kind="stable")


def _times_in_microseconds(scene: Scene) -> None:
    for number in (1, 2):
        scene.change_pulses(lambda f: f.assign(time=f["time"] // 1000), number)


FILES = [
    Case(
        "batch-file-truncated",
        "batch file cut to half its length",
        "the step stops and names the file",
        lambda scene: scene.cut(scene.batch()),
        Stops(BATCH, "magic bytes|footer", COMPLETE, COPY),
    ),
    Case(
        "batch-file-not-parquet",
        "batch file that is text",
        "the step stops and names the file",
        lambda scene: scene.batch().write_text("sensor_id,time\n1,2\n"),
        Stops(BATCH, "magic bytes|footer|size", COMPLETE, COPY),
    ),
    Case(
        "batch-file-empty",
        "batch file of 0 bytes",
        "the step stops and names the file",
        lambda scene: scene.batch().write_bytes(b""),
        Stops(BATCH, "0 bytes", COMPLETE, COPY),
    ),
    Case(
        "batch-file-bit-flipped",
        "one bit of a page flipped",
        "the page's checksum differs: the step stops and names the file",
        _checksummed_then_flipped,
        Stops(BATCH, "checksum|CRC|Couldn't deserialize|page", COMPLETE, COPY),
    ),
    Case(
        "batch-file-without-rows",
        "batch file with columns and no row",
        "the step stops: found 0 pulses, expected those of the meta file",
        lambda scene: scene.change_pulses(lambda frame: frame.iloc[:0]),
        Stops(BATCH, "0 pulses", r"\d+ pulses", "meta file"),
    ),
    Case(
        "batch-file-is-folder",
        "folder batch_1.parquet with the file in it",
        "the step stops and names the folder",
        _in_a_folder,
        Stops(BATCH, r"part-0\.parquet in it", "one parquet file", "one file"),
    ),
    Case(
        "batch-file-doubled",
        "batch_1.parquet and batch_01.parquet",
        "the step stops and names both",
        lambda scene: scene.copy_batch("batch_01.parquet"),
        Stops(BATCH, r"batch_01\.parquet", "one file per batch", "Remove one"),
    ),
]

COLUMNS = [
    Case(
        "column-missing",
        "no column `charge`",
        "the step stops and names file and column",
        lambda scene: scene.change_pulses(lambda frame: frame.drop(columns="charge")),
        Stops(BATCH, "columns event_id, sensor_id, time, auxiliary", "one column charge", LAYOUT),
    ),
    Case(
        "column-renamed",
        "`charge` is called `amplitude`",
        "the step stops and lists the columns that are there",
        lambda s: s.change_pulses(lambda frame: frame.rename(columns={"charge": "amplitude"})),
        Stops(BATCH, "amplitude", "one column charge", LAYOUT),
    ),
    Case(
        "column-doubled",
        "`charge` twice",
        "the step stops: none is preferred",
        _doubled_column,
        Stops(BATCH, "charge.*charge", "one column charge", LAYOUT),
    ),
    Case(
        "column-of-wrong-type",
        "`charge` as text",
        "the step stops and names column, type found, type expected",
        lambda scene: scene.change_pulses(lambda f: f.astype({"charge": str})),
        Stops(BATCH, "string", "an integer or float type", "Write charge as"),
    ),
    Case(
        "sensor-id-with-fraction",
        "`sensor_id` 20.5",
        "the step stops: ids are not rounded; floats without a fraction are taken",
        lambda scene: scene.set_pulse("sensor_id", 20.5, np.float64),
        Stops(BATCH, r"20\.5", "without a fraction", "Give sensor_id as integers"),
    ),
    Case(
        "time-with-fraction",
        "`time` 10000.5",
        "the step stops: no rounding is chosen for the user",
        lambda scene: scene.set_pulse("time", 10000.5, np.float64),
        Stops(BATCH, r"time 10000\.5", "floats without a fraction", "Choose the rounding"),
    ),
    Case(
        "auxiliary-no-flag",
        "`auxiliary` 2",
        "the step stops: found values from 0 to 2",
        lambda scene: scene.set_pulse("auxiliary", 2, np.int8),
        Stops(BATCH, "values from 0 to 2", "0 and 1 only", "Write it as boolean"),
    ),
    Case(
        "event-id-missing",
        "`event_id` null",
        "the step stops: a pulse without event belongs nowhere",
        lambda scene: scene.change_pulses(
            lambda frame: frame.astype({"event_id": "Int64"}).assign(
                event_id=lambda f: f["event_id"].where(f.index != 2)
            )
        ),
        Stops(BATCH, "1 nulls", "none", "write the batch file anew"),
    ),
    Case(
        "event-id-beyond-64-bits",
        "`event_id` above 2^63",
        "the step stops",
        lambda scene: scene.change_pulses(_unsigned_ids),
        Stops(BATCH, "not in range", r"2\^63", "int64"),
    ),
    Case(
        "event-ids-of-another-meta-file",
        "`event_id` differs from the meta file",
        "the step stops and names the first pulse that differs",
        lambda s: s.change_pulses(lambda f: f.assign(event_id=f["event_id"] + 1)),
        Stops(BATCH + " pulse 0", r"event_id \d+", "as in the meta file", "meta file"),
    ),
    Case(
        "pulses-of-no-event",
        "more pulses than the meta file knows",
        "the step stops: found and expected number of pulses",
        lambda scene: scene.change_pulses(lambda f: pd.concat([f, f.tail(1)])),
        Stops(BATCH, r"\d+ pulses", r"greatest last_pulse_index", "Copy the file again"),
    ),
]


def _one(name: str, words: str, column: str, value: object, reason: str, dtype: object) -> Case:
    """One pulse with one bad value."""
    return Case(
        name,
        words,
        f"the pulse is rejected as `{reason}`",
        lambda scene: scene.set_pulse(column, value, dtype),
        Quarantines(pulses={reason: 1}),
    )


def _null(name: str, column: str) -> Case:
    """One pulse with one value missing, in a column of its documented type."""

    def damage(scene: Scene) -> None:
        table = pq.read_table(scene.batch())
        values = table.column(column).to_pylist()
        values[2] = None
        index = table.column_names.index(column)
        nulls = pa.array(values, table.schema.field(column).type)
        pq.write_table(table.set_column(index, column, nulls), scene.batch())

    outcome = "the pulse is rejected as `value_missing`"
    return Case(name, f"{column} null", outcome, damage, Quarantines(pulses={"value_missing": 1}))


PULSES = [
    _null("charge-null", "charge"),
    _null("time-null", "time"),
    _null("sensor-null", "sensor_id"),
    _null("auxiliary-null", "auxiliary"),
    _one("charge-nan", "charge NaN", "charge", np.nan, "charge_not_finite", np.float32),
    _one("charge-infinite", "charge infinite", "charge", np.inf, "charge_not_finite", np.float32),
    _one("charge-zero", "charge zero", "charge", 0, "charge_not_positive", np.float32),
    _one("charge-negative", "charge negative", "charge", -1, "charge_not_positive", np.float32),
    _one("charge-huge", "charge 1e300", "charge", 1e300, "charge_out_of_range", np.float64),
    _one("charge-great", "charge 1e30", "charge", 1e30, "charge_out_of_range", np.float32),
    _one("charge-tiny", "charge 1e-30", "charge", 1e-30, "charge_out_of_range", np.float32),
    _one("time-nan", "time NaN", "time", np.nan, "value_missing", np.float64),
    _one("time-negative", "time negative", "time", -5, "time_negative", np.int64),
    _one("time-late", "time beyond 10 ms", "time", 10**9, "time_beyond_10_ms", np.int64),
    _one("sensor-beyond", "sensor_id 6000", "sensor_id", 6000, "sensor_not_in_geometry", None),
    _one("sensor-negative", "sensor_id -1", "sensor_id", -1, "sensor_not_in_geometry", None),
    Case(
        "times-out-of-order",
        "pulses of an event in reversed order of time",
        "sorted when they are grouped; nothing is rejected",
        lambda scene: scene.change_pulses(_reversed_times),
        Accepts(_times_are_sorted),
    ),
    Case(
        "most-pulses-bad",
        "all charges of a file negative (a wrong sign or unit)",
        "`iceaggr stats` stops: rejection is the rule (data.max_rejected_share)",
        lambda scene: scene.change_pulses(lambda f: f.assign(charge=-f["charge"])),
        Stops(BATCH, r"100\.0% of .* charge_not_positive", r"at most 10\.0%", "quarantine"),
        enter=Scene.shard_and_count,
    ),
    Case(
        "times-in-microseconds",
        "all times in microseconds",
        "`iceaggr stats` stops: light could not cross the detector in such times",
        _times_in_microseconds,
        Stops("time of .* train events", "a spread", "light needs 6,200 ns", "Write times in ns"),
        enter=Scene.shard_and_count,
    ),
]
