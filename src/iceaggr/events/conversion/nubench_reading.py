"""How the rows of a NuBench set become pulses: tables, columns, and the sensors that are meant."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from iceaggr.built_in_detectors import built_in_detector, names_around
from iceaggr.detector import Detector
from iceaggr.errors import DetectorError, MachineError, RawDataError
from iceaggr.events.cleaning import lone_pulses
from iceaggr.events.conversion.convert import Conversion, ConversionSettings, Dealt, lacking_words
from iceaggr.events.conversion.nubench import (
    CLEAN,
    NOISY,
    TRUTH,
    Chosen,
    NuBenchFiles,
    ParquetSet,
    SqliteSet,
)
from iceaggr.events.conversion.sensors import Sensors, SensorTable, read_geometry
from iceaggr.events.conversion.tables import numbers
from iceaggr.events.conversion.truth import EventNumbers, Truth, read_truth
from iceaggr.events.layout import ABSENT_FLAG, MADE_FLAG
from iceaggr.events.sources import ChosenTable, GivenNames, choose_pulses, choose_truth
from iceaggr.interfaces import ObjectStore
from iceaggr.storage.uris import FILE_SCHEME, file_path


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


@dataclass(frozen=True)
class Tables:
    """The columns that are taken: those of both tables of pulses have the same names."""

    pulses: ChosenTable
    truth: ChosenTable
    lacking: tuple[str, ...]


def chosen_tables(columns: Mapping[str, tuple[str, ...]]) -> Tables:
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
    lacking = (MADE_FLAG if s == ABSENT_FLAG else s for s in lacking_words(pulses))
    return Tables(pulses, truth, tuple(lacking))


N_PLACES = 1_024
"""Test events whose pulses are compared with the built-in detectors."""
_TEV = 1_000.0


def recognised_detector(source: SqliteSet | ParquetSet, tables: Tables, medium: str) -> str:
    """Name the built-in detector at whose sensors all pulses of a sample are; '' if there is none.

    NuBench's Hexagon stands in water where energies reach 100 TeV, and in ice where they end at
    1 TeV; medium: 'water' or 'ice' if the user says it, else ''.
    """
    chosen = source.sample("test", N_PLACES)
    names = [tables.pulses.columns.get(name, "") for name in ("x_m", "y_m", "z_m")]
    if not all(names):
        return ""
    parts = [
        np.stack([numbers(columns[name], name, where) for name in names], axis=1)
        for _, where, columns in chosen.pulses.read(names)
    ]
    places = np.unique(np.concatenate([np.empty((0, 3)), *parts]), axis=0)
    fitting = names_around(places)
    if len(fitting) < 2:
        return "".join(fitting)
    column = tables.truth.columns.get("energy_gev", "")
    found = chosen.truth.read([column]) if column else ()
    reach = max((numbers(rows[column], column, where).max() for _, where, rows in found), default=0)
    wanted = medium or ("water" if reach > _TEV else "ice")
    return next(name for name in fitting if built_in_detector(name).medium.name == wanted)


def table_of_sensors(
    store: ObjectStore, files: NuBenchFiles, given: str, scratch: Path
) -> tuple[SensorTable, str]:
    """Read the sensor table that was given, or the one beside the set: it and its name."""
    uris = files.geometries
    if not given and len(uris) != 1:
        # of NuBench's own detectors no table is needed
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

    tables: Tables
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
        if MADE_FLAG in self.tables.lacking:
            return _Flagged(folder, self._truth(chosen), conversion, self.geometry.detector)
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


class _Flagged(Dealt):
    """Dealt pulses of a source that has noise and no flag: pulses without company are auxiliary.

    The fits that a model starts from take what is not auxiliary; all pulses mislead them.
    """

    def __init__(self, folder: Path, truth: Truth, plan: Conversion, detector: Detector) -> None:
        super().__init__(folder, truth, plan)
        self._detector = detector

    def pulses(self, number: int) -> Any:
        """Give the pulses of a batch file, by event, then by time, with their flags."""
        pulses = super().pulses(number)
        pulses["aux"] = lone_pulses(pulses["row"], pulses["sensor"], pulses["time"], self._detector)
        return pulses


_OF_PLACES = ("x_m", "y_m", "z_m", "string", "dom")
