"""Whether labels point the way the events do: the line fit judges them, as read and otherwise.

A network learns labels of the particle's own direction as readily as those of where it came from,
and nothing in its figures tells. The line fit knows which way the light moved. The agreement of a
reading is the correlation of fitted and labelled directions over events, sum (f - <f>).(d - <d>)
over its greatest possible value, which no preferred direction of either moves: 1 is perfect, 0 is
chance, -1 is reversed. Readings are compared in pairs, event by event. Simulated events have 0.66
(tracks) and 0.09 (cascades) in the right reading, pure noise 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from iceaggr.angles import opening_angle, unit_vector
from iceaggr.batches import iter_batches
from iceaggr.config import BatchConfig
from iceaggr.detector import Detector
from iceaggr.errors import RawDataError
from iceaggr.events.dom_events import DomEvents, take_range
from iceaggr.events.label_reading import (
    AS_DOCUMENTED,
    MIN_EVENTS_OF_CHANCE,
    MIN_SHARE_IN_RANGE,
    LabelFit,
    LabelReading,
    ReadingFit,
    axis_readings,
    value_readings,
)
from iceaggr.reconstruction.line_fit import line_fit

MIN_EVENTS = 30
"""With fewer fitted events nothing is judged."""
MIN_GAIN = 0.05
MIN_GAIN_DEG = 3.0
"""By which another reading must be better in agreement and in mean angle. One reversed axis costs
two thirds of the agreement: 0.06 and 4 deg for cascades alone, 0.2 and 17 deg with tracks."""
MAX_CHANCE = 1e-6
"""Of a one-sided paired t-test, times the number of readings: six standard errors and more."""
N_SIGMA_ALIKE = 2.0
"""Of readings closer than this the plainest is named."""
MAX_EVENTS = 16_384
"""Events that are fitted, in less than a second of one core."""

NEAR_M, NEAR_NS = 75.0, 300.0
"""Light passes the first in ice in the second. Most pulses of a particle have another so near,
those of noise seldom."""
N_NEXT_PULSES = 16
"""Later pulses that each is compared with; where more follow at once, others are near."""

_CAPS = BatchConfig(n_events=1024)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedLabels:
    """Labelled events whose hits fix a line.

    direction:       (B, 3) float64 unit vectors of the line fit, to the origin
    azimuth, zenith: (B,) float64 radians, the labels as they were read
    """

    direction: Floats
    azimuth: Floats
    zenith: Floats

    @classmethod
    def joined(cls, parts: Sequence[FittedLabels]) -> FittedLabels:
        """Put samples together; there may be none."""
        if not parts:
            return cls(np.zeros((0, 3)), np.zeros(0), np.zeros(0))
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def fit_labels(
    chunks: Iterable[DomEvents],
    detector: Detector,
    reading: LabelReading = AS_DOCUMENTED,
    max_events: int = MAX_EVENTS,
) -> LabelFit:
    """Compare the labels of a sample with the line fit, in every reading.

    chunks: events, as `read_raw_events` and `read_shard` give them; the first max_events are taken,
    those without a label left out.  reading: the one that their labels were read with.
    Raises: DetectorError for a sensor that the detector does not have.
    """
    parts = []
    n_left = max_events
    for chunk in chunks:
        events = take_range(chunk, 0, min(chunk.n_events, n_left))
        parts.append(fit_lines(events, detector))
        n_left -= events.n_events
        if n_left <= 0:
            break
    return judge_labels(FittedLabels.joined(parts), reading)


def fit_lines(events: DomEvents, detector: Detector) -> FittedLabels:
    """Fit a line to each event and keep those that it solves and that have a label.

    Where no flag tells signal from noise, pulses with none near them count as noise: with them the
    fit of an event with the usual noise is a guess.
    Raises: DetectorError for a sensor that the detector does not have.
    """
    unlabelled = np.full(events.n_events, np.nan)
    bare = replace(events, azimuth=unlabelled, zenith=unlabelled)
    if events.auxiliary.all() or not events.auxiliary.any():
        bare = replace(bare, auxiliary=_alone(events, detector))
    fits = [line_fit(batch) for batch in iter_batches(iter([bare]), detector, _CAPS)]
    if not fits:
        return FittedLabels.joined([])
    ok = torch.cat([fit.ok for fit in fits]).numpy()
    ok = ok & np.isfinite(events.azimuth) & np.isfinite(events.zenith)
    direction = torch.cat([fit.direction for fit in fits]).double().numpy()
    return FittedLabels(direction[ok], events.azimuth[ok], events.zenith[ok])


def _alone(events: DomEvents, detector: Detector) -> npt.NDArray[np.bool_]:
    """Mark pulses with none of another DOM near them in place and time: (N,) bool."""
    event = np.repeat(np.arange(events.n_events), np.diff(events.event_pulse_offsets()))
    dom = np.repeat(np.arange(events.n_doms), np.diff(events.dom_pulse_offsets))
    order = np.lexsort((events.time_ns, event))
    event, dom, time_ns = event[order], dom[order], events.time_ns[order]
    xyz_m = detector.xyz_m[detector.sensor_idx(events.sensor_id)][dom]
    near = np.zeros(len(order), bool)
    for k in range(1, min(N_NEXT_PULSES + 1, len(order))):
        pair = (event[k:] == event[:-k]) & (dom[k:] != dom[:-k])
        pair &= time_ns[k:] - time_ns[:-k] <= NEAR_NS
        pair &= ((xyz_m[k:] - xyz_m[:-k]) ** 2).sum(axis=1) <= NEAR_M**2
        near[k:] |= pair
        near[:-k] |= pair
    alone = np.empty_like(near)
    alone[order] = ~near
    return alone


def judge_labels(labels: FittedLabels, reading: LabelReading = AS_DOCUMENTED) -> LabelFit:
    """Compare labels, read as `reading` says, with the fitted directions, in every reading."""
    n_events = len(labels.direction)
    if n_events < MIN_EVENTS:
        return LabelFit(n_events)
    readings = [*axis_readings(reading), *value_readings(reading)]
    readings.sort(key=lambda other: other != reading)  # the present one first, the rest as before
    columns = reading.undo(labels.azimuth, labels.zenith)
    tried = [_tried(other, labels.direction, columns) for other in readings]
    rows = tuple(_row(one, tried[0]) for one in tried)
    eligible = [one for one, row in zip(tried, rows, strict=True) if _is_far_better(row, rows)]
    if not eligible:
        return LabelFit(n_events, rows)
    best = max(eligible, key=lambda one: float(one.product.mean()))
    plainest, *others = (one for one in eligible if _are_alike(one, best))
    better = rows[readings.index(plainest.reading)]
    return LabelFit(n_events, rows, better, tuple(one.reading for one in others))


def refuse_other_labels(fit: LabelFit, where: str, remedy: str = "") -> None:
    """Stop where another reading of the labels fits the events far better.

    remedy: what mends it, where it is not the setting.
    Raises: RawDataError naming the reading and the setting that says so.
    """
    if fit.better is None:
        return
    setting = f"Set {fit.better.reading.setting} and shard again"
    raise RawDataError(
        "labels do not point the way the events do",
        where=where,
        found=fit.found(),
        expected="labels that fit as they are read, or no worse than in another reading",
        remedy=f"{remedy or setting}; if they are right, data.accept_label_reading: true says so",
    )


def doubtful_labels(fit: LabelFit) -> str:
    """Say that the line fit tells nothing of the labels, and what would; '' where it does."""
    if fit.better is not None or (fit.rows and fit.rows[0].agrees):
        return ""
    if not fit.rows:
        return (
            f"labels could not be judged: a line fit solves {fit.n_events:,} labelled events,"
            f" {MIN_EVENTS:,} are the least"
        )
    reading = "in any reading" if fit.agrees_nowhere else "as they are read"
    doubt = (
        f"labels could not be judged: those of {fit.n_events:,} events agree with a line fit no"
        f" more than by chance, {reading}. Do they belong to these events?"
    )
    if fit.n_events >= MIN_EVENTS_OF_CHANCE:
        return doubt
    return f"{doubt} {MIN_EVENTS_OF_CHANCE:,} events would tell"


@dataclass(frozen=True)
class _Tried:
    """One reading, event by event: angle_deg and product (B,) float64, empty if out of range."""

    reading: LabelReading
    share_in_range: float
    angle_deg: Floats
    product: Floats


def _tried(reading: LabelReading, fitted: Floats, columns: tuple[Floats, Floats]) -> _Tried:
    share = float(reading.in_range(*columns).mean())
    if share < MIN_SHARE_IN_RANGE:
        return _Tried(reading, share, np.zeros(0), np.zeros(0))
    true = unit_vector(*(torch.from_numpy(angle) for angle in reading.apply(*columns)))
    angle = torch.rad2deg(opening_angle(torch.from_numpy(fitted), true)).numpy()
    f, d = fitted - fitted.mean(axis=0), true.numpy() - true.numpy().mean(axis=0)
    greatest = np.sqrt((f**2).sum(axis=1).mean() * (d**2).sum(axis=1).mean())
    return _Tried(reading, share, angle, (f * d).sum(axis=1) / max(greatest, 1e-12))


def _row(tried: _Tried, present: _Tried) -> ReadingFit:
    if not len(tried.angle_deg):
        return ReadingFit(tried.reading, tried.share_in_range)
    gain, gain_error = _mean_of(tried.product - present.product)
    return ReadingFit(
        tried.reading,
        tried.share_in_range,
        *_mean_of(tried.angle_deg),
        *_mean_of(tried.product),
        gain=gain,
        gain_error=gain_error,
        n_events=len(tried.angle_deg),
    )


def _is_far_better(row: ReadingFit, rows: Sequence[ReadingFit]) -> bool:
    """Tell a reading that is better than the first by the margin and by more than chance."""
    present = rows[0]
    if row.mean_angle_deg is None or present.mean_angle_deg is None or row.gain_error == 0:
        return False
    n_tests = sum(other.mean_angle_deg is not None for other in rows)
    return (
        row.gain >= MIN_GAIN
        and present.mean_angle_deg - row.mean_angle_deg >= MIN_GAIN_DEG
        and n_tests * stats.t.sf(row.gain / row.gain_error, row.n_events - 1) < MAX_CHANCE
    )


def _are_alike(one: _Tried, best: _Tried) -> bool:
    lead, error = _mean_of(best.product - one.product)
    return lead <= N_SIGMA_ALIKE * error


def _mean_of(values: Floats) -> tuple[float, float]:
    """Give the mean of (B,) values and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
