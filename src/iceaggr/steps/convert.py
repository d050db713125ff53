"""The step before the first: other people's files, converted once into the raw layout."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from iceaggr.detector import Detector
from iceaggr.errors import ConfigError, RawDataError
from iceaggr.events.conversion import ConversionSettings, convert, plan_conversion
from iceaggr.events.conversion.nubench import NuBenchFiles, find_nubench
from iceaggr.events.conversion.nubench_groups import (
    begin,
    convert_group,
    finish,
    open_planned,
)
from iceaggr.events.conversion.nubench_plan import plan_nubench
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelFit, LabelReading
from iceaggr.events.sources import GivenNames
from iceaggr.paths import WorkPaths
from iceaggr.progress import StepProgress
from iceaggr.reconstruction.label_fit import doubtful_labels, fit_labels
from iceaggr.steps.context import RunContext
from iceaggr.storage import open_store
from iceaggr.storage.uris import check_place, file_uri, refuse_work_among_raw

Told = Sequence[tuple[str, str, str]]


def run_convert(
    inputs: Sequence[Path],
    settings: ConversionSettings,
    out_uri: str,
    *,
    dry_run: bool = False,
    accept_labels: bool = False,
    ask: Callable[[Sequence[str]], None] | None = None,
) -> tuple[str, ...]:
    """Say what is found, used and ignored, then convert it.

    dry_run: only say so.  accept_labels: take labels that the line fit contradicts.
    ask: called with what the source never has, and raises if that is not wanted.
    Returns the notes, which are printed and kept beside the events.
    Raises: RawDataError, also for labels that point elsewhere than the events; DetectorError,
    StorageError.
    """
    check_place(out_uri, "--out")
    files = find_nubench(open_store(), file_uri(inputs[0])) if inputs[0].is_dir() else None
    if files and len(inputs) == 1:
        _refuse_names(settings, files)
        return _convert_nubench(files, settings, out_uri, dry_run, accept_labels)
    plan = plan_conversion(inputs, settings)
    print("\n".join(_table(plan.told)), flush=True)
    if dry_run:
        print("dry run: nothing was written")
        return plan.lacking
    if plan.lacking and ask:
        ask(plan.lacking)
    check = None if accept_labels else _LabelCheck(settings.label_reading)
    with StepProgress("convert") as progress:
        notes = convert(
            open_store(),
            plan,
            out_uri,
            on_progress=lambda done, total: progress.update(done, total, f"{done:,} pulses"),
            check_labels=check,
        )
        progress.conclude(f"{plan.pulse_table.n_rows:,} pulses in {out_uri}")
    doubts = [f"warning: {check.doubt}"] if check and check.doubt else []
    print("\n".join([*notes, *doubts]), flush=True)
    return notes


def _refuse_names(settings: ConversionSettings, files: NuBenchFiles) -> None:
    if settings.names != GivenNames() or settings.renumber or settings.unlabelled:
        raise ConfigError(
            "this set is read as its layout says",
            where="iceaggr convert",
            found="a flag that names tables, columns or units, --renumber or --unlabelled",
            expected=f"none of them for the NuBench set in {files.root_uri}",
            remedy="Leave the flags out; to read the tables otherwise, give their file or folder"
            " itself, without selections/",
        )


def _convert_nubench(
    files: NuBenchFiles,
    settings: ConversionSettings,
    out_uri: str,
    dry_run: bool,
    accept_labels: bool,
) -> tuple[str, ...]:
    """Convert a set whose layout is known: nothing is asked, and what was begun is gone on with."""
    store = open_store()
    with (
        StepProgress("convert") as progress,
        tempfile.TemporaryDirectory(prefix="iceaggr-set-") as scratch,
    ):
        judge = None if accept_labels else _LabelJudge(settings.label_reading)
        ready = plan_nubench(store, files, settings, Path(scratch), judge)
        plan = ready.plan
        print("\n".join(_table([*ready.told()])), flush=True)
        if judge and judge.doubt:
            print(f"warning: {judge.doubt}", flush=True)
        if dry_run:
            progress.conclude("dry run: nothing was written")
            return plan.notes
        left = begin(ready, out_uri)
        n_done = len(plan.groups) - len(left)
        for number in left:
            convert_group(ready, out_uri, number)
            n_done += 1
            progress.update(n_done, len(plan.groups), f"{n_done:,} of {len(plan.groups):,} groups")
        counts = finish(store, out_uri)
        pulses = f", {counts['n_pulses']:,} pulses" if "n_pulses" in counts else ""
        if counts.get("n_without_pulses"):
            pulses += f", {counts['n_without_pulses']:,} events without any"
        again = f", {len(plan.groups) - len(left):,} groups found done" * (len(left) < n_done)
        progress.conclude(
            f"{counts['train']:,} train and {counts['test']:,} test events,"
            f" {counts['left_out']:,} in no selection{pulses}{again}, in {out_uri}"
        )
    return plan.notes


class _LabelJudge:
    """Finds out which of the two directions a set's labels name: its origin, or its flight.

    doubt: why the labels could not be judged, '' where they were
    """

    doubt = ""

    def __init__(self, reading: LabelReading) -> None:
        self._given = reading

    def __call__(self, events: Iterator[DomEvents], detector: Detector) -> LabelReading:
        """Raise RawDataError where neither fits the events, but another reading does."""
        check = _LabelCheck(self._given)
        fit = fit_labels(events, detector)
        self.doubt = doubtful_labels(fit)
        if fit.better is None:
            return self._given
        if self._given == AS_DOCUMENTED and fit.better.reading.words == ("particle",):
            print(f"labels: {fit.found()}", flush=True)
            return fit.better.reading
        raise check.refused(fit)


def _table(told: Told) -> Iterator[str]:
    rows = [("table", "column", "used as"), *told]
    widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
    for table, column, use in rows:
        yield f"{table:<{widths[0]}}  {column:<{widths[1]}}  {use}"


class _LabelCheck:
    """Compares labels with a line fit before anything is written; its remedy names the flags.

    doubt: why the labels could not be judged, '' where they were
    """

    doubt = ""

    def __init__(self, reading: LabelReading) -> None:
        self._reading = reading

    def __call__(self, events: Iterator[DomEvents], detector: Detector) -> None:
        """Raise RawDataError where another reading of the labels fits the events far better."""
        fit = fit_labels(events, detector)
        self.doubt = doubtful_labels(fit)
        if fit.better is None:
            return
        raise self.refused(fit)

    def refused(self, fit: LabelFit) -> RawDataError:
        """Word the error of labels that another reading fits."""
        assert fit.better is not None, "the labels fit as they are read"
        words = self._reading.changed(*fit.better.reading.words).words
        flags = " ".join(f"--label-reading {word}" for word in words)
        return RawDataError(
            "labels do not point the way the events do",
            where="azimuth and zenith of the truth",
            found=fit.found(),
            expected="labels that fit as they are read, or no worse than in another reading",
            remedy=f"Convert with {flags or 'neither --label-reading nor --direction'}; if they are"
            " right: --accept-labels",
        )


# The same on a cluster: planned once, converted in work units, gathered by the step that plans the
# shards.

MAX_CONVERSION_UNITS = 8
"""Each unit takes its part of the object in which Kubernetes keeps a run."""


def run_plan_conversion(context: RunContext, raw_uri: str) -> list[str]:
    """Look at a NuBench set and cut its conversion into work units; done ones are found done.

    Returns one string "<URI of the raw events>#first:last" per unit.
    Raises: RawDataError if there is no such set, or it is not whole; ConfigError, DetectorError,
    StorageError.
    """
    raw_uri, data = raw_uri.rstrip("/"), context.config.data
    check_place(raw_uri, "raw_uri")
    refuse_work_among_raw(raw_uri, context.work_uri, "work_uri")
    if data.label_reading:
        raise ConfigError(
            "the conversion finds out by itself how labels are meant",
            where="data.label_reading",
            found=", ".join(data.label_reading),
            expected="nothing with raw_layout=nubench",
            remedy="Leave it empty; `iceaggr convert --label-reading` takes a reading by hand",
        )
    store = context.open_store()
    with (
        StepProgress("plan_conversion", run_id=context.run_id) as progress,
        tempfile.TemporaryDirectory(prefix="iceaggr-set-") as scratch,
    ):
        files = find_nubench(store, raw_uri)
        if files is None:
            raise RawDataError(
                "no NuBench set",
                where=raw_uri,
                found="neither merged/merged.db nor merged/merged_photons/",
                expected="what raw_layout=nubench says",
                remedy="Check raw_uri, or leave raw_layout at competition",
            )
        judge = None if data.accept_label_reading else _LabelJudge(AS_DOCUMENTED)
        ready = plan_nubench(store, files, ConversionSettings(), Path(scratch), judge)
        plan = ready.plan.model_dump_json().encode()
        out_uri = WorkPaths(context.work_uri).converted(hashlib.sha256(plan).hexdigest()[:16])
        left = begin(ready, out_uri)
        n_groups = len(ready.plan.groups)
        n_units = 1 if ready.is_one_unit else min(n_groups, MAX_CONVERSION_UNITS)
        bounds = [n_groups * k // n_units for k in range(n_units + 1)] if left else [0, 0]
        doubts = f"; labels: {judge.doubt}" if judge and judge.doubt else ""
        progress.conclude(f"{len(left)} of {n_groups} groups to convert into {out_uri}{doubts}")
    return [f"{out_uri}#{first}:{last}" for first, last in pairwise(bounds)]


def run_convert_events(work_unit: str) -> None:
    """Convert the groups of one work unit that are not done yet.

    Raises: RawDataError if the set is not what was planned; StorageError.
    """
    out_uri, _, bounds = work_unit.rpartition("#")
    first, last = (int(bound) for bound in bounds.split(":"))
    store = open_store()
    with (
        StepProgress("convert_events", task=bounds) as progress,
        tempfile.TemporaryDirectory(prefix="iceaggr-set-") as scratch,
    ):
        n_pulses = 0
        if last > first:
            ready = open_planned(store, out_uri, Path(scratch))
            left = [number for number in begin(ready, out_uri) if first <= number < last]
            for n_done, number in enumerate(left, start=1):
                n_pulses += convert_group(ready, out_uri, number)
                progress.update(n_done, len(left), f"{n_pulses:,} pulses read")
        progress.conclude(f"{n_pulses:,} pulses read")
