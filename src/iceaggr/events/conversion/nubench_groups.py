"""A NuBench set into the raw layout, one group of batch files at a time.

The plan is the marker of the folder, so that whoever converts a group, in whichever process, reads
the same events in the same way. A group is done when its rows of the meta file lie beside its batch
files; all of these together become the meta file in the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.errors import RawDataError
from iceaggr.events.conversion.convert import MARKER, ConversionSettings, write_batch
from iceaggr.events.conversion.nubench import find_nubench, read_selections
from iceaggr.events.conversion.nubench_plan import NuBenchPlan, SetToConvert, refuse_empty_events
from iceaggr.events.conversion.nubench_reading import (
    Reading,
    chosen_tables,
    open_source,
    table_of_sensors,
)
from iceaggr.events.conversion.truth import EventNumbers
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.meta import SPLIT_COLUMN
from iceaggr.events.raw_folder import CHECKED, RawFolder
from iceaggr.interfaces import ObjectStore
from iceaggr.validation import Problem, read_model

_PARTS_FOLDER = "_meta_parts"


def open_planned(store: ObjectStore, out_uri: str, scratch: Path) -> SetToConvert:
    """Open the set of a conversion that was begun, as its plan says.

    Raises: RawDataError if there is no plan, or the set is not what was planned.
    """
    plan = _read_plan(store, out_uri)
    files = find_nubench(store, plan.root_uri) if plan else None
    if plan is None or files is None or files.digest() != plan.files_digest:
        raise RawDataError(
            "the set changed after its conversion was planned",
            where=plan.root_uri if plan else f"{out_uri}/{MARKER}",
            found="other files" if plan and files else "no such file",
            expected=f"the files of digest {plan.files_digest}" if plan else "a plan",
            remedy="Begin the conversion again, into an empty folder",
        )
    selections = read_selections(store, files)
    source = open_source(store, files, selections, scratch, plan.part_counts)
    settings = ConversionSettings(
        sensor_ids=plan.sensor_ids,
        label_reading=LabelReading.of(plan.label_reading),
        time_offset_ns=plan.time_offset_ns,
        n_events_per_file=plan.n_events_per_file,
    )
    geometry, _ = table_of_sensors(store, files, plan.geometry, scratch)
    reading = Reading(chosen_tables(source.columns), geometry, settings)
    return SetToConvert(store, plan, files, source, reading)


def begin(ready: SetToConvert, out_uri: str) -> tuple[int, ...]:
    """Take the folder, or go on with what was begun there; gives the groups left to convert.

    Raises: RawDataError if the folder holds another set; StorageError.
    """
    store, plan = ready.store, ready.plan
    if _read_plan(store, out_uri) == plan:
        if store.stat(f"{out_uri}/train_meta.parquet"):
            return ()
        done = {stored.uri for stored in store.list(f"{out_uri}/train/{_PARTS_FOLDER}/")}
        return tuple(k for k in range(len(plan.groups)) if _part_uri(out_uri, k) not in done)
    with tempfile.TemporaryDirectory(prefix="iceaggr-convert-") as scratch:
        folder = RawFolder(store, out_uri, Path(scratch), labelled=True)
        csv = ready.detector.to_csv().encode()
        folder.claim(MARKER, plan.model_dump(mode="json"), csv, plan.notes)
    return tuple(range(len(plan.groups)))


def convert_group(ready: SetToConvert, out_uri: str, number: int) -> int:
    """Write the batch files of a group, then its rows of the meta file; gives its pulses.

    The same group gives the same files whenever it is converted.
    Raises: RawDataError if events and pulses do not fit together; StorageError.
    """
    group = ready.plan.groups[number]
    with tempfile.TemporaryDirectory(prefix="iceaggr-convert-") as scratch:
        folder = RawFolder(ready.store, out_uri, Path(scratch), labelled=True)
        chosen = ready.source.choose(group.split, group.start, group.stop)
        dealt = ready.reading.dealt(Path(scratch), chosen, with_places=False)
        n_pulses = max(dealt.read(EventNumbers()), default=0)
        rows = Path(scratch) / "rows.parquet"
        writer, n_empty = None, 0
        for k in range(dealt.n_files):
            meta = write_batch(folder, Path(scratch), dealt, k, {}, group.first_batch)
            meta = meta.append_column(SPLIT_COLUMN, pa.array([group.split] * len(meta)))
            writer = writer or pq.ParquetWriter(rows, meta.schema, **CHECKED)
            writer.write_table(meta)
            n_empty += int((_n_pulses(meta) == 0).sum())
        n_events = group.stop - group.start
        refuse_empty_events(n_empty, n_events, f"{ready.plan.root_uri} {chosen.pulses.name}")
        assert writer is not None, "a group holds at least one batch file"
        writer.close()
        ready.store.upload(rows, _part_uri(out_uri, number))
    return n_pulses


def finish(store: ObjectStore, out_uri: str) -> dict[str, int]:
    """Make the meta file of the rows of all groups; gives counts of events and pulses.

    A set that is whole already stays as it is.
    Raises: RawDataError if a group was not converted; StorageError.
    """
    plan = _read_plan(store, out_uri)
    if plan is not None and store.stat(f"{out_uri}/train_meta.parquet"):
        return dict(plan.n_events)
    counts = dict(plan.n_events) if plan else {}
    counts |= {"n_pulses": 0, "n_without_pulses": 0}
    parts = [_part_uri(out_uri, k) for k in range(len(plan.groups) if plan else 0)]
    absent = [uri for uri in parts if store.stat(uri) is None]
    if plan is None or absent:
        raise RawDataError(
            "the conversion is not finished",
            where=out_uri,
            found=f"{len(parts) - len(absent)} of {len(parts)} groups",
            expected="all of them",
            remedy="Convert again: it goes on where it was cut",
        )
    with tempfile.TemporaryDirectory(prefix="iceaggr-convert-") as scratch:
        path = Path(scratch) / "rows.parquet"
        with RawFolder(store, out_uri, Path(scratch), labelled=True) as folder:
            for uri in parts:
                store.download(uri, path)
                for meta in _row_groups(path):
                    own = _n_pulses(meta)
                    counts["n_pulses"] += int(own.sum())
                    counts["n_without_pulses"] += int((own == 0).sum())
                    folder.append_meta(meta)
            folder.finish()
    for uri in parts:
        store.delete(uri)
    return counts


def _n_pulses(meta: pa.Table) -> npt.NDArray[np.int64]:
    last = np.asarray(meta.column("last_pulse_index"))
    return np.asarray(last - np.asarray(meta.column("first_pulse_index")) + 1, np.int64)


def _row_groups(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for k in range(file.num_row_groups):
            yield file.read_row_group(k)


def _part_uri(out_uri: str, number: int) -> str:
    return f"{out_uri}/train/{_PARTS_FOLDER}/rows_{number}.parquet"


def _read_plan(store: ObjectStore, out_uri: str) -> NuBenchPlan | None:
    """Read the marker of a folder; None if there is none, or another writer's."""
    uri = f"{out_uri}/{MARKER}"
    if store.stat(uri) is None:
        return None

    def none(problem: Problem) -> RawDataError:
        return RawDataError(
            "no plan of a set",
            where=uri,
            found=problem.found_in_field,
            expected="the plan of a conversion that was begun",
            remedy="Convert into an empty folder",
        )

    try:
        return read_model(NuBenchPlan, store.read_bytes(uri), none)
    except RawDataError:
        return None
