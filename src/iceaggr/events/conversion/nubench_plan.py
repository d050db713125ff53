"""How a NuBench set is converted: decided once, by a look at all of it and at some events."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from iceaggr.config.sections import LabelWord
from iceaggr.detector import Detector, medium_of
from iceaggr.errors import DetectorError, MachineError, RawDataError
from iceaggr.events.conversion.convert import (
    Conversion,
    ConversionSettings,
    Dealt,
    lacking_words,
    read_events,
)
from iceaggr.events.conversion.nubench import (
    CLEAN,
    DOWNLOAD,
    EVENT,
    NOISY,
    PARTS_PER_GROUP,
    PULSES_OF,
    TRUTH,
    Chosen,
    NuBenchFiles,
    ParquetSet,
    SqliteSet,
    incomplete,
    is_among,
    read_selections,
    without_noise,
)
from iceaggr.events.conversion.sensors import (
    SensorKey,
    Sensors,
    SensorTable,
    chosen_medium,
    read_geometry,
)
from iceaggr.events.conversion.tables import Ints
from iceaggr.events.conversion.truth import EventNumbers, Truth, read_truth
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.sources import (
    ChosenTable,
    GivenNames,
    choose_pulses,
    choose_truth,
    used_columns,
)
from iceaggr.interfaces import ObjectStore
from iceaggr.storage.uris import FILE_SCHEME, file_path

ReadLabels = Callable[[Iterator[DomEvents], Detector], LabelReading]
"""Judges labels that were read as documented, and says how they are meant. Raises: RawDataError."""
N_SAMPLE, N_TEST_SAMPLE = 16_384, 1_024
"""Events whose labels, sensors and times are looked at before anything is written."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Group(_Document):
    """Some batch files of one split: places [start, stop) in its order, first_batch and on."""

    split: Literal["train", "test"]
    start: int
    stop: int
    first_batch: int


class NuBenchPlan(_Document):
    """How a set is converted.

    files_digest: of the set's files.  n_events: train, test, and those in no selection
    part_counts: of each Parquet part, its events of train and of test
    """

    layout: Literal["nubench"] = "nubench"
    root_uri: str
    files_digest: str
    geometry: str
    medium: str
    sensor_ids: SensorKey
    label_reading: tuple[LabelWord, ...]
    time_offset_ns: float
    n_events_per_file: int
    n_events: dict[str, int]
    part_counts: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SetToConvert:
    """A plan and what reads the set as it says."""

    store: ObjectStore
    plan: NuBenchPlan
    files: NuBenchFiles
    source: SqliteSet | ParquetSet
    reading: Reading

    @property
    def is_one_unit(self) -> bool:
        """Tell a database in an object store, which every process would copy whole."""
        database = self.files.database
        return database is not None and not database.uri.startswith(FILE_SCHEME)

    @property
    def detector(self) -> Detector:
        """Give the sensors, in the medium of the plan."""
        detector = self.reading.geometry.detector
        medium = medium_of(self.plan.medium, "the plan") if self.plan.medium else None
        return replace(detector, stated_medium=medium) if medium else detector

    def told(self) -> Iterator[tuple[str, str, str]]:
        """Say what is used: rows of (table, column, use)."""
        tables = self.reading.tables
        for split, name in PULSES_OF.items():
            yield name, "", f"pulses of the {self.plan.n_events[split]:,} {split} events"
        used = used_columns(tables.pulses, {*tables.pulses.columns}, "pulses")
        used |= used_columns(tables.truth, {*tables.truth.columns}, "truth")
        for (table, column), use in used.items():
            yield table, column, use
        for note in self.plan.notes:
            yield "(set)", "", note


def plan_nubench(
    store: ObjectStore,
    files: NuBenchFiles,
    settings: ConversionSettings,
    scratch: Path,
    read_labels: ReadLabels | None = None,
) -> SetToConvert:
    """Look at the whole set and at a sample of its events; nothing is written.

    scratch: folder for a copy of a database that lies in an object store, and for the sample.
    read_labels: None takes the labels as the settings say.
    Raises: RawDataError if the set is cut, a selection names missing events, the training pulses
    have no noise, pulses and geometry disagree, or the labels are none; DetectorError.
    """
    files.check_complete()
    selections = read_selections(store, files)
    source = open_source(store, files, selections, scratch)
    known = np.sort(np.concatenate([ids for _, ids in source.event_ids()]))
    _refuse_wrong_events(selections, known, files)
    _refuse_equal_pulses(source, files)
    tables = chosen_tables(source.columns)
    geometry, name = table_of_sensors(store, files, settings.geometry, scratch)
    medium, medium_words = chosen_medium(settings.medium, geometry)
    reading, sample = _sampled(source, Reading(tables, geometry, settings), scratch)
    if read_labels:
        words = read_labels(read_events(sample, geometry.detector, {}), geometry.detector)
        reading = replace(reading, settings=replace(reading.settings, label_reading=words))
    n_events = {split: len(ids) for split, ids in selections.items()}
    counts = tuple(source.counts) if isinstance(source, ParquetSet) else ()
    settings = reading.settings
    plan = NuBenchPlan(
        root_uri=files.root_uri,
        files_digest=files.digest(),
        geometry=name,
        medium=medium.name if medium else "",
        sensor_ids=settings.sensor_ids,
        label_reading=settings.label_reading.words,
        time_offset_ns=settings.time_offset_ns,
        n_events_per_file=settings.n_events_per_file,
        n_events=n_events | {"left_out": len(known) - sum(n_events.values())},
        part_counts=counts,
        groups=tuple(_groups(n_events, settings.n_events_per_file, counts)),
        notes=tuple(_notes(tables, settings, len(known), n_events, geometry, medium_words)),
    )
    return SetToConvert(store, plan, files, source, reading)


def _notes(
    tables: _Tables,
    settings: ConversionSettings,
    n_known: int,
    n_events: Mapping[str, int],
    geometry: SensorTable,
    medium_words: str,
) -> Iterator[str]:
    yield from tables.lacking
    yield (
        f"events: {n_known:,} in {TRUTH}; {n_events['train']:,} of the official train selection"
        f" with the pulses of {NOISY}, {n_events['test']:,} of the official test selection with"
        f" those of {CLEAN}, {n_known - sum(n_events.values()):,} in neither and left out"
    )
    yield f"geometry: {geometry.detector.n_sensors} sensors; medium: {medium_words}"
    if settings.sensor_ids == "position":
        yield "geometry: sensors are told by their place, their ids are numbered otherwise"
    offset = settings.time_offset_ns
    yield "time: rounded to whole ns" + (f", {offset:g} ns were added" if offset else "")
    yield f"label: {_LABEL}, taken as {settings.label_reading.sentence}"


_LABEL = "azimuth and zenith of the neutrino's initial state"


def _groups(
    n_events: Mapping[str, int], per_file: int, counts: Sequence[tuple[int, int]]
) -> Iterator[Group]:
    """Cut each split into groups of whole batch files, which Parquet parts fill at least once."""
    first_batch = 1
    for k, split in enumerate(PULSES_OF):
        n_of_part = sum(of_part[k] for of_part in counts) / max(len(counts), 1)
        size = per_file * max(1, round(PARTS_PER_GROUP * n_of_part / per_file))
        for start in range(0, n_events[split], size):
            stop = min(start + size, n_events[split])
            yield Group(split=split, start=start, stop=stop, first_batch=first_batch)
            first_batch += -(-(stop - start) // per_file)


def open_source(
    store: ObjectStore,
    files: NuBenchFiles,
    selections: Mapping[str, Any],
    scratch: Path,
    counts: Sequence[tuple[int, int]] = (),
) -> SqliteSet | ParquetSet:
    """Open the tables of a set; a database is copied to scratch where it lies in an object store.

    selections: split -> event numbers, ascending.  counts: as a plan has them, of Parquet parts.
    Raises: RawDataError if a table is not there or cut; MachineError without room for a copy.
    """
    if files.database is None:
        return ParquetSet(store, files, selections, counts)
    uri = files.database.uri
    if uri.startswith(FILE_SCHEME):
        return SqliteSet(file_path(uri), selections)
    free = shutil.disk_usage(scratch).free
    if free < files.database.n_bytes:
        raise MachineError(
            "no room for the database",
            where=str(scratch),
            found=f"{free:,} bytes free",
            expected=f"{files.database.n_bytes:,}: SQLite is not read through an object store",
            remedy="Set TMPDIR to a larger disk, or store the set as Parquet, which is read in"
            " place",
        )
    path = scratch / "merged.db"
    store.download(uri, path)
    return SqliteSet(path, selections)


# What is refused of the events.

N_COMPARED = 256
"""Train events whose pulses with and without noise are counted."""


def _refuse_wrong_events(selections: Mapping[str, Ints], known: Ints, files: NuBenchFiles) -> None:
    """Refuse events that are twice in the truth, or only in a selection. known: (n,), ascending."""
    twice = known[1:][known[1:] == known[:-1]]
    if len(twice):
        raise RawDataError(
            "two events have one id",
            where=f"{files.root_uri} {TRUTH}.{EVENT}",
            found=f"event {twice[0]}",
            expected="one row of truth per event",
            remedy="Download the set again; parts of two sets are not mixed",
        )
    for split, ids in selections.items():
        missing = ids[~is_among(known, ids)]
        if len(missing):
            raise incomplete(
                files.selections[split].uri,
                f"{len(missing):,} of {len(ids):,} events are not in {TRUTH}, such as {missing[0]}",
                f"events of this set, {len(known):,} of which are here",
                f"{DOWNLOAD}; selections belong to one set only",
            )


def _refuse_equal_pulses(source: SqliteSet | ParquetSet, files: NuBenchFiles) -> None:
    """Compare both tables of pulses on some train events. Raises: RawDataError without noise."""
    n_pulses = {}
    for table in (NOISY, CLEAN):
        chosen = source.sample("train", N_COMPARED, table)
        rows = (len(columns[EVENT]) for _, _, columns in chosen.pulses.read([EVENT]))
        n_pulses[table] = sum(rows)
    if n_pulses[NOISY] <= n_pulses[CLEAN]:
        found = f"{n_pulses[NOISY]:,} pulses of {len(chosen.event_id):,} events"
        raise without_noise(
            f"{files.root_uri} {NOISY}", f"{found}, and {n_pulses[CLEAN]:,} in {CLEAN}"
        )


# Which columns and sensors are used, and what a sample of the events says of them.


@dataclass(frozen=True)
class _Tables:
    """The columns that are taken: those of both tables of pulses have the same names."""

    pulses: ChosenTable
    truth: ChosenTable
    lacking: tuple[str, ...]


def chosen_tables(columns: Mapping[str, tuple[str, ...]]) -> _Tables:
    """Choose what is taken of each table. columns: table -> its columns. Raises: RawDataError."""
    tables = {name: columns[name] for name in (NOISY, TRUTH)}
    pulses = choose_pulses(tables, GivenNames())
    truth = choose_truth(tables, GivenNames(), pulses)
    absent = [name for name in pulses.wanted if name not in columns[CLEAN]]
    if absent:
        raise RawDataError(
            "the two tables of pulses differ",
            where=CLEAN,
            found=f"no column {absent[0]}",
            expected=f"the columns of {NOISY}",
            remedy="Download the set again; both tables are of one set",
        )
    return _Tables(pulses, truth, lacking_words(pulses))


def table_of_sensors(
    store: ObjectStore, files: NuBenchFiles, given: str, scratch: Path
) -> tuple[SensorTable, str]:
    """Read the sensor table that was given, or the one beside the set: it and its name."""
    uris = files.geometries
    if not given and len(uris) != 1:
        raise DetectorError(
            "nothing tells where all sensors stand",
            where=files.root_uri,
            found=", ".join(uri.rpartition("/")[2] for uri in uris) or "no table of sensors",
            expected="one, geometry.parquet",
            remedy="Put the detector's table there (GraphNeT has those of NuBench), or name it with"
            " --geometry",
        )
    name = given or uris[0]
    if "://" not in name:
        return read_geometry(name), name
    if name.startswith(FILE_SCHEME):
        return read_geometry(str(file_path(name))), name
    path = scratch / name.rpartition("/")[2]
    store.download(name, path)
    return read_geometry(str(path)), name


@dataclass(frozen=True)
class Reading:
    """How the rows of a set become pulses."""

    tables: _Tables
    geometry: SensorTable
    settings: ConversionSettings

    def dealt(self, folder: Path, chosen: Chosen, with_places: bool = True) -> Dealt:
        """Prepare to deal the pulses of some events. folder: empty.

        with_places: compare each pulse's place with the geometry; the ids alone are read faster.
        Raises: RawDataError if an event has no truth.
        """
        pulses = replace(self.tables.pulses, name=chosen.pulses.name)
        if self.settings.sensor_ids == "column" and not with_places:
            taken = {n: c for n, c in pulses.columns.items() if n not in _OF_PLACES}
            pulses = replace(pulses, columns=taken)
        conversion = Conversion(
            inputs=(),
            settings=self.settings,
            pulse_table=chosen.pulses,
            truth_table=chosen.truth,
            pulses=pulses,
            truth=self.tables.truth,
            sensors=Sensors(pulses, self.geometry, self.settings.sensor_ids),
            medium=None,
            told=(),
            lacking=self.tables.lacking,
        )
        return Dealt(folder, self._truth(chosen), conversion)

    def _truth(self, chosen: Chosen) -> Truth:
        truth = read_truth(
            chosen.truth,
            self.tables.truth,
            EventNumbers(),
            self.settings.label_reading,
            renumber=False,
            once_per_pulse=False,
        )
        if len(truth.event_id) != len(chosen.event_id):
            raise RawDataError(
                "events of a selection have no truth",
                where=f"{chosen.truth.parts[0][1].where} {TRUTH}",
                found=f"{len(truth.event_id):,} of {len(chosen.event_id):,}",
                expected="a row for each",
                remedy="The set changed meanwhile: begin the conversion again",
            )
        return truth


_OF_PLACES = ("x_m", "y_m", "z_m", "string", "dom")


def _sampled(
    source: SqliteSet | ParquetSet, reading: Reading, scratch: Path
) -> tuple[Reading, Dealt]:
    """Read a sample of both splits, and learn what tells a sensor and when the earliest pulse is.

    Returns the reading with that, and the sample of train events.
    Raises: RawDataError if pulses and geometry disagree.
    """
    tried, dealt = _either_way(source, reading, scratch)
    earliest = min(float(dealt.pulses(k)["time"].min(initial=0)) for k in range(dealt.n_files))
    if earliest < 0 and not reading.settings.time_offset_ns:
        # sharding rejects what is before 0; a microsecond more for events outside the sample
        offset = 1000.0 * (1 + math.ceil(-earliest / 1000))
        moved = replace(tried.settings, time_offset_ns=offset)
        tried = replace(tried, settings=moved)
        dealt = _deal_sample(source, tried, scratch)
    return tried, dealt


def _either_way(
    source: SqliteSet | ParquetSet, reading: Reading, scratch: Path
) -> tuple[Reading, Dealt]:
    """Tell a sensor by its id or, where the geometry numbers them otherwise, by its place."""
    if reading.settings.sensor_ids != "auto":
        return reading, _deal_sample(source, reading, scratch)
    by_id, by_place = (
        replace(reading, settings=replace(reading.settings, sensor_ids=way))
        for way in ("column", "position")
    )
    try:
        return by_id, _deal_sample(source, by_id, scratch)
    except RawDataError as error:
        with suppress(RawDataError):
            return by_place, _deal_sample(source, by_place, scratch)
        raise error from None


def _deal_sample(source: SqliteSet | ParquetSet, reading: Reading, scratch: Path) -> Dealt:
    dealt = []
    for split, n_events in (("test", N_TEST_SAMPLE), ("train", N_SAMPLE)):
        folder = Path(tempfile.mkdtemp(prefix=f"{split}-", dir=scratch))
        dealt.append(reading.dealt(folder, source.sample(split, n_events)))
        for _ in dealt[-1].read(EventNumbers()):
            pass
    return dealt[-1]
