"""The truth of simulated events: refused before anything is sharded, not after the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_input.case import Accepts, Case, Stops
from tests.bad_input.document_cases import after
from tests.bad_input.scene import Scene

TRUTH = r"truth/batch_1\.parquet"
AWAY = "move the truth folder away"
FROM_PLAN = "planning stops, before anything is sharded"


def truth_file(scene: Scene, number: int = 1) -> Path:
    return scene.raw / "truth" / f"batch_{number}.parquet"


def _write_truth(scene: Scene) -> None:
    """Write a sound truth of all events."""
    meta = pd.read_parquet(scene.meta)
    (scene.raw / "truth").mkdir(exist_ok=True)
    for number, events in meta.groupby("batch_id"):
        is_track = np.arange(len(events)) % 2 == 0
        columns = {
            "event_id": events["event_id"].to_numpy(),
            "energy_gev": np.geomspace(1e2, 1e6, len(events)),
            "topology": np.where(is_track, "track", "cascade"),
            "contained": is_track,
            "neutrino_muon_angle": np.where(is_track, 0.01, np.nan),
        }
        pq.write_table(pa.table(columns), truth_file(scene, int(number)))


def _change(scene: Scene, change: Callable[[dict[str, Any]], object], number: int = 1) -> None:
    """Write a sound truth and change the columns of one file, as lists."""
    _write_truth(scene)
    columns = pq.read_table(truth_file(scene, number)).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), truth_file(scene, number))


def _set(column: str, value: Any) -> Callable[[Scene], None]:
    """Write one value into the fourth row."""
    return partial(_change, change=lambda columns: columns[column].__setitem__(3, value))


def _test_events_missing(scene: Scene) -> None:
    _write_truth(scene)
    truth_file(scene, 2).unlink()


def _not_evaluable(scene: Scene) -> None:
    """Let the truth go wrong after the training, for a run that was planned without one."""
    _set("energy_gev", float("nan"))(scene)


def _more_than_events(columns: dict[str, Any]) -> None:
    for values in columns.values():
        values.append(values[0])
    columns["event_id"][-1] = 5


def _is_sharded(scene: Scene) -> None:
    assert sum(file.n_events_kept for file in scene.manifest().source_files) == 80
    assert json.loads((scene.run / "run.json").read_text())


def _energy(name: str, words: str, value: Any, found: str) -> Case:
    expected = r"above 0 and at most 1e\+12"
    return Case(
        f"truth-energy-{name}",
        f"`energy_gev` {words} in the truth",
        f"{FROM_PLAN}, and names file, column, row and event",
        _set("energy_gev", value),
        Stops(f"{TRUTH} energy_gev", rf"{found} of event_id \d+ \(row 3\)", expected, AWAY),
    )


TRUTHS = [
    _energy("nan", "NaN", float("nan"), "nan"),
    _energy("infinite", "infinite", float("inf"), "inf"),
    _energy("zero", "0", 0.0, "0.0"),
    _energy("negative", "negative", -5.0, "-5.0"),
    _energy("null", "null", None, "null"),
    Case(
        "truth-topology-unknown",
        "`topology` `double_bang` in the truth",
        f"{FROM_PLAN}, and names file, column, row and event",
        _set("topology", "double_bang"),
        Stops(f"{TRUTH} topology", r"'double_bang' of event_id \d+", "track or cascade", AWAY),
    ),
    Case(
        "truth-topology-null",
        "`topology` null in the truth",
        f"{FROM_PLAN}, and names file, column, row and event",
        _set("topology", None),
        Stops(f"{TRUTH} topology", r"null of event_id \d+", "track or cascade", AWAY),
    ),
    Case(
        "truth-contained-null",
        "`contained` null in the truth",
        f"{FROM_PLAN}, and names file, column, row and event",
        _set("contained", None),
        Stops(f"{TRUTH} contained", r"null of event_id \d+", "true or false", AWAY),
    ),
    Case(
        "truth-angle-in-degrees",
        "`neutrino_muon_angle` beyond pi in the truth",
        f"{FROM_PLAN}, and names file, column, row and event",
        _set("neutrino_muon_angle", 12.5),
        Stops(f"{TRUTH} neutrino_muon", r"12\.5 of event_id \d+", "0 to pi", AWAY),
    ),
    Case(
        "truth-column-missing",
        "truth without `event_id`",
        f"{FROM_PLAN}, and lists the columns that are there",
        partial(_change, change=lambda columns: columns.pop("event_id")),
        Stops(TRUTH, "columns energy_gev, topology", "one column event_id", "data_formats"),
    ),
    Case(
        "truth-column-of-wrong-type",
        "`energy_gev` as text in the truth",
        f"{FROM_PLAN}, and names column, type found, type expected",
        partial(_change, change=lambda c: c.update(energy_gev=[str(e) for e in c["energy_gev"]])),
        Stops(TRUTH, "string", "an integer or float type", "Write energy_gev as"),
    ),
    Case(
        "truth-id-twice",
        "one event_id twice in the truth",
        f"{FROM_PLAN}, and names file and event",
        partial(_change, change=lambda c: c["event_id"].__setitem__(3, c["event_id"][0])),
        Stops(TRUTH, r"event_id \d+ in 2 rows", "one row per event_id", AWAY),
    ),
    Case(
        "truth-of-other-events",
        "ids in the truth that are no events: all are one too high",
        f"{FROM_PLAN}, and names an event without truth",
        partial(_change, change=lambda c: c.update(event_id=[i + 10**9 for i in c["event_id"]])),
        Stops(
            "/truth/",
            r"no row of event_id \d+; \d+ of \d+ events of the",
            "a row for",
            "move it away",
        ),
    ),
    Case(
        "truth-file-missing",
        "a file of the truth missing",
        f"{FROM_PLAN}, and names an event without truth",
        _test_events_missing,
        Stops("/truth/", r"no row of event_id 2\d+", "or no truth at all", "move it away"),
    ),
    Case(
        "truth-of-more-events",
        "a row in the truth that is of no event, beside those of all events",
        "sharded: nobody asks for the row",
        partial(_change, change=_more_than_events),
        Accepts(_is_sharded),
    ),
]

AFTER_TRAINING = [
    Case(
        "truth-gone-wrong-after-planning",
        "`energy_gev` NaN in a truth that came after the training",
        "evaluation stops before it scores, and names file, column, row and event",
        _not_evaluable,
        Stops(f"{TRUTH} energy_gev", r"nan of event_id \d+ \(row 3\)", "a number above 0", AWAY),
        enter=after("evaluate"),
    )
]
