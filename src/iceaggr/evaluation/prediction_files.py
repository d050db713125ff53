"""Files of predictions as the open benchmark has them: written for its plotting tool, read of all.

One Parquet file a model: a row per event, columns of the truth and the predicted direction as a
unit vector. Where vector and truth point, to the source or along the flight, is the file's own
affair as long as both do the same; files of ours have them as the truth of the set has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from iceaggr.angles import azimuth_zenith
from iceaggr.errors import ConfigError, EvaluationError
from iceaggr.evaluation.baselines import CLASSICAL_FITS
from iceaggr.evaluation.event_table import (
    derived_truth,
    directions,
    facts_in,
    failed_share_in,
    measured,
    reading_in,
    with_facts,
)
from iceaggr.evaluation.published import DataOrigin
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelReading
from iceaggr.events.schema import NUMBER, TEXT, ParquetReader
from iceaggr.events.truth import FLAVOURS, MAX_ENERGY_GEV, TOPOLOGIES

DIRECTION = ("dir_x_pred", "dir_y_pred", "dir_z_pred")
"""The predicted unit vector. Source: the benchmark's plotting tool, as of GraphNeT's tasks."""
THEIR_NAMES = {
    "event_id": "event_no",
    "interaction": "interaction",
    "energy_gev": "initial_state_energy",
    "flavour": "initial_state_type",
    "true_zenith": "initial_state_zenith",
    "true_azimuth": "initial_state_azimuth",
    "vertex_x_m": "initial_state_x",
    "vertex_y_m": "initial_state_y",
    "vertex_z_m": "initial_state_z",
    "bjorken_x": "bjorken_x",
    "inelasticity": "bjorken_y",
    "visible_inelasticity": "visible_inelasticity",
    "muon_zenith": "muon_zenith",
    "muon_azimuth": "muon_azimuth",
    "kappa": "dir_kappa_pred",
}
"""Our columns by the benchmark's names, in the order of the file."""
NEEDED = ("interaction", "energy_gev", "flavour", "muon_zenith", "muon_azimuth")
"""Truth without which the benchmark's tool draws nothing."""
OWN_COLUMNS = (
    "topology",
    "contained",
    "neutrino_muon_angle",
    "coincident_muon",
    "n_pulses",
    "n_doms",
    "n_non_auxiliary",
    "charge_pe",
    *(f"{name}_angle_deg" for name in CLASSICAL_FITS),
)
"""What our files hold besides, under our names; other tools pass over it."""
_CURRENT_CODES = {"cc": 1, "nc": 2}
_NO_MUON = -1.0
"""The benchmark's angle of a muon that is not there."""
_FILE_NAME = re.compile(r"[^_]+_.*direction.*\.parquet")
UNIT_TOLERANCE = 1e-3
"""Vectors whose length is off by more are told; float32 is off by 1e-7."""
_EXACT = 1e-12
MIN_EVENTS_REVERSED, MIN_SIGMA_REVERSED, MAX_COSINE_REVERSED = 10, 5.0, -0.1
"""Vectors point the other way if the mean cosine of so many events is so surely below 0, and below
what a poor model may have by its preferred direction."""

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PredictionFile:
    """A file of predictions as it was read.

    events: as an evaluation's table, ascending by event_id.  origin: where the events come from
    settings: of the evaluation that exported the file, empty for other files
    failed_share: of events that a fit could not reconstruct, as the file says, by fit
    notes: what is odd about the file, in sentences.  has_ids: False if rows had to be numbered
    """

    events: pd.DataFrame
    origin: DataOrigin
    settings: Mapping[str, Any] = field(default_factory=dict)
    failed_share: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    has_ids: bool = True


# Writing.


def check_name(output: Path) -> None:
    """Refuse a name by which the benchmark's tool would not find the file. Raises: ConfigError."""
    if not _FILE_NAME.fullmatch(output.name):
        raise ConfigError(
            "the benchmark's tool would not find this file",
            where=f"--output {output}",
            found=output.name,
            expected="MODEL_...direction....parquet",
            remedy="Begin with the name of the model, for example iceaggr_direction.parquet",
        )


def is_prediction_file(path: Path) -> bool:
    """Tell a file of this layout from any other."""
    try:
        with pq.ParquetFile(path) as file:
            return {*DIRECTION, "event_no"} <= set(ParquetReader(file, "").schema_arrow.names)
    except (pa.ArrowException, OSError):
        return False


def nubench_table(
    events: pd.DataFrame,
    facts: Mapping[str, Any] | None = None,
    reading: LabelReading = AS_DOCUMENTED,
) -> pa.Table:
    """Lay events out as the benchmark's prediction files.

    events: event_id, azimuth, zenith (predicted), true_azimuth, true_zenith (radians), truth, and
    whatever else of an event table there is.  facts: kept in the file, see `facts_of`.
    reading: of the set's truth, in whose own meaning the file has truth and predictions.
    Raises: EvaluationError if the truth lacks what the benchmark's tool needs.
    """
    missing = [name for name in NEEDED if name not in events]
    if missing:
        raise EvaluationError(
            "the truth lacks what the benchmark's files hold",
            where="--layout nubench",
            found=f"no {', '.join(missing)}",
            expected=f"{', '.join(NEEDED)} in truth/",
            remedy="Simulate or convert the events with this version; real events have no truth",
        )
    if reading.words:
        for azimuth, zenith in _ANGLES:
            there = reading.undo(events[azimuth].to_numpy(), events[zenith].to_numpy())
            events = events.assign(**dict(zip((azimuth, zenith), there, strict=True)))
    named = {ours: theirs for ours, theirs in THEIR_NAMES.items() if ours in events}
    columns: dict[str, Any] = {theirs: events[ours].to_numpy() for ours, theirs in named.items()}
    columns["interaction"] = events["interaction"].map(_CURRENT_CODES).to_numpy(np.int64)
    columns["initial_state_type"] = events["flavour"].to_numpy(np.int64)
    for name in ("muon_zenith", "muon_azimuth"):
        columns[name] = events[name].fillna(_NO_MUON).to_numpy(np.float64)
    vectors = directions(events, "azimuth", "zenith").numpy()
    columns |= {name: vectors[:, place] for place, name in enumerate(DIRECTION)}
    columns |= {name: events[name].to_numpy() for name in OWN_COLUMNS if name in events}
    if "topology" in columns:
        # of no event, as the writer of a stream asks first, it has no kind of its own
        columns["topology"] = pa.array(columns["topology"], pa.string())
    return with_facts(pa.table(columns), facts or {})


_ANGLES = (
    ("azimuth", "zenith"),
    ("true_azimuth", "true_zenith"),
    ("muon_azimuth", "muon_zenith"),
)


def facts_of(
    origin: DataOrigin,
    settings: Mapping[str, Any],
    reading: LabelReading = AS_DOCUMENTED,
    failed_share: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """List what a file says about itself.

    settings: of the evaluation, which can be done again to the last digit.  reading: how the
    file's directions are meant.  failed_share: by fit, None where nobody counted. Times are left
    out: they are the machine's, and the same predictions make the same file.
    """
    return {
        "origin": vars(origin),
        "evaluation": dict(settings),
        "label_reading": list(reading.words),
        "failed_share": {n: x for n, x in (failed_share or {}).items() if x is not None},
    }


# Reading, from any model.


def read_predictions(path: Path, is_reversed: bool = False) -> PredictionFile:
    """Read a file of predictions, of this or any other model, and measure its events.

    Takes the benchmark's columns, or those of an evaluation's table of events.
    is_reversed: the vectors point the other way than the truth does, and are turned.
    Raises: EvaluationError if it cannot be read, lacks columns or truth, holds what is no
    direction, an event twice, or vectors that point the other way; RawDataError if pandas' index
    counts other rows.
    """
    frame, facts = _read(path)
    notes: list[str] = []
    columns = _renamed(frame, path)
    has_ids = "event_id" in columns
    ids = columns.pop("event_id") if has_ids else pd.Series(np.arange(len(frame)))
    if not has_ids:
        notes.append("no event numbers: rows are numbered, and no other file can be paired")
    events = pd.DataFrame({"event_id": _ids(ids, path)} | columns)
    vectors = _vectors(frame, events, path, notes)
    order = np.argsort(events["event_id"].to_numpy(), kind="stable")
    events = events.iloc[order].reset_index(drop=True)
    predicted = torch.from_numpy(vectors[order] * (-1.0 if is_reversed else 1.0))
    _refuse_twice(events["event_id"], path)
    _check_truth(events, path)
    azimuth, zenith = azimuth_zenith(predicted)
    events = events.assign(azimuth=azimuth.numpy(), zenith=zenith.numpy())
    # the events of an evaluation are in our own meaning, whatever that of their set
    reading = reading_in(facts, str(path)) if set(DIRECTION) <= set(frame) else AS_DOCUMENTED
    if reading.words:
        for names in _ANGLES:
            if set(names) <= set(events):
                ours = reading.apply(*(events[name].to_numpy(np.float64) for name in names))
                events = events.assign(**dict(zip(names, ours, strict=True)))
        predicted = directions(events, "azimuth", "zenith")
    events = derived_truth(measured(events, predicted))
    _refuse_reversed(events["opening_angle_deg"].to_numpy(), path, is_reversed)
    notes += _odd_truth(events)
    settings, failed = dict(facts.get("evaluation") or {}), failed_share_in(facts, str(path))
    origin = DataOrigin.said(facts)
    return PredictionFile(events, origin, settings, failed, tuple(notes), has_ids)


def _odd_truth(events: pd.DataFrame) -> list[str]:
    missing = [THEIR_NAMES[name] for name in ("energy_gev", "interaction") if name not in events]
    if "topology" not in events and "flavour" not in events:
        missing.append(THEIR_NAMES["flavour"])
    words = f"no {' and no '.join(missing)} in the file: nothing is told by energy and current"
    return [words] if missing else []


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise _wrong(path, "no such file of predictions", found, "a file", "Give its name")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = ParquetReader(file, str(path)).read()
        facts = facts_in(table.schema)
        frame = table.replace_schema_metadata(None).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        what, found = "file of predictions cannot be read", " ".join(str(error).split())[:200]
        remedy = "Give the file that `iceaggr predict --layout nubench` or another model wrote"
        raise _wrong(path, what, found, "a Parquet file", remedy) from error
    if not len(frame):
        raise _wrong(path, "file of predictions has no event", "0 rows", "a row per event")
    _refuse_other_kinds(table.schema, path)
    return frame, facts


_MAY_BE_TEXT = ("event_id", "event_no", "interaction", "topology")


def _refuse_other_kinds(schema: pa.Schema, path: Path) -> None:
    """Refuse columns that hold no numbers and should. Raises: EvaluationError naming one."""
    known = {"azimuth", "zenith", *DIRECTION, *THEIR_NAMES, *THEIR_NAMES.values(), *OWN_COLUMNS}
    others = (pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    for column in schema:
        is_number = NUMBER.accepts(column.type) or any(kind(column.type) for kind in others)
        is_text = column.name in _MAY_BE_TEXT and TEXT.accepts(column.type)
        if column.name in known and not (is_number or is_text):
            raise _wrong(
                path, f"column {column.name} holds no numbers", str(column.type), "numbers"
            )


def _renamed(frame: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Take what is known, under our names; the truth's angles are needed.

    Raises: EvaluationError if there are no directions or no truth.
    """
    ours = {"azimuth", "zenith"} <= set(frame)
    if not ours and not set(DIRECTION) <= set(frame):
        found = f"no {', '.join(n for n in DIRECTION if n not in frame)}; columns {_some(frame)}"
        raise _wrong(path, "file has no predicted directions", found, ", ".join(DIRECTION))
    columns = {}
    for name, theirs in THEIR_NAMES.items():
        found = theirs if theirs in frame else name
        if found in frame:
            columns[name] = frame[found]
    # files of GraphNeT's own data call the truth so; ours, the prediction
    if ours and set(DIRECTION) <= set(frame):
        columns.setdefault("true_azimuth", frame["azimuth"])
        columns.setdefault("true_zenith", frame["zenith"])
    columns |= {name: frame[name] for name in OWN_COLUMNS if name in frame}
    if not {"true_azimuth", "true_zenith"} <= set(columns):
        expected = "initial_state_zenith and initial_state_azimuth"
        remedy = "Write it with `iceaggr predict --layout nubench`, or add the columns of the truth"
        what = "file has predictions but no truth"
        raise _wrong(path, what, f"columns {_some(frame)}", expected, remedy)
    return columns


def _ids(values: pd.Series, path: Path) -> npt.NDArray[np.int64]:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy()
    if not np.issubdtype(numbers.dtype, np.integer):
        whole = np.isfinite(numbers) & (numbers == np.round(numbers)) & (abs(numbers) < 2**53)
        if not whole.all():
            row = int(np.flatnonzero(~whole)[0])
            found = f"{values.iloc[row]!r} in row {row}"
            raise _wrong(path, "event number is no whole number", found, "a number per event")
    return numbers.astype(np.int64)


def _vectors(frame: pd.DataFrame, events: pd.DataFrame, path: Path, notes: list[str]) -> Vectors:
    """Take the predicted directions: (N, 3) float64 unit vectors.

    Raises: EvaluationError naming the events that have none.
    """
    if not set(DIRECTION) <= set(frame):
        given = frame[["azimuth", "zenith"]].astype(np.float64)
        _refuse_not_finite(events, given, path)
        return directions(given, "azimuth", "zenith").numpy()
    given = frame[list(DIRECTION)].astype(np.float64)
    _refuse_not_finite(events, given, path)
    vectors = given.to_numpy()
    length = np.linalg.norm(vectors, axis=1)
    if (length == 0).any():
        event = events["event_id"][length == 0].iloc[0]
        found = f"event {event}, and {int((length == 0).sum()) - 1:,} more"
        raise _wrong(path, "vectors have no length", found, "a unit vector per event")
    off = np.abs(length - 1) > UNIT_TOLERANCE
    if off.any():
        notes.append(
            f"{int(off.sum()):,} of {len(length):,} vectors are not of unit length"
            f" ({length.min():.4g} to {length.max():.4g}): only their direction counts"
        )
    # what has unit length to the last bit stays as it is
    return np.where((np.abs(length - 1) > _EXACT)[:, None], vectors / length[:, None], vectors)


def _refuse_not_finite(events: pd.DataFrame, values: pd.DataFrame, path: Path) -> None:
    bad = ~np.isfinite(values.to_numpy(np.float64)).all(axis=1)
    if bad.any():
        what, event = (
            f"{' or '.join(values.columns)} is not finite",
            events["event_id"][bad].iloc[0],
        )
        found = f"event {event}, {int(bad.sum()):,} of {len(bad):,} events"
        remedy = "Leave events out that have no prediction: the report tells how many were scored"
        raise _wrong(path, what, found, "a number for every event", remedy)


def _refuse_twice(event_id: pd.Series, path: Path) -> None:
    twice = event_id[event_id.duplicated()]
    if len(twice):
        found = f"event {twice.iloc[0]}, {len(twice):,} repeated rows of {len(event_id):,}"
        expected, remedy = "one row per event", "Leave one row of each event"
        raise _wrong(path, "file lists an event twice", found, expected, remedy)


_LARGEST = float(np.finfo(np.float64).max)
_COUNTS = ("n_pulses", "n_doms", "n_non_auxiliary", "charge_pe")
_RANGES = {
    "energy_gev": (math.ulp(0.0), MAX_ENERGY_GEV, "GeV above 0"),
    "kappa": (0.0, _LARGEST, "a concentration from 0 on"),
    **dict.fromkeys(("contained", "coincident_muon"), (0.0, 1.0, "true or false")),
    **dict.fromkeys(_COUNTS, (0.0, _LARGEST, "a number from 0 on")),
    "muon_zenith": (-_LARGEST, math.pi + 1e-5, "0 to pi, or below 0 without a muon"),
    "muon_azimuth": (-_LARGEST, _LARGEST, "a finite angle"),
    "neutrino_muon_angle": (0.0, math.pi + 1e-5, "0 to pi"),
    **{f"{name}_angle_deg": (0.0, 180.0, "0 to 180 degrees") for name in CLASSICAL_FITS},
}
"""Columns whose values lie between two, both included: (least, greatest, words)."""


def _check_truth(events: pd.DataFrame, path: Path) -> None:
    """Bring the truth into the form of truth tables. Raises: EvaluationError naming a column."""
    _refuse_not_finite(events, events[["true_azimuth", "true_zenith"]], path)
    zenith = events["true_zenith"].to_numpy(np.float64)
    if zenith.min() < -1e-5 or zenith.max() > math.pi + 1e-5:
        found = f"zenith {zenith.min():.4g} to {zenith.max():.4g}"
        raise _wrong(path, "truth is not in radians", found, "zenith 0 to pi")
    if "interaction" in events:
        given = (
            events["interaction"]
            .astype(object)
            .map({1: "cc", 2: "nc", 0: "nc", "cc": "cc", "nc": "nc"})
        )
        _refuse_strange(events, "interaction", given.notna().to_numpy(), "1 (charged) or 2", path)
        events["interaction"] = given
    if "flavour" in events:
        known = events["flavour"].isin(FLAVOURS).to_numpy()
        _refuse_strange(events, "flavour", known, "12, 14, 16, or negative", path)
    for name, (low, high, expected) in _RANGES.items():
        if name in events:
            values = events[name].to_numpy(np.float64)
            # of a muon that is not there
            is_absent = np.isnan(values) & name.startswith(("muon_", "neutrino_muon_"))
            sound = is_absent | ((values >= low) & (values <= high))
            _refuse_strange(events, name, sound, expected, path)
    if "topology" in events:
        known = events["topology"].isin(TOPOLOGIES).to_numpy()
        _refuse_strange(events, "topology", known, " or ".join(TOPOLOGIES), path)
    if {"muon_zenith", "muon_azimuth"} <= set(events):
        has_muon = (events["muon_zenith"] >= 0).to_numpy()
        for name in ("muon_zenith", "muon_azimuth"):
            events[name] = events[name].where(has_muon).astype(np.float64)


def _refuse_strange(
    events: pd.DataFrame, name: str, sound: npt.NDArray[np.bool_], expected: str, path: Path
) -> None:
    if not sound.all():
        row = int(np.flatnonzero(~sound)[0])
        raise _wrong(
            path,
            f"column {THEIR_NAMES.get(name, name)} holds a value that cannot be",
            f"{events[name].iloc[row]!r} of event {events['event_id'].iloc[row]},"
            f" {int((~sound).sum()):,} of {len(sound):,} events",
            f"{expected} in every row",
        )


def _refuse_reversed(angle_deg: Vectors, path: Path, was_reversed: bool) -> None:
    """Refuse vectors that, taken the other way round, are surely nearer to the truth."""
    cosine = np.cos(np.deg2rad(angle_deg))
    if len(cosine) < MIN_EVENTS_REVERSED:
        return
    error = float(cosine.std(ddof=1)) / math.sqrt(len(cosine))
    if cosine.mean() < min(-MIN_SIGMA_REVERSED * error, MAX_COSINE_REVERSED):
        median = float(np.median(angle_deg))
        raise _wrong(
            path,
            "predictions point the other way than the truth",
            f"median opening angle {median:.2f} deg; reversed, it is {180 - median:.2f} deg",
            "vectors and truth that both point to the source, or both along the flight",
            "Leave --reversed out"
            if was_reversed
            else "--reversed turns the vectors round; of compare, --reversed FILE",
        )


def _some(frame: pd.DataFrame) -> str:
    names = [str(name) for name in frame.columns]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _wrong(
    path: Path, what: str, found: str, expected: str, remedy: str = "Write the file anew"
) -> EvaluationError:
    return EvaluationError(what, where=str(path), found=found, expected=expected, remedy=remedy)
