"""Statistics of the pulse features of a block of events: most of what a sketch costs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iceaggr.events.dom_events import DomEvents
from iceaggr.shards.binning import Binning, Floats
from iceaggr.shards.distinct import Distinct, EventWeights, distinct_pulses
from iceaggr.shards.histograms import FeatureSketch, summarise


def pulse_features(block: DomEvents, binnings: dict[str, Binning]) -> dict[str, FeatureSketch]:
    """Summarise time, charge, its logarithm and the auxiliary flag; each event counts equally."""
    n_pulses = np.diff(block.event_pulse_offsets())
    weights = EventWeights(n_pulses)
    times, charges = distinct_pulses(block.time_ns, block.charge_pe, weights)
    values, total = times or (block.time_ns, weights.all())
    time = summarise(
        values.astype(np.float64), total, binnings["time_ns"], n_rows=len(block.time_ns)
    )
    charges = charges or (block.charge_pe, weights.all())
    return {
        "time_ns": time,
        "auxiliary": _flag_feature(block, n_pulses, binnings["auxiliary"]),
        **_charge_features(charges, block.n_pulses, binnings),
    }


def first_pulse_times(block: DomEvents) -> Floats:
    """Find the time of the first pulse of each event: (B,) ns, NaN where there is none."""
    times = np.full(block.n_events, np.nan)
    filled = np.diff(block.event_dom_offsets) > 0
    if filled.any():
        # the pulses of a DOM are sorted: its first one is its earliest
        of_doms = block.time_ns.take(block.dom_pulse_offsets[:-1])
        times[filled] = np.minimum.reduceat(of_doms, block.event_dom_offsets[:-1][filled])
    return times


def _charge_features(
    charges: Distinct, n_rows: int, binnings: dict[str, Binning]
) -> dict[str, FeatureSketch]:
    values, total = charges
    with np.errstate(divide="ignore", invalid="ignore"):
        log10_charge = np.log10(values, dtype=np.float64)
    # both histograms of charge have the same bins, unless some charge has no logarithm
    finite = bool(np.isfinite(log10_charge).all())
    bins = binnings["log10_charge"].bin_idx(log10_charge) if finite else None
    columns = {"log10_charge": log10_charge, "charge_pe": values}
    return {
        name: summarise(column, total, binnings[name], bins, n_rows=n_rows)
        for name, column in columns.items()
    }


def _flag_feature(
    block: DomEvents, n_pulses: npt.NDArray[np.int64], binning: Binning
) -> FeatureSketch:
    """Count the flagged pulses of each event instead of weighing every pulse."""
    filled = n_pulses > 0
    starts, n_in_event = block.event_pulse_offsets()[:-1][filled], n_pulses[filled]
    n_set = np.zeros(0, np.int64)
    if len(starts):
        n_set = np.add.reduceat(block.auxiliary.view(np.uint8), starts, dtype=np.int64)
    counts = np.stack([n_in_event - n_set, n_set])
    present = np.flatnonzero(counts.any(axis=1))
    weights = (counts / n_in_event).sum(axis=1)[present]
    return summarise(present.astype(np.float64), weights, binning, n_rows=int(n_pulses.sum()))
