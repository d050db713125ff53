"""The names that other people's files give to pulses, sensors and truth. They live only here.

Whatever is not named by the user is guessed from these lists, and every guess is told before
anything is written.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from iceaggr.errors import RawDataError

ROW = "(row)"
"""Column of tables of nested rows: the number of the row, which is one event."""

UNITS = {
    "time": {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9},
    "position": {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "km": 1e3},
    "angle": {"rad": 1.0, "deg": 0.017453292519943295},
    "energy": {"gev": 1.0, "mev": 1e-3, "tev": 1e3, "pev": 1e6},
    "charge": {"pe": 1.0},
}
"""How much one unit is of the first one of its row, which is ours."""

_COORDINATES = (
    "sensor_pos_{}",
    "dom_{}",
    "sensor_{}",
    "pos_{}",
    "position_{}",
    "{}",
    "hit_{}",
    "om_{}",
)
_ANGLES = ("{}", "initial_state_{}", "injection_{}", "true_{}", "{}_true", "mc_{}", "neutrino_{}")
_VECTOR = ("dir_{}", "direction_{}", "true_dir_{}", "mc_dir_{}", "initial_state_dir_{}")
_VERTEX = ("initial_state_{}", "injection_position_{}", "vertex_{}", "position_{}", "pos_{}")

PULSE_FIELDS = {
    "time_ns": (
        "dom_time",
        "pulse_time",
        "hit_time",
        "time",
        "t",
        "arrival_time",
        "photon_time",
    ),
    "sensor_id": ("sensor_id", "dom_id", "module_id", "pmt_id", "om_id", "sensor", "om"),
    "string": ("sensor_string_id", "string_id", "string", "line_id", "du_id", "du"),
    "dom": ("dom_number", "om", "dom", "om_number", "sensor_number", "floor"),
    "x_m": tuple(name.format("x") for name in _COORDINATES),
    "y_m": tuple(name.format("y") for name in _COORDINATES),
    "z_m": tuple(name.format("z") for name in _COORDINATES),
    "charge_pe": ("charge", "q", "npe", "n_pe", "pe"),
    "auxiliary": ("auxiliary", "aux", "is_aux"),
    "hlc": ("hlc", "lc", "is_hlc"),
    "lc_flags": ("flags",),
}
"""What a table of pulses may hold: our name, and theirs in order of preference. hlc is the opposite
of auxiliary, lc_flags a bit field of which the lowest bit is hlc (IceTray's recorded pulses)."""

TRUTH_FIELDS = {
    "azimuth": (*(name.format("azimuth") for name in _ANGLES), "phi"),
    "zenith": (*(name.format("zenith") for name in _ANGLES), "theta"),
    "direction_x": tuple(name.format("x") for name in _VECTOR),
    "direction_y": tuple(name.format("y") for name in _VECTOR),
    "direction_z": tuple(name.format("z") for name in _VECTOR),
    "energy_gev": tuple(name.format("energy") for name in _ANGLES),
    "interaction": ("interaction", "interaction_type", "injection_interaction_type"),
    "neutrino_type": ("initial_state_type", "injection_type", "pid", "pdg", "pdg_encoding"),
    "vertex_x_m": tuple(name.format("x") for name in _VERTEX),
    "vertex_y_m": tuple(name.format("y") for name in _VERTEX),
    "vertex_z_m": tuple(name.format("z") for name in _VERTEX),
    "muon_azimuth": ("muon_azimuth",),
    "muon_zenith": ("muon_zenith",),
    "bjorken_x": ("bjorken_x", "injection_bjorkenx"),
    "inelasticity": ("bjorken_y", "injection_bjorkeny", "inelasticity"),
    "visible_inelasticity": ("visible_inelasticity",),
}
"""What a table of truth may hold; interaction is 1 for a charged current."""

GEOMETRY_FIELDS = {
    **{name: PULSE_FIELDS[name] for name in ("sensor_id", "string", "dom", "x_m", "y_m", "z_m")},
    "efficiency": ("efficiency", "rde", "relative_efficiency", "relative_dom_eff"),
}

EVENT_NAMES = ("event_no", "event_id", "eventid", "event_number", "evt_id", "evt_no", "event", ROW)
RUN_NAMES = (("run", "run_id"), ("event", "event_id"), ("subevent", "sub_event", "sub_event_id"))
"""Of files without one number per event: run and event, and the part of a split event."""
EVENT_FIELDS = ("event_id", "truth_event_id")
_PREFERRED_PULSES = ("merged_photons", "total")
"""Of NuBench and Prometheus: they hold the pulses of the tables beside them, and the noise."""
_PREFERRED_TRUTH = ("mc_truth", "truth", "mcprimary", "mc_primary")

QUANTITY = {
    "time_ns": "time",
    **dict.fromkeys(("x_m", "y_m", "z_m"), "position"),
    **dict.fromkeys(("vertex_x_m", "vertex_y_m", "vertex_z_m"), "position"),
    **dict.fromkeys(("azimuth", "zenith", "muon_azimuth", "muon_zenith"), "angle"),
    "energy_gev": "energy",
    "charge_pe": "charge",
}
_SUFFIX = re.compile(r"(.+?)[_ \[(]+(ns|us|µs|ms|s|mm|cm|km|m|rad|deg|mev|gev|tev|pev|pe)[\])]?")
ABSENT = "none"
"""Given as the column of a field that the file has under a name, but not in truth."""


@dataclass(frozen=True)
class GivenNames:
    """What the user says of the source; everything else is guessed.

    columns: our field -> their column.  units: quantity -> unit.
    """

    pulses: str = ""
    truth: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ChosenTable:
    """A table and what is taken from it.

    event: the column, or the columns, that together name the event.
    columns: our field -> their column.  factors: our field -> what its values are multiplied by.
    """

    name: str
    event: tuple[str, ...]
    columns: Mapping[str, str]
    factors: Mapping[str, float]
    units: Mapping[str, str]

    @property
    def wanted(self) -> list[str]:
        """Name all columns that are read, each once."""
        return list(dict.fromkeys((*self.event, *self.columns.values())))

    def place(self, field_name: str) -> str:
        """Name a column as an error does, with the flag that names another one."""
        return f"{self.name}.{self.columns[field_name]} (--column {field_name}=...)"


def check_given(given: GivenNames, tables: Mapping[str, Sequence[str]]) -> None:
    """Refuse a field, a unit or a column that there is not. Raises: RawDataError with the flag."""
    fields = [*EVENT_FIELDS, *PULSE_FIELDS, *TRUTH_FIELDS]
    for name, column in given.columns.items():
        _refuse_unknown("--column", name, f"{name}={column}", fields)
    for quantity, unit in given.units.items():
        _refuse_unknown("--unit", quantity, f"{quantity}={unit}", list(UNITS))
        if unit.lower() not in UNITS[quantity]:
            raise RawDataError(
                f"unknown unit of {quantity}",
                where=f"--unit {quantity}={unit}",
                found=repr(unit),
                expected=", ".join(UNITS[quantity]),
                remedy="Give one of these",
            )
    everywhere = list(dict.fromkeys(column for columns in tables.values() for column in columns))
    for name, column in given.columns.items():
        if column != ABSENT:
            _refuse_no_column("no table", name, column, everywhere)


def _refuse_no_column(table: str, name: str, column: str, columns: Sequence[str]) -> None:
    if column not in columns:
        near = difflib.get_close_matches(column, columns, 1, cutoff=0.5)
        raise RawDataError(
            f"{table} has a column {column}" if table == "no table" else f"{table} lacks {column}",
            where=f"--column {name}={column}",
            found=f"columns {', '.join(columns)}",
            expected="one of these",
            remedy=f"Did you mean {near[0]}?" if near else "Name a column that is there",
        )


def _refuse_unknown(flag: str, name: str, given: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise RawDataError(
            f"{flag} names what there is not",
            where=f"{flag} {given}",
            found=repr(name),
            expected=", ".join(known),
            remedy=f"Did you mean {near[0]}?" if near else "Give one of these",
        )


def choose_pulses(tables: Mapping[str, Sequence[str]], given: GivenNames) -> ChosenTable:
    """Choose the table of pulses and its columns. tables: name -> columns.

    Raises: RawDataError if none or several fit, or a named table or column is not there.
    """
    fitting = {
        name: chosen
        for name, columns in tables.items()
        if (chosen := _fit(name, columns, PULSE_FIELDS, "event_id", given)) and _has_pulses(chosen)
    }
    what = "an event, a time, and a sensor_id, a string and dom, or a position"
    near = _nearest(tables, PULSE_FIELDS, "event_id", given, given.pulses)
    name = _pick(tables, fitting, given.pulses, _PREFERRED_PULSES, "pulses", what, near)
    return _whole(name, tables[name], PULSE_FIELDS, "event_id", given)


def choose_truth(
    tables: Mapping[str, Sequence[str]], given: GivenNames, pulses: ChosenTable
) -> ChosenTable:
    """Choose the table of truth: an event and its direction. Raises: as `choose_pulses`."""
    key = "truth_event_id" if "truth_event_id" in given.columns else "event_id"
    fitting = {}
    for name, columns in tables.items():
        chosen = _fit(name, columns, TRUTH_FIELDS, key, given, like=pulses.event)
        if chosen and _has_direction(chosen):
            fitting[name] = chosen
    if len(fitting) > 1 and not given.truth:  # each pulse may have the label of its event, too
        fitting.pop(pulses.name, None)
    what = "an event, and azimuth and zenith, or direction_x, direction_y and direction_z"
    near = _nearest(tables, TRUTH_FIELDS, key, given, given.truth)
    name = _pick(tables, fitting, given.truth, _PREFERRED_TRUTH, "truth", what, near)
    return _whole(name, tables[name], TRUTH_FIELDS, key, given, like=pulses.event)


def counts_on_each_string(pulses: ChosenTable) -> bool:
    """Tell Prometheus' own rows of whole events, whose sensor_id counts on each string anew."""
    columns = pulses.columns
    names = (columns.get("string"), columns.get("sensor_id"))
    return pulses.event == (ROW,) and names == ("string_id", "sensor_id")


def choose_geometry(columns: Sequence[str], given: GivenNames) -> dict[str, tuple[str, float]]:
    """Find the columns of a sensor table: our field -> their column, and its factor."""
    found = {}
    for name, names in GEOMETRY_FIELDS.items():
        column, unit = _guess(columns, names)
        if column:
            found[name] = (column, UNITS["position"].get(unit, 1.0))
    return found


def _fit(
    name: str,
    columns: Sequence[str],
    fields: Mapping[str, Sequence[str]],
    key: str,
    given: GivenNames,
    like: tuple[str, ...] = (),
) -> ChosenTable | None:
    """Take from a table what it has of the fields; None if nothing in it names an event."""
    event = _event_columns(columns, given.columns.get(key, ""), like)
    if not event:
        return None
    found, factors, units = {}, {}, {}
    for field_name, names in fields.items():
        column, unit = _guess([c for c in columns if c not in event], names)
        column = given.columns.get(field_name, column)
        if column and column != ABSENT and column in columns:
            quantity = QUANTITY.get(field_name, "")
            unit = _unit(column) if unit not in UNITS.get(quantity, {}) else unit
            unit = given.units.get(quantity, unit).lower()
            if unit not in UNITS.get(quantity, {}):
                unit = next(iter(UNITS.get(quantity, {})), "")
            found[field_name] = column
            units[field_name] = unit
            factors[field_name] = UNITS[quantity][unit] if quantity else 1.0
    if "sensor_id" in found and found["sensor_id"] == found.get("dom"):
        # an `om` counts on its string, or all sensors where there is no string
        del found["sensor_id" if "string" in found else "dom"]
    return ChosenTable(name, event, found, factors, units)


def _whole(
    name: str,
    columns: Sequence[str],
    fields: Mapping[str, Sequence[str]],
    key: str,
    given: GivenNames,
    like: tuple[str, ...] = (),
) -> ChosenTable:
    """Take what the chosen table has, after a look at the columns that the user named."""
    for field_name in (key, *fields):
        column = given.columns.get(field_name, ABSENT)
        if column != ABSENT:
            _refuse_no_column(f"table {name}", field_name, column, columns)
    chosen = _fit(name, columns, fields, key, given, like)
    assert chosen is not None, "a table was picked that names no event"
    return chosen


def _event_columns(columns: Sequence[str], given: str, like: tuple[str, ...]) -> tuple[str, ...]:
    """Find what names the event: the same column as in the other table if it is there."""
    if given:
        return (given,) if given in columns else ()
    if like and all(column in columns for column in like):
        return like
    for name in EVENT_NAMES[:2]:
        column, _ = _guess(columns, (name,))
        if column:
            return (column,)
    parts = [_guess(columns, names)[0] for names in RUN_NAMES]
    if parts[0] and parts[1]:
        return tuple(part for part in parts if part)
    column, _ = _guess(columns, EVENT_NAMES)
    return (column,) if column else ()


def _guess(columns: Sequence[str], names: Iterable[str]) -> tuple[str, str]:
    """Find the first of their names among the columns: the column and the unit in its name."""
    plain = {_plain(column): column for column in reversed(columns)}
    stems = {}
    for column in reversed(columns):
        found = _SUFFIX.fullmatch(_plain(column))
        if found:
            stems[found[1]] = (column, found[2])
    for name in names:
        if name in plain:
            return plain[name], ""
        if name in stems:
            return stems[name]
    return "", ""


def _plain(column: str) -> str:
    """Write a name as the lists do: `Event Number` is event_number."""
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def _unit(column: str) -> str:
    found = _SUFFIX.fullmatch(_plain(column))
    return found[2] if found else ""


def _has_pulses(table: ChosenTable) -> bool:
    return "time_ns" in table.columns and _is_placed(table)


def _is_placed(table: ChosenTable) -> bool:
    has = set(table.columns)
    return {"x_m", "y_m", "z_m"} <= has or "sensor_id" in has or {"string", "dom"} <= has


def _has_direction(table: ChosenTable) -> bool:
    has = set(table.columns)
    return {"azimuth", "zenith"} <= has or {"direction_x", "direction_y", "direction_z"} <= has


def _pick(
    tables: Mapping[str, Sequence[str]],
    fitting: Mapping[str, ChosenTable],
    given: str,
    preferred: Sequence[str],
    flag: str,
    needs: str,
    nearest: tuple[str, Sequence[str]],
) -> str:
    """Take the table that the user named, the only one that fits, or the one of a known name.

    nearest: where none fits, the table that lacks the least and the fields that it lacks
    """
    candidates = [given] if given in fitting else [] if given else list(fitting)
    known = [name for p in preferred for name in candidates if name.lower().split("/")[-1] == p]
    if len(candidates) == 1 or len(known) == 1:
        return (known or candidates)[0]
    if given and given not in tables:
        what = f"there is no table {given}"
    elif given:
        what = f"table {given} lacks columns for {flag}"
    else:
        what = f"several tables could be the {flag}" if candidates else f"no table of {flag}"
    shown = candidates or ([given] if given in tables else list(tables))
    found = "; ".join(f"{name} ({', '.join(tables[name])})" for name in shown) or "no table"
    remedy = f"Name the table with --{flag} TABLE, and its columns with --column FIELD=COLUMN"
    table, lacking = nearest
    if lacking and not candidates and given in ("", table):
        found += f"; the nearest, {table}, has no column known as {', '.join(lacking)}"
        named = " ".join(f"--column {field_name}=NAME" for field_name in lacking)
        remedy = f"Name what is missing: {'' if given else f'--{flag} {table} '}{named}"
    raise RawDataError(
        what,
        where=f"--{flag}",
        found=found,
        expected=f"one table with {needs}",
        remedy=remedy,
    )


def _nearest(
    tables: Mapping[str, Sequence[str]],
    fields: Mapping[str, Sequence[str]],
    key: str,
    given: GivenNames,
    named: str,
) -> tuple[str, Sequence[str]]:
    """Find the table that lacks the least, and the fields that it lacks; ('', ()) of none."""
    lacking = {}
    for name, columns in tables.items():
        if name == named or not named:
            # the number of the row stands for an event that has no other name
            chosen = _fit(name, [*columns, ROW], fields, key, given)
            if chosen and chosen.columns:
                event = [key] if chosen.event == (ROW,) and ROW not in columns else []
                lacking[name] = ([*event, *_lacking(chosen, fields)], -len(chosen.columns))
    if not lacking:
        return "", ()
    name = min(lacking, key=lambda name: (len(lacking[name][0]), lacking[name][1]))
    return name, lacking[name][0]


def _lacking(table: ChosenTable, fields: Mapping[str, Sequence[str]]) -> list[str]:
    """Name the fields of pulses or truth that a table lacks."""
    has = table.columns
    if "azimuth" in fields:
        vector = ("direction_x", "direction_y", "direction_z")
        wanted = vector if any(name in has for name in vector) else ("azimuth", "zenith")
        return [] if _has_direction(table) else [name for name in wanted if name not in has]
    time = [] if "time_ns" in has else ["time_ns"]
    if _is_placed(table):
        return time
    return [*time, "dom" if "string" in has else "string" if "dom" in has else "sensor_id"]


_SHOWN = {"gev": "GeV", "mev": "MeV", "tev": "TeV", "pev": "PeV", "pe": "p.e."}


def used_columns(table: ChosenTable, fields: set[str], what: str) -> dict[tuple[str, str], str]:
    """Say of each column of a table as what it is used: (table, column) -> words."""
    used = {(table.name, column): f"event of the {what}" for column in table.event}
    for name, column in table.columns.items():
        if name in fields:
            unit = table.units.get(name, "")
            factor = table.factors.get(name, 1.0)
            scaled = f", times {factor:g}" if factor != 1.0 else ""
            used[table.name, column] = (
                f"{name}{f' [{_SHOWN.get(unit, unit)}]' if unit else ''}{scaled}"
            )
    return used
