"""Truth of foreign files: ids and directions of all events, in memory, in the order of the ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iceaggr.errors import RawDataError
from iceaggr.events.conversion.tables import (
    Floats,
    Ints,
    JoinedTable,
    combined_ids,
    numbers,
    whole_numbers,
)
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.sources import ROW, ChosenTable
from iceaggr.events.truth import FLAVOURS, INTERACTIONS, MAX_ENERGY_GEV, TOPOLOGIES

_MAX_STRAY_SHARE = 0.01
"""Angles of this share of the events may be nonsense: sharding rejects and counts them."""
_ROUNDED = 1e-5
"""float32 rounds pi and 2 pi up."""


@dataclass
class EventNumbers:
    """How the ids of each input become the ids of the set.

    shift: number of the input -> what is added; empty while the files' own ids are kept.
    """

    shift: dict[int, int] = field(default_factory=dict)

    def of(self, table: ChosenTable, columns: Mapping[str, Any], where: str, number: int) -> Ints:
        """Take the event of each row: (n,) int64. Raises: RawDataError if one is no id."""
        flag = "" if table.event == (ROW,) else " (--column event_id=...)"
        place = f"{table.name}.{'+'.join(table.event)}{flag}"
        parts = [whole_numbers(columns[name], place, where) for name in table.event]
        ids = parts[0] if len(parts) == 1 else combined_ids(parts, place, where)
        return ids + self.shift.get(number, 0)

    def renumber(self, ids: Ints, inputs: Ints) -> None:
        """Let the ids of each input begin behind those of the one before."""
        start = 0
        for number in np.unique(inputs).tolist():
            own = ids[inputs == number]
            self.shift[number] = start - int(own.min())
            start += int(own.max()) - int(own.min()) + 1


@dataclass(frozen=True)
class Truth:
    """All events, ascending by id.

    event_id: (E,) int64.  azimuth, zenith: (E,) float64, radians, to the origin; NaN if unknown
    more: what only evaluation reads, (E,) each, under the names of the truth files
    notes: what was left out or is doubtful, in sentences
    """

    event_id: Ints
    azimuth: Floats
    zenith: Floats
    more: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_truth(
    joined: JoinedTable,
    chosen: ChosenTable,
    events: EventNumbers,
    reading: LabelReading,
    *,
    renumber: bool,
    once_per_pulse: bool,
) -> Truth:
    """Read the truth of all files; `events` learns how to renumber.

    reading: how the direction is meant, see `LabelReading`.
    once_per_pulse: the table is that of the pulses, so that an event has many rows.
    Raises: RawDataError if an id is missing or occurs twice, or most angles cannot be radians.
    """
    ids, inputs, columns = _collected(joined, chosen, events, once_per_pulse)
    if renumber:
        events.renumber(ids, inputs)
        ids = ids + np.array([events.shift[n] for n in range(inputs.max() + 1)])[inputs]
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if once_per_pulse:
        order = np.delete(order, twice + 1)
    elif len(twice):
        _raise_twice(joined, chosen, ids, inputs, order[twice[0] : twice[0] + 2])
    columns = {name: values[order] for name, values in columns.items()}
    azimuth, zenith = _angles(columns, chosen, reading, joined.parts[0][1].where)
    more, notes = _more(columns, reading)
    n_stray = int(np.count_nonzero(np.isnan(azimuth) | np.isnan(zenith)))
    if n_stray:
        notes.append(f"label: {n_stray} events have none, or one that cannot be")
    return Truth(ids[order], azimuth, zenith, more, tuple(notes))


def _collected(
    joined: JoinedTable, chosen: ChosenTable, events: EventNumbers, once_per_pulse: bool
) -> tuple[Ints, Ints, dict[str, Floats]]:
    ids, inputs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    columns: dict[str, list[Floats]] = {name: [np.empty(0)] for name in chosen.columns}
    for number, where, chunk in joined.read(chosen.wanted):
        found = events.of(chosen, chunk, where, number)
        rows = np.arange(len(found))
        if once_per_pulse:
            found, rows = np.unique(found, return_index=True)
        ids.append(found)
        inputs.append(np.full(len(found), number))
        for name, column in chosen.columns.items():
            values = numbers(chunk[column], chosen.place(name), where)[rows]
            columns[name].append(values * chosen.factors[name])
    if not sum(map(len, ids)):
        raise RawDataError(
            "the truth has no rows",
            where=f"{joined.parts[0][1].where} {joined.name}",
            found="0 events",
            expected="one row per event",
            remedy="Name another table with --truth",
        )
    joint = {name: np.concatenate(parts) for name, parts in columns.items()}
    return np.concatenate(ids), np.concatenate(inputs), joint


def _raise_twice(
    joined: JoinedTable, chosen: ChosenTable, ids: Ints, inputs: Ints, rows: Ints
) -> None:
    apart = inputs[rows[0]] != inputs[rows[1]]
    raise RawDataError(
        "two events have one id",
        where=f"{joined.name}.{'+'.join(chosen.event)} (--column event_id=...)",
        found=f"event {ids[rows[0]]} "
        + ("in two of the given files" if apart else "in two rows of one file"),
        expected="one row of truth per event",
        remedy="--renumber gives the events of each file numbers of their own"
        if apart
        else "Name the column that tells all events apart",
    )


def _angles(
    columns: dict[str, Floats], chosen: ChosenTable, reading: LabelReading, where: str
) -> tuple[Floats, Floats]:
    """Take azimuth and zenith in radians, to the origin; NaN where they cannot be."""
    if "azimuth" in columns and "zenith" in columns:
        given = columns["azimuth"], columns["zenith"]
    else:
        x, y, z = (columns[f"direction_{axis}"] for axis in "xyz")
        with np.errstate(invalid="ignore", divide="ignore"):
            length = np.sqrt(x**2 + y**2 + z**2)
            given = np.arctan2(y, x), np.arccos(np.clip(z / length, -1, 1))
    azimuth, zenith = reading.apply(*given)
    with np.errstate(invalid="ignore"):
        stray = (zenith < -_ROUNDED) | (zenith > np.pi + _ROUNDED)
        stray |= (azimuth < -np.pi - _ROUNDED) | (azimuth > 2 * np.pi + _ROUNDED)
    if stray.mean() > _MAX_STRAY_SHARE:
        _raise_no_radians(*given, chosen, where)
    wrapped = np.mod(np.where(stray, np.nan, azimuth), 2 * np.pi)
    wrapped[wrapped >= 2 * np.pi] = 0.0  # what is just below zero
    return wrapped, np.where(stray, np.nan, np.clip(zenith, 0, np.pi))


def _raise_no_radians(azimuth: Floats, zenith: Floats, chosen: ChosenTable, where: str) -> None:
    found = (
        f"{name} {np.nanmin(values):.4g} to {np.nanmax(values):.4g}"
        for name, values in (("azimuth", azimuth), ("zenith", zenith))
    )
    low, high = np.nanmin(zenith), np.nanmax(zenith)
    if low >= 0 and np.pi < high <= 2 * np.pi + _ROUNDED:
        remedy = "If the columns are swapped: --label-reading columns_swapped"
    elif low < 0 and max(-low, high) <= np.pi / 2 + _ROUNDED:
        remedy = "If it is the angle above the horizon: --label-reading elevation"
    elif max(-low, high) <= 180.01 and np.nanmax(np.abs(azimuth)) <= 360.01:
        remedy = "If they are degrees: --unit angle=deg"
    else:
        remedy = "Name the columns of azimuth and zenith with --column"
    raise RawDataError(
        "directions are not azimuth and zenith in radians",
        where=f"{where} {chosen.place('zenith')}",
        found=", ".join(found),
        expected="azimuth -pi to 2 pi, zenith 0 to pi",
        remedy=remedy,
    )


def _more(columns: dict[str, Floats], reading: LabelReading) -> tuple[dict[str, Any], list[str]]:
    """Take what evaluation may use, where every event has it."""
    more: dict[str, Any] = {}
    notes = []
    energy = columns.get("energy_gev")
    if energy is not None:
        if bool(((energy > 0) & (energy <= MAX_ENERGY_GEV)).all()):
            more["energy_gev"] = energy
        else:
            notes.append("energy: left out, because not every event has one above 0")
    interaction, kind = columns.get("interaction"), columns.get("neutrino_type")
    if interaction is not None and kind is not None:
        if bool((np.isin(interaction, (0, 1, 2)) & np.isin(kind, FLAVOURS)).all()):
            is_track = (interaction == 1) & (np.abs(kind) == 14)
            more["topology"] = np.where(is_track, *TOPOLOGIES)
            more["interaction"] = np.where(interaction == 1, *INTERACTIONS)
            more["flavour"] = kind.astype(np.int64)
        else:
            notes.append("topology: left out, because not every event is a neutrino's, 0 to 2")
    if more:
        more |= {name: columns[name] for name in _PLACE if _is_known(columns, name)}
        more |= {name: columns[name] for name in _SHARES if _is_share(columns.get(name))}
        more |= _muon(columns, reading)
    return more, notes


_PLACE = ("vertex_x_m", "vertex_y_m", "vertex_z_m")
_SHARES = ("bjorken_x", "inelasticity", "visible_inelasticity")


def _is_known(columns: dict[str, Floats], name: str) -> bool:
    return name in columns and bool(np.isfinite(columns[name]).all())


def _is_share(values: Floats | None) -> bool:
    return values is not None and bool((np.isnan(values) | ((values >= 0) & (values <= 1))).all())


def _muon(columns: dict[str, Floats], reading: LabelReading) -> dict[str, Floats]:
    """Take the muon's direction, which is meant as the neutrino's; NaN where it cannot be."""
    if "muon_azimuth" not in columns or "muon_zenith" not in columns:
        return {}
    azimuth, zenith = reading.apply(columns["muon_azimuth"], columns["muon_zenith"])
    with np.errstate(invalid="ignore"):
        is_one = (zenith >= 0) & (zenith <= np.pi + _ROUNDED)
        is_one &= (azimuth >= -np.pi - _ROUNDED) & (azimuth <= 2 * np.pi + _ROUNDED)
    return {
        "muon_azimuth": np.where(is_one, np.mod(azimuth, 2 * np.pi), np.nan),
        "muon_zenith": np.where(is_one, np.clip(zenith, 0, np.pi), np.nan),
    }


def no_truth(event_id: Ints) -> Truth:
    """Make the table of events without labels. event_id: (E,) int64, ascending."""
    unknown = np.full(len(event_id), np.nan)
    return Truth(event_id, unknown, unknown, {})
