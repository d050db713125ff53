"""Foreign events into the raw layout: told first, then read once, then written file by file.

Pulses may lie in any order and in many files. They are read once and dealt into one scratch file
per batch file, so that memory holds the truth of all events and the pulses of one batch file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.detector import Detector, Medium
from iceaggr.errors import RawDataError
from iceaggr.events.cleaning import Account, clean
from iceaggr.events.conversion.file_tables import open_tables
from iceaggr.events.conversion.sensors import SensorKey, Sensors, chosen_medium, read_geometry
from iceaggr.events.conversion.tables import (
    Floats,
    Ints,
    JoinedTable,
    by_event_and_time,
    flags,
    numbers,
    whole_numbers,
)
from iceaggr.events.conversion.truth import EventNumbers, Truth, no_truth, read_truth
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.grouping import group_by_dom
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelReading
from iceaggr.events.layout import ABSENT_CHARGE, ABSENT_FLAG
from iceaggr.events.meta import EventTable
from iceaggr.events.pulses import PulseChunk, decode_pulses
from iceaggr.events.raw_folder import CHECKED, RawFolder
from iceaggr.events.sources import (
    ROW,
    ChosenTable,
    GivenNames,
    check_given,
    choose_pulses,
    choose_truth,
    used_columns,
)
from iceaggr.interfaces import ObjectStore

MARKER = "conversion.json"
"""Written first: says that the folder is a conversion's own, with all its settings."""
Progress = Callable[[int, int], None]
CheckLabels = Callable[[Iterator[DomEvents], Detector], None]

_SCRATCH = np.dtype(
    [("row", "<i4"), ("sensor", "<i8"), ("time", "<f8"), ("charge", "<f8"), ("aux", "<f4")]
)


@dataclass(frozen=True)
class ConversionSettings:
    """How foreign files are read and written.

    geometry: file with all sensors, or the name of the built-in detector; '' = from the pulses
    medium: what the sensors stand in, 'water' or 'ice'; '' = as the geometry says
    sensor_ids: what tells a sensor, see `Sensors`
    label_reading: how azimuth and zenith of the truth are meant
    renumber: give the events of each input numbers of their own
    unlabelled: there is no truth; the events are for prediction
    time_offset_ns: added to all times, for detectors that count from the trigger
    """

    names: GivenNames = field(default_factory=GivenNames)
    geometry: str = ""
    medium: str = ""
    sensor_ids: SensorKey = "auto"
    label_reading: LabelReading = AS_DOCUMENTED
    renumber: bool = False
    unlabelled: bool = False
    time_offset_ns: float = 0.0
    n_events_per_file: int = 20_000


@dataclass(frozen=True)
class Conversion:
    """What is going to be read: the tables that were found, and those that are used.

    told: rows of (table, column, what it is used as), every column of every table, and what is not
    there.  lacking: what every event is to have but the source never has, in sentences.
    medium: what the sensors stand in, None if nobody says it
    """

    inputs: tuple[Path, ...]
    settings: ConversionSettings
    pulse_table: JoinedTable
    truth_table: JoinedTable | None
    pulses: ChosenTable
    truth: ChosenTable | None
    sensors: Sensors
    medium: Medium | None
    told: tuple[tuple[str, str, str], ...]
    lacking: tuple[str, ...]


def plan_conversion(inputs: Sequence[Path], settings: ConversionSettings) -> Conversion:
    """Find the tables and choose what is used of them; only their heads are read.

    Raises: RawDataError if a file cannot be read, a table is not there or several would do;
    DetectorError if the geometry is none.
    """
    tables = open_tables(inputs)
    columns = {name: table.columns for name, table in tables.items()}
    check_given(settings.names, columns)
    pulses = choose_pulses(columns, settings.names)
    truth = None if settings.unlabelled else _truth(columns, settings.names, pulses)
    geometry = read_geometry(settings.geometry) if settings.geometry else None
    medium, medium_words = chosen_medium(settings.medium, geometry)
    sensors = Sensors(pulses, geometry, settings.sensor_ids)
    lacking = lacking_words(pulses)
    return Conversion(
        inputs=tuple(inputs),
        settings=settings,
        pulse_table=tables[pulses.name],
        truth_table=tables[truth.name] if truth else None,
        pulses=pulses,
        truth=truth,
        sensors=sensors,
        medium=medium,
        told=(
            *_told(tables, pulses, truth, sensors, lacking),
            ("(geometry)", "medium", medium_words),
        ),
        lacking=lacking,
    )


_FLAGS = {"auxiliary", "hlc", "lc_flags"}


def lacking_words(pulses: ChosenTable) -> tuple[str, ...]:
    """Say in sentences what the pulses do not have."""
    needed = ((ABSENT_CHARGE, {"charge_pe"}), (ABSENT_FLAG, _FLAGS))
    return tuple(sentence for sentence, fields in needed if not fields & set(pulses.columns))


def _truth(
    columns: dict[str, tuple[str, ...]], names: GivenNames, pulses: ChosenTable
) -> ChosenTable:
    try:
        return choose_truth(columns, names, pulses)
    except RawDataError as error:
        if "no table of truth" not in error.what:
            raise
        raise RawDataError(
            error.what,
            where=error.where,
            found=error.found,
            expected=error.expected,
            remedy=f"{error.remedy}; --unlabelled converts events without truth, for prediction",
        ) from None


def _told(
    tables: dict[str, JoinedTable],
    pulses: ChosenTable,
    truth: ChosenTable | None,
    sensors: Sensors,
    lacking: Sequence[str],
) -> Iterator[tuple[str, str, str]]:
    """Say of every table and column whether and as what it is used."""
    used = used_columns(pulses, set(sensors.fields) | _TAKEN, "pulses")
    if truth:
        for key, use in used_columns(truth, set(truth.columns), "truth").items():
            used[key] = f"{used[key]}, {use}" if key in used else use
    for table in tables.values():
        in_use = any(name == table.name for name, _ in used)
        parts = f"{table.n_rows:,} rows" + (f", {len(table.parts)} files" * (len(table.parts) > 1))
        yield table.name, "", f"{parts}; {'used' if in_use else 'ignored'}"
        for column in table.columns if in_use else ():
            if column != ROW or (table.name, column) in used:
                yield table.name, column, used.get((table.name, column), "ignored")
    for sentence in lacking:
        yield pulses.name, "(none)", sentence


_TAKEN = {"time_ns", "charge_pe", *_FLAGS}


def convert(
    store: ObjectStore,
    plan: Conversion,
    out_uri: str,
    on_progress: Progress | None = None,
    check_labels: CheckLabels | None = None,
) -> tuple[str, ...]:
    """Write the events as batch files, meta file, truth, geometry and notes.

    on_progress: called with rows of pulses read and rows in all.
    check_labels: called with the events, as sharding will read them, before anything is written.
    Returns the notes: what the source does not have, and how it was read.
    Raises: RawDataError if the folder holds another set, an id is missing, events and pulses do
    not fit together, or a sensor stands at two places; StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="iceaggr-convert-") as scratch:
        folder_path = Path(scratch)
        labelled = plan.truth is not None
        with RawFolder(store, out_uri, folder_path, labelled) as folder:
            folder.check_free(MARKER, None)
            events = EventNumbers()
            truth = _read_truth(plan, events)
            dealt = Dealt(folder_path, truth, plan)
            for n_done in dealt.read(events):
                if on_progress:
                    on_progress(n_done, plan.pulse_table.n_rows)
            detector, renamed, sentence = plan.sensors.detector()
            if plan.medium:
                detector = replace(detector, stated_medium=plan.medium)
            sentence += f"; medium: {detector.medium_words}"
            if check_labels and labelled:
                check_labels(read_events(dealt, detector, renamed), detector)
            notes = (*plan.lacking, *_notes(plan, dealt, sentence), *truth.notes)
            folder.claim(MARKER, _settings(plan), detector.to_csv().encode(), notes)
            for number in range(dealt.n_files):
                folder.append_meta(write_batch(folder, folder_path, dealt, number, renamed))
            folder.finish()
        return notes


def _settings(plan: Conversion) -> dict[str, Any]:
    settings = asdict(plan.settings)
    return {
        "inputs": [path.name for path in plan.inputs],
        "pulses": asdict(plan.pulses),
        "truth": asdict(plan.truth) if plan.truth else None,
        **{name: value for name, value in settings.items() if name != "names"},
    }


def _read_truth(plan: Conversion, events: EventNumbers) -> Truth:
    if plan.truth is not None and plan.truth_table is not None:
        return read_truth(
            plan.truth_table,
            plan.truth,
            events,
            plan.settings.label_reading,
            renumber=plan.settings.renumber,
            once_per_pulse=plan.truth.name == plan.pulses.name,
        )
    found = [np.empty(0, np.int64)]
    for number, where, chunk in plan.pulse_table.read(list(plan.pulses.event)):
        found.append(np.unique(events.of(plan.pulses, chunk, where, number)))
        if len(found) > 64:  # together now and then: most are there already
            found = [np.unique(np.concatenate(found))]
    return no_truth(np.unique(np.concatenate(found)))


class Dealt:
    """Pulses dealt into one scratch file for each batch file."""

    def __init__(self, folder: Path, truth: Truth, plan: Conversion) -> None:
        self.truth, self._plan, self._folder = truth, plan, folder
        self._per_file = plan.settings.n_events_per_file
        self.n_files = max(-(-len(truth.event_id) // self._per_file), 1)
        self.is_rounded = False
        self.n_before_zero = 0
        self.n_missing = 0

    def events(self, number: int) -> slice:
        """Select the events of a batch file."""
        return slice(number * self._per_file, (number + 1) * self._per_file)

    def read(self, events: EventNumbers) -> Iterator[int]:
        """Deal all pulses; give the rows read so far. Raises: RawDataError."""
        plan, n_done = self._plan, 0
        fields = [*plan.sensors.fields, *(name for name in _TAKEN if name in plan.pulses.columns)]
        wanted = [*plan.pulses.event, *(plan.pulses.columns[name] for name in fields)]
        for number, where, chunk in plan.pulse_table.read(list(dict.fromkeys(wanted))):
            ids = events.of(plan.pulses, chunk, where, number)
            pulses = np.empty(len(ids), _SCRATCH)
            rank = self._rank(ids, where)
            pulses["row"] = rank % self._per_file
            pulses["sensor"] = self._sensor(chunk, where)
            pulses["time"] = self._time(chunk, where)
            pulses["charge"] = self._charge(chunk, where)
            pulses["aux"] = self._auxiliary(chunk, where)
            self._deal(rank // self._per_file, pulses)
            n_done += len(ids)
            yield n_done

    def pulses(self, number: int) -> Any:
        """Give the pulses of a batch file, by event, then by time."""
        path = self._folder / f"pulses_{number}"
        if not path.exists():
            return np.empty(0, _SCRATCH)
        pulses = np.fromfile(path, _SCRATCH)
        return pulses.take(by_event_and_time(pulses["row"], pulses["time"]))

    def forget(self, number: int) -> None:
        """Delete the scratch file of a batch file."""
        (self._folder / f"pulses_{number}").unlink(missing_ok=True)

    def _deal(self, file: Ints, pulses: Any) -> None:
        order = np.argsort(file, kind="stable")
        numbers_of_files, starts = np.unique(file[order], return_index=True)
        for number, part in zip(numbers_of_files, np.split(order, starts[1:]), strict=False):
            with (self._folder / f"pulses_{number}").open("ab") as scratch:
                pulses[part].tofile(scratch)

    def _rank(self, ids: Ints, where: str) -> Ints:
        """Find the place of each event among all. Raises: RawDataError for one without truth."""
        known = self.truth.event_id
        rank = np.searchsorted(known, ids).clip(max=max(len(known) - 1, 0))
        strange = known[rank] != ids
        if strange.any():
            raise RawDataError(
                "pulses of events without truth",
                where=f"{where} {self._plan.pulses.name}",
                found=f"{len(np.unique(ids[strange]))} events, such as {ids[strange][0]}",
                expected=f"one row of {self._plan.truth_table.name} per event"
                if self._plan.truth_table
                else "one row of truth per event",
                remedy="Give the file with their truth too, or name the column of the event in"
                " both: --column event_id=... --column truth_event_id=...",
            )
        return np.asarray(rank, np.int64)

    def _sensor(self, chunk: Any, where: str) -> Ints:
        chosen, sensors = self._plan.pulses, self._plan.sensors
        places = ("x_m", "y_m", "z_m")
        ids = {
            name: whole_numbers(chunk[chosen.columns[name]], chosen.place(name), where)
            for name in sensors.fields
            if name not in places
        }
        if not sensors.has_positions:
            return sensors.number(ids, None, where)
        xyz_m = np.stack([self._number(name, chunk, where) for name in places], axis=1)
        return sensors.number(ids, xyz_m, where)

    def _number(self, name: str, chunk: Any, where: str) -> Floats:
        chosen = self._plan.pulses
        values = numbers(chunk[chosen.columns[name]], chosen.place(name), where)
        return values * chosen.factors[name] if chosen.factors[name] != 1.0 else values

    def _time(self, chunk: Any, where: str) -> Floats:
        time = self._number("time_ns", chunk, where) + self._plan.settings.time_offset_ns
        whole = np.round(time)
        self.n_missing += int(np.count_nonzero(~np.isfinite(time)))
        with np.errstate(invalid="ignore"):
            self.is_rounded |= bool((whole != time)[np.isfinite(time)].any())
            self.n_before_zero += int(np.count_nonzero(whole < 0))
        return whole

    def _charge(self, chunk: Any, where: str) -> Floats | float:
        has = "charge_pe" in self._plan.pulses.columns
        return self._number("charge_pe", chunk, where) if has else 1.0

    def _auxiliary(self, chunk: Any, where: str) -> Floats | float:
        chosen = self._plan.pulses
        name = next((n for n in ("auxiliary", "hlc", "lc_flags") if n in chosen.columns), "")
        if not name:
            return 0.0
        column, place = chunk[chosen.columns[name]], chosen.place(name)
        if name == "lc_flags":
            return np.asarray(1 - (whole_numbers(column, place, where) & 1), np.float64)
        values = flags(column, place, where)
        return values if name == "auxiliary" else 1 - values


def _notes(plan: Conversion, dealt: Dealt, geometry: str) -> Iterator[str]:
    chosen, truth = plan.pulses, plan.truth
    if dealt.is_rounded:
        yield "time: rounded to whole ns"
    if plan.settings.time_offset_ns:
        yield f"time: {plan.settings.time_offset_ns:g} ns were added"
    if dealt.n_before_zero:
        yield (
            f"time: {dealt.n_before_zero} pulses are before 0 ns, which sharding rejects"
            " (--time-offset adds nanoseconds)"
        )
    yield geometry
    for table in (chosen, truth):
        for name, factor in table.factors.items() if table else ():
            if factor != 1.0 and table:
                yield f"unit: {table.columns[name]} in {table.units[name]}, times {factor:g}"
    if truth:
        columns = [c for n, c in truth.columns.items() if n in _LABEL]
        yield f"label: {', '.join(columns)}, taken as {plan.settings.label_reading.sentence}"


_LABEL = ("azimuth", "zenith", "direction_x", "direction_y", "direction_z")


def write_batch(
    folder: RawFolder,
    scratch: Path,
    dealt: Dealt,
    number: int,
    renamed: dict[str, Ints],
    first_batch: int = 1,
) -> pa.Table:
    """Write a dealt batch file and its truth; gives their rows of the meta file."""
    truth, rows = dealt.truth, dealt.events(number)
    pulses = dealt.pulses(number)
    dealt.forget(number)
    event_id = truth.event_id[rows]
    path = scratch / f"batch_{first_batch + number}.parquet"
    pq.write_table(_pulse_table(pulses, event_id, renamed), path, **CHECKED)
    folder.publish(path)
    if truth.more:
        more = {name: values[rows] for name, values in truth.more.items()}
        pq.write_table(pa.table({"event_id": event_id, **more}), path, **CHECKED)
        folder.publish_truth(path)
    end = np.cumsum(np.bincount(pulses["row"], minlength=len(event_id)))
    columns: dict[str, Any] = {
        "batch_id": np.full(len(event_id), first_batch + number, np.int64),
        "event_id": event_id,
        "first_pulse_index": np.concatenate([[0], end[:-1]]).astype(np.int64),
        "last_pulse_index": end - 1,
    }
    if folder.labelled:
        columns |= {"azimuth": truth.azimuth[rows], "zenith": truth.zenith[rows]}
    return pa.table(columns)


def read_events(dealt: Dealt, detector: Detector, renamed: dict[str, Ints]) -> Iterator[DomEvents]:
    """Give the events as sharding will read them, one batch file after the other."""
    for number in range(dealt.n_files):
        pulses, rows = dealt.pulses(number), dealt.events(number)
        table = EventTable(
            event_id=dealt.truth.event_id[rows],
            n_pulses=np.bincount(pulses["row"], minlength=len(dealt.truth.event_id[rows])),
            azimuth=dealt.truth.azimuth[rows],
            zenith=dealt.truth.zenith[rows],
        )
        decoded = decode_pulses(_pulse_table(pulses, table.event_id, renamed), f"batch {number}")
        chunk = PulseChunk(0, table.n_events, 0, decoded)
        yield group_by_dom(clean(chunk, table, detector, True, Account()), table, detector)


def _pulse_table(pulses: Any, event_id: Ints, renamed: dict[str, Ints]) -> pa.Table:
    sensor = pulses["sensor"]
    if renamed:
        sensor = renamed["sensor_id"][np.searchsorted(renamed["number"], sensor)]
    # beyond 2^62 there is no int64, and nan is none either
    time = np.nan_to_num(pulses["time"], nan=0.0).clip(-(2.0**62), 2.0**62).astype(np.int64)
    aux = pulses["aux"]
    return pa.table(
        {
            "event_id": event_id[pulses["row"]],
            "sensor_id": sensor,
            "time": pa.array(time, mask=np.isnan(pulses["time"])),
            "charge": pulses["charge"],
            "auxiliary": pa.array(aux == 1, mask=np.isnan(aux)),
        }
    )
