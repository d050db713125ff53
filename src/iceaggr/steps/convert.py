"""The step before the first: other people's files, converted once into the raw layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from iceaggr.detector import Detector
from iceaggr.errors import RawDataError
from iceaggr.events.conversion import ConversionSettings, convert, plan_conversion
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.label_reading import LabelReading
from iceaggr.progress import StepProgress
from iceaggr.reconstruction.label_fit import doubtful_labels, fit_labels
from iceaggr.storage import open_store
from iceaggr.storage.uris import check_place

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
        words = self._reading.changed(*fit.better.reading.words).words
        flags = " ".join(f"--label-reading {word}" for word in words)
        raise RawDataError(
            "labels do not point the way the events do",
            where="azimuth and zenith of the truth",
            found=fit.found(),
            expected="labels that fit as they are read, or no worse than in another reading",
            remedy=f"Convert with {flags or 'neither --label-reading nor --direction'}; if they are"
            " right: --accept-labels",
        )
