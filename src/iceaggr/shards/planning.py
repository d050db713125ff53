"""Planning: list the raw files once and cut them into work units of about equal size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from iceaggr.config import DataConfig
from iceaggr.errors import RawDataError, ShardError
from iceaggr.events.layout import RawLayout, find_layout, geometry_of
from iceaggr.events.meta import (
    count_events,
    read_event_tables,
    refuse_repeated_ids,
    stream_event_ids,
)
from iceaggr.events.reading import missing_meta_rows
from iceaggr.events.schema import reading_again
from iceaggr.events.truth import Ids, read_truth_ids
from iceaggr.interfaces import ObjectStore
from iceaggr.paths import WorkPaths
from iceaggr.shards.encoding import SPLITS
from iceaggr.shards.manifest import ShardManifest, SourceFile
from iceaggr.shards.split import refuse_small_splits, split_idx
from iceaggr.validation import Problem, read_json_object, read_model, shown

# What a plan says of the raw files, and whether they are still what was planned.


class PlanPart(BaseModel):
    """What every part of a plan is: frozen, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedObject(PlanPart):
    """One object among the raw files, as it was when planned."""

    uri: str
    n_bytes: int = Field(ge=0)
    etag: str


class PlannedFile(PlannedObject):
    """One batch file, and how many of its events are used."""

    batch_id: int
    n_events: int = Field(ge=0)
    n_events_used: int = Field(ge=0)

    @model_validator(mode="after")
    def _uses_no_more_than_there_are(self) -> PlannedFile:
        if self.n_events_used > self.n_events:
            raise ValueError(f"at most {self.n_events} events used")
        return self


def check_unchanged(store: ObjectStore, planned: PlannedObject) -> None:
    """Compare a batch file or the meta file with the plan.

    Raises: RawDataError if it is gone or another one.
    """
    stored = store.stat(planned.uri)
    if stored is None:
        raise RawDataError(
            "raw file is missing",
            where=planned.uri,
            found="no such object",
            expected=f"{planned.n_bytes} bytes, as planned",
            remedy="Copy it back, or run plan_shards again",
        )
    if (stored.etag, stored.n_bytes) != (planned.etag, planned.n_bytes):
        found = f"tag {stored.etag}, {stored.n_bytes} bytes"
        expected = f"tag {planned.etag}, {planned.n_bytes} bytes"
        raise changed_after_plan(planned.uri, found, expected)


def changed_after_plan(uri: str, found: str, expected: str) -> RawDataError:
    """Word the error of a raw file that is not the planned one."""
    return RawDataError(
        "raw file changed after it was planned",
        where=uri,
        found=found,
        expected=expected,
        remedy="Run plan_shards again once nobody writes to the raw files",
    )


# Whether the truth has the events that evaluation will ask it for: known before any is sharded.


def check_truth(
    store: ObjectStore, raw_uri: str, meta_uri: str, batch_ids: Sequence[int], config: DataConfig
) -> None:
    """Check the truth folder, if there is one, as evaluation will: each value, each test event.

    Rows of events that are not among the raw files are nobody's concern.
    Raises: RawDataError naming file, column, row and event of a value that cannot be, or an event
    of the test split that has no truth.
    """
    truth_ids = read_truth_ids(store, raw_uri)
    if truth_ids is None:
        return
    missing, n_missing, n_test = _missing(store, meta_uri, batch_ids, config, truth_ids)
    if n_missing:
        raise RawDataError(
            "truth lacks events",
            where=f"{raw_uri}/truth/",
            found=f"no row of event_id {missing}; {n_missing:,} of {n_test:,} events of the test"
            " split without truth",
            expected="a row for every event of the test split, or no truth at all",
            remedy="Give the truth/ folder that was written with these events, or move it away:"
            " evaluation then goes without it",
        )


@reading_again
def _missing(
    store: ObjectStore, meta_uri: str, batch_ids: Sequence[int], config: DataConfig, truth: Ids
) -> tuple[int | None, int, int]:
    """Find the first test event without truth, and count these and all test events."""
    first, n_missing, n_test = None, 0, 0
    for ids in _test_ids(stream_event_ids(store, meta_uri, batch_ids), config):
        place = np.minimum(np.searchsorted(truth, ids), max(len(truth) - 1, 0))
        known = truth[place] == ids if len(truth) else np.zeros(len(ids), bool)
        n_test += len(ids)
        n_missing += int((~known).sum())
        if first is None and not known.all():
            first = int(ids[~known][0])
    return first, n_missing, n_test


def _test_ids(reads: Iterator[tuple[Ids, Any]], config: DataConfig) -> Iterator[Ids]:
    settings = (config.split_salt, config.validation_share, config.test_share)
    for ids, is_test in reads:
        yield ids[split_idx(ids, *settings, is_test) == SPLITS.index("test")]


PLAN_VERSION: Literal[2] = 2
"""1 did not say which meta file was counted."""

MAX_EVENTS_COUNTED = 100_000
"""Plans of more events fill every split that is worth a setting: 1e-4 of them are ten."""


class ShardPlan(PlanPart):
    """All raw files of one run, in file order."""

    plan_version: Literal[2] = PLAN_VERSION
    raw_uri: str
    meta: PlannedObject
    geometry_uri: str
    labelled: bool
    notes: tuple[str, ...]
    files: tuple[PlannedFile, ...]


def plan_shards(store: ObjectStore, raw_uri: str, config: DataConfig, out_uri: str) -> list[str]:
    """List the labelled raw files, write the plan and cut it into work units.

    The plan is stored below out_uri/plans/ under a name made from its content.
    Returns one string "<plan_uri>#first:last" per work unit: files [first, last) of the plan.
    Raises: RawDataError if files and meta file do not fit together, or the truth that evaluation
    will read is wrong; DetectorError if they bring no geometry and none is declared; StorageError.
    """
    layout = find_layout(store, raw_uri, "train")
    geometry_uri = geometry_of(store, layout, config.detector)
    counts = count_events(store, layout.meta.uri)
    files, notes = _planned_files(layout, counts, config)
    batch_ids = [file.batch_id for file in files]
    refuse_repeated_ids(store, layout.meta.uri, batch_ids)
    check_truth(store, layout.raw_uri, layout.meta.uri, batch_ids, config)
    # its tag is from `stat`, as what it is compared with is: a listing may word tags otherwise
    meta = PlannedObject(**vars(layout.meta))
    check_unchanged(store, meta)
    plan = ShardPlan(
        raw_uri=layout.raw_uri,
        meta=meta,
        geometry_uri=geometry_uri,
        labelled=layout.labelled,
        notes=layout.notes + notes + ((layout.skipped_words,) if layout.skipped else ()),
        files=files,
    )
    data = json.dumps(plan.model_dump(), indent=1).encode()
    digest = _plan_digest(data)
    plan_uri = WorkPaths(out_uri).plan(digest)
    store.write_bytes(plan_uri, data)
    units = cut_units([file.n_bytes for file in files], config)
    return [f"{plan_uri}#{first}:{last}" for first, last in units]


def check_splits(store: ObjectStore, work_unit: str, config: DataConfig) -> None:
    """Refuse a plan of which a split would have no event or one, before anything is sharded.

    work_unit: any of the plan.  Only small plans are counted event by event: of many, each share
    has its part.
    Raises: RawDataError naming the splits, and a number of events that would do; StorageError.
    """
    plan, _ = load_work_unit(store, work_unit)
    n_planned = sum(file.n_events_used for file in plan.files)
    if n_planned > MAX_EVENTS_COUNTED:
        return
    batch_ids = [file.batch_id for file in plan.files]
    tables = read_event_tables(store, plan.meta.uri, batch_ids, labelled=False)
    settings = (config.split_salt, config.validation_share, config.test_share)
    used = [tables[file.batch_id].head(file.n_events_used) for file in plan.files]
    split = np.concatenate([split_idx(t.event_id, *settings, t.is_test) for t in used])
    counts = np.bincount(split, minlength=len(SPLITS))
    n_events = {name: int(n) for name, n in zip(SPLITS, counts, strict=True)}
    refuse_small_splits(n_events, config.validation_share, config.test_share, plan.raw_uri)


def cut_units(n_bytes: Sequence[int], config: DataConfig) -> list[tuple[int, int]]:
    """Cut consecutive files into units [first, last), by size and at most max_work_units.

    A file belongs to the unit in which its first byte falls, so a unit may exceed the target by
    less than one file.
    """
    target = max(config.work_unit_mib << 20, -(-sum(n_bytes) // config.max_work_units), 1)
    starts: dict[int, int] = {}
    n_before = 0
    for index, size in enumerate(n_bytes):
        starts.setdefault(n_before // target, index)
        n_before += size
    firsts = list(starts.values())
    return list(zip(firsts, [*firsts[1:], len(n_bytes)], strict=True))


def load_work_unit(store: ObjectStore, work_unit: str) -> tuple[ShardPlan, tuple[PlannedFile, ...]]:
    """Read the plan of a work unit and select its files. Raises: StorageError, ShardError."""
    plan_uri, first, last = _take_apart(work_unit)
    plan = _read_plan(store, plan_uri)
    return plan, _select_files(plan, work_unit, first, last)


def load_work_units(
    store: ObjectStore, work_units: Sequence[str]
) -> dict[str, tuple[PlannedFile, ...]]:
    """Give the files of each work unit; a plan is read once. Raises: StorageError, ShardError."""
    plan_of = cache(partial(_read_plan, store))
    parts = {work_unit: _take_apart(work_unit) for work_unit in work_units}
    return {
        work_unit: _select_files(plan_of(plan_uri), work_unit, first, last)
        for work_unit, (plan_uri, first, last) in parts.items()
    }


def _take_apart(work_unit: str) -> tuple[str, int, int]:
    plan_uri, _, span = work_unit.rpartition("#")
    first, _, last = span.partition(":")
    if not (plan_uri and first.isdecimal() and last.isdecimal()):
        remedy = "Take one from the list that plan_shards gave"
        expected = "'<plan URI>#first:last'"
        raise _unusable("not a work unit", "work_unit", shown(work_unit), expected, remedy)
    return plan_uri, int(first), int(last)


def _unusable(
    what: str, where: str, found: str, expected: str, remedy: str = "Run plan_shards again"
) -> ShardError:
    return ShardError(what, where=where, found=found, expected=expected, remedy=remedy)


def _select_files(
    plan: ShardPlan, work_unit: str, first: int, last: int
) -> tuple[PlannedFile, ...]:
    files = plan.files[first:last]
    if len(files) != last - first or not files:
        expected = f"more than {last - 1} files, and first < last"
        found = f"{len(plan.files)} files"
        raise _unusable("work unit lies outside its plan", work_unit, found, expected)
    return files


def _read_plan(store: ObjectStore, uri: str) -> ShardPlan:
    data = store.read_bytes(uri)
    plan = read_model(ShardPlan, data, lambda problem: _bad_plan(data, uri, problem))
    digest, name = _plan_digest(data), uri.rsplit("/", 1)[-1].removesuffix(".json")
    if digest != name:
        what, expected = "shard plan was changed after it was written", f"content {name}"
        remedy = "Run plan_shards again; plans are never edited by hand"
        raise _unusable(what, uri, f"content {digest}", f"{expected}, as its name says", remedy)
    return plan


def _bad_plan(data: bytes, uri: str, problem: Problem) -> ShardError:
    """Tell a plan of another version, which is sound, from a damaged one."""
    with suppress(ValueError):
        version = read_json_object(data, ValueError).get("plan_version")
        if version not in (None, PLAN_VERSION):
            found, expected = f"version {shown(version)}", f"version {PLAN_VERSION}"
            remedy = "Run plan_shards again with this version of iceaggr"
            return _unusable("shard plan of another version", uri, found, expected, remedy)
    return _unusable("damaged shard plan", uri, problem.found_in_field, problem.expected)


def _plan_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _planned_files(
    layout: RawLayout, counts: dict[int, int], config: DataConfig
) -> tuple[tuple[PlannedFile, ...], tuple[str, ...]]:
    """Take files until there are enough events; also what is to be noted of missing ones."""
    planned: list[PlannedFile] = []
    n_left = config.n_events or sum(counts.values())
    for file in layout.files:
        if config.n_events and not n_left:
            break
        batch_id, stored = file.batch_id, vars(file.stored)
        if batch_id not in counts:
            raise missing_meta_rows(file.stored.uri, batch_id, layout.meta.uri)
        n_events, n_used = counts[batch_id], min(counts[batch_id], n_left)
        n_left -= n_used
        planned.append(
            PlannedFile(**stored, batch_id=batch_id, n_events=n_events, n_events_used=n_used)
        )
    # files behind the last event asked for may be missing: nobody reads them
    is_cut = config.n_events and not n_left
    last = planned[-1].batch_id if is_cut else max(counts)
    present = {file.batch_id for file in layout.files}
    missing = sorted(b for b in counts if b <= last and b not in present)
    return tuple(planned), _note_of_missing(layout, counts, missing, config) if missing else ()


def _note_of_missing(
    layout: RawLayout, counts: dict[int, int], missing: list[int], config: DataConfig
) -> tuple[str]:
    n_missing = sum(counts[batch_id] for batch_id in missing)
    what = f"{len(missing)} batches of the meta file have no raw file"
    if config.allow_missing_files:
        return (f"{what}: their {n_missing} events were not sharded",)
    raise RawDataError(
        what,
        where=layout.meta.uri,
        found=f"no batch_{missing[0]}.parquet"
        + (" and others" if len(missing) > 1 else "")
        + (f"; {layout.skipped_words}" if layout.skipped else ""),
        expected=f"the files of {n_missing} more events",
        remedy="Copy the missing files, set data.n_events to what the first files hold, or set "
        "data.allow_missing_files",
    )


# Whether the manifests of the work units account for every raw file of the plan.
#
# A task that failed, was killed or whose manifest was lost leaves the others' manifests behind, and
# they look sound: only the plan tells that events are missing.

SHARD_AGAIN = (
    "Shard the raw events again, by the same `iceaggr shard` command or another run of the"
    " pipeline: what is there is reused"
)
_N_NAMED = 5


def check_coverage(
    store: ObjectStore, work_units: Sequence[str], manifests: Sequence[ShardManifest]
) -> None:
    """Compare what was sharded with what was planned, file by file.

    work_units: all that plan_shards gave.  manifests: all that shard_events wrote.
    Raises: ShardError if a work unit lacks its manifest, or a raw file is not as it was planned;
    StorageError.
    """
    planned = load_work_units(store, work_units)
    sources = {file.uri: file for part in manifests for file in part.source_files}
    missing = [
        unit for unit, files in planned.items() if any(file.uri not in sources for file in files)
    ]
    if missing:
        raise _lost(planned, missing, sources)
    files_by_uri = {file.uri: file for files in planned.values() for file in files}
    for uri, source in sources.items():
        _check_planned(source, files_by_uri.get(uri))


def _lost(
    planned: Mapping[str, Sequence[PlannedFile]],
    missing: Sequence[str],
    sources: Mapping[str, SourceFile],
) -> ShardError:
    files = [file for unit in missing for file in planned[unit] if file.uri not in sources]
    n_events = sum(file.n_events_used for file in files)
    units = ", ".join(unit.rpartition("#")[2] for unit in missing[:_N_NAMED])
    names = ", ".join(file.uri.rpartition("/")[2] for file in files[:_N_NAMED])
    return ShardError(
        "work units were not sharded",
        where=missing[0].rpartition("#")[0],
        found=f"manifests of {len(planned) - len(missing)} work units",
        expected=f"those of all {len(planned)} that were planned; missing are {units}"
        f"{_and_more(len(missing))} with {n_events:,} events of {names}{_and_more(len(files))}",
        remedy=SHARD_AGAIN,
    )


def _and_more(n_all: int) -> str:
    return f" and {n_all - _N_NAMED} more" if n_all > _N_NAMED else ""


def _check_planned(source: SourceFile, file: PlannedFile | None) -> None:
    found = _identity(source.etag, source.n_bytes, source.n_events_in)
    expected = file and _identity(file.etag, file.n_bytes, file.n_events_used)
    if found != expected:
        raise ShardError(
            "what was sharded is not what was planned",
            where=source.uri,
            found=found,
            expected=expected or "only the raw files of the plan",
            remedy=SHARD_AGAIN,
        )


def _identity(etag: str, n_bytes: int, n_events: int) -> str:
    return f"tag {etag}, {n_bytes} bytes, {n_events} events"
