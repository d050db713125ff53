"""How a NuBench set is converted: decided once, by a look at all of it and at some events."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from iceaggr.config.sections import LabelWord
from iceaggr.detector import Detector, medium_of
from iceaggr.errors import RawDataError
from iceaggr.events.conversion.convert import (
    ConversionSettings,
    Dealt,
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
    NuBenchFiles,
    ParquetSet,
    SqliteSet,
    incomplete,
    read_selections,
    without_noise,
)
from iceaggr.events.conversion.nubench_reading import (
    Reading,
    Tables,
    chosen_tables,
    open_source,
    recognised_detector,
    table_of_sensors,
)
from iceaggr.events.conversion.sensors import (
    SensorKey,
    chosen_medium,
)
from iceaggr.events.conversion.tables import Ints, is_among
from iceaggr.events.conversion.truth import EventNumbers
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.sources import (
    used_columns,
)
from iceaggr.interfaces import ObjectStore
from iceaggr.storage.uris import FILE_SCHEME

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
    _refuse_cut_pulses(source, files)
    tables = chosen_tables(source.columns)
    given = settings.geometry
    if not given and not files.geometries:
        given = recognised_detector(source, tables, settings.medium)
    geometry, name = table_of_sensors(store, files, given, scratch)
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
        notes=tuple(
            _notes(
                tables,
                settings,
                n_known=len(known),
                n_events=n_events,
                geometry=f"{name.rpartition('/')[2]}, {geometry.detector.n_sensors} sensors",
                medium=medium_words,
            )
        ),
    )
    return SetToConvert(store, plan, files, source, reading)


def _notes(
    tables: Tables,
    settings: ConversionSettings,
    n_known: int,
    n_events: Mapping[str, int],
    geometry: str,
    medium: str,
) -> Iterator[str]:
    yield from tables.lacking
    yield (
        f"events: {n_known:,} in {TRUTH}; {n_events['train']:,} of the official train selection"
        f" with the pulses of {NOISY}, {n_events['test']:,} of the official test selection with"
        f" those of {CLEAN}, {n_known - sum(n_events.values()):,} in neither and left out"
    )
    yield f"geometry: {geometry}; medium: {medium}"
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


# What is refused of the events.

MAX_WITHOUT_PULSES, MIN_WITHOUT_PULSES = 0.1, 10
"""Share of events without a pulse above which a table was cut, and so few that it may be chance."""
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


def _refuse_cut_pulses(source: SqliteSet | ParquetSet, files: NuBenchFiles) -> None:
    """Count sampled events without a pulse in the table of their split. Raises: RawDataError."""
    for split, table in PULSES_OF.items():
        chosen = source.sample(split, N_COMPARED)
        seen: set[int] = set()
        for _, _, columns in chosen.pulses.read([EVENT]):
            seen.update(np.unique(columns[EVENT]).tolist())
        n_events = len(chosen.event_id)
        refuse_empty_events(n_events - len(seen), n_events, f"{files.root_uri} {table}")


def refuse_empty_events(n_empty: int, n_events: int, where: str) -> None:
    """Refuse events of a set that were downloaded without their pulses. Raises: RawDataError."""
    if n_empty > max(MAX_WITHOUT_PULSES * n_events, MIN_WITHOUT_PULSES):
        found = f"no pulse of {n_empty:,} of {n_events:,} events that were looked at"
        raise incomplete(where, found, f"pulses of {1 - MAX_WITHOUT_PULSES:.0%} of them at least")


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


# What a sample of the events says.


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
