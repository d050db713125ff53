"""The frame of a seed track: its axes, and where and when each DOM lies in it.

The first axis of the frame points up as far as the track allows, so that what breaks the rotation
symmetry (DOMs look down, ice comes in layers) always breaks it in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig
from iceaggr.reconstruction.hypotheses import cherenkov_time, track_geometry
from iceaggr.reconstruction.likelihood import centred_hits, fit_point, fit_track
from iceaggr.reconstruction.line_fit import (
    FitResult,
    improved_line_fit,
    line_fit,
    tensor_of_inertia,
)
from iceaggr.reconstruction.segments import (
    in_sensor_order,
    segment_max,
    segment_mean,
    segment_quantile,
    segment_sum,
)

# Order statistics of the pulses of each DOM: what timing and charge say, in a few numbers.

N_TIMES = 4
N_SHAPES = 8
MIN_CHARGE_PE = 0.01


@dataclass(frozen=True)
class DomStatistics:
    """Order statistics per DOM, in raw units.

    times_ns: (D, 4) float32: first pulse, time of 20 % and of 50 % of the charge, mean by charge
    shapes: (D, 8) float32: log charge, log count, log spread, log duration, share of the charge
        in the first pulse, any non-auxiliary pulse, its share of the charge, efficiency
    charge_pe: (D,) float32;  triggered: (D,) bool, any non-auxiliary pulse
    """

    times_ns: Tensor
    shapes: Tensor
    charge_pe: Tensor
    triggered: Tensor


def dom_statistics(batch: EventBatch) -> DomStatistics:
    """Summarise each DOM's pulses. Times are kept in ns, everything else is near one."""
    dom, n_doms = batch.pulse_dom_idx(), batch.n_doms
    charge = batch.charge_pe.clamp_min(MIN_CHARGE_PE)
    total = segment_sum(charge, dom, n_doms)
    first = batch.time_ns[batch.dom_pulse_offsets[:-1]]
    # relative to the first pulse, so that float32 keeps the nanoseconds
    since = batch.time_ns - first[dom]
    mean = segment_mean(since, dom, n_doms, charge)
    spread = segment_mean(since.square(), dom, n_doms, charge).sqrt()
    last = segment_max(since, dom, n_doms)
    clean = segment_sum(torch.where(batch.auxiliary, 0.0, charge), dom, n_doms)
    quantiles = [segment_quantile(since, charge, share, dom, n_doms) for share in (0.2, 0.5)]
    since_first = torch.stack([torch.zeros_like(mean), *quantiles, mean], dim=-1)
    count = batch.dom_pulse_offsets.diff().float()
    shapes = [
        torch.log10(total),
        torch.log2(count) / 2,
        torch.log1p(spread / 10) / 3,
        torch.log1p(last / 10) / 3,
        charge[batch.dom_pulse_offsets[:-1]] / total,
        (clean > 0).float(),
        clean / total,
        batch.efficiency,
    ]
    times = first[:, None] + since_first
    return DomStatistics(times, torch.stack(shapes, dim=-1), total, clean > 0)


def event_time_ns(batch: EventBatch, statistics: DomStatistics) -> Tensor:
    """Find a robust time of each event: the median first time of its triggered DOMs.

    Events without one use all DOMs. Returns (B,) float32.
    """
    event = batch.dom_event_idx()
    weight = statistics.triggered.float()
    has_any = segment_sum(weight, event, batch.n_events) > 0
    weight = torch.where(has_any[event], weight, torch.ones_like(weight)).clamp_min(1e-6)
    return segment_quantile(statistics.times_ns[:, 0], weight, 0.5, event, batch.n_events)


def event_size(batch: EventBatch, statistics: DomStatistics) -> Tensor:
    """Describe the size of each event: (B, 4) float32.

    Logarithms of DOMs, triggered DOMs and charge, and of the largest charge on one DOM.
    """
    event, n_events = batch.dom_event_idx(), batch.n_events
    triggered = segment_sum(statistics.triggered.float(), event, n_events)
    charge = segment_sum(statistics.charge_pe, event, n_events)
    largest = segment_max(statistics.charge_pe, event, n_events)
    n_doms = batch.event_dom_offsets.diff().float()
    logs = [torch.log10(n_doms), torch.log10(1 + triggered), torch.log10(charge), largest.log10()]
    return torch.stack(logs, dim=-1) - 1


# Seeds: the classical fits that a model starts from, each computed once.


@dataclass(frozen=True)
class Seeds:
    """What the classical fits say of each event.

    fit: the seed itself.  alternatives: (B, K, 3) float32, directions of the other fits, K may
    be 0.  point_m: (B, 3) float32, fitted point of light or charge centre
    """

    fit: FitResult
    alternatives: Tensor
    point_m: Tensor


def n_alternatives(config: ModelConfig) -> int:
    """Count the fits beside the seed (K)."""
    if not config.seed_alternatives:
        return 0
    return 3 if config.seed == "likelihood" else 2


def find_seeds(batch: EventBatch, config: ModelConfig) -> Seeds:
    """Run the fits that the configuration asks for, and no others, on DOMs in one order."""
    batch = in_sensor_order(batch)
    fits: dict[str, FitResult] = {}
    needs_all = config.seed_alternatives or config.seed == "likelihood"
    if needs_all or config.seed == "line_fit":
        fits["line_fit"] = line_fit(batch)
    if needs_all or config.seed == "improved":
        fits["improved"] = improved_line_fit(batch, plain=fits.get("line_fit"))
    if needs_all:
        fits["inertia"] = tensor_of_inertia(batch)
    centred = centred_hits(batch)
    if config.seed == "likelihood":
        others = [fits["line_fit"], fits["inertia"]]
        fits["likelihood"] = fit_track(centred, fits["improved"], others)
    chosen = fits.pop(config.seed)
    alternatives = chosen.direction.new_zeros(batch.n_events, 0, 3)
    if config.seed_alternatives:
        alternatives = torch.stack([fit.direction for fit in fits.values()], dim=1)
    point = fit_point(centred) if config.point_fit else centred.centre_m
    return Seeds(chosen, alternatives, point)


# Memory of the seeds: a fit is the same in every epoch, and costs more than the step it serves.

MAX_REMEMBERED = 1_000_000
"""Events whose seeds are kept, some 300 bytes each; what comes later is fitted in each epoch."""


class SeedMemory:
    """Keeps the seeds of events by their `event_id`, which is unique in a data set.

    A fit is the same, bit for bit, whatever its batch mates are, so a run that resumes without
    its memory ends with the same weights. Threads may share one memory.
    """

    def __init__(self, config: ModelConfig, max_events: int = MAX_REMEMBERED) -> None:
        self.config = config
        self.max_events = max_events
        self._row: dict[int, int] = {}
        self._rows = torch.empty(0, 11 + 3 * n_alternatives(config))
        self._lock = Lock()

    def __len__(self) -> int:
        """Count the events remembered."""
        return len(self._row)

    def seeds(self, batch: EventBatch) -> Seeds:
        """Recall the seeds of a batch on the CPU; if one is unknown, fit all and remember them."""
        ids = batch.event_id.tolist()
        with self._lock:
            rows = [self._row.get(one, -1) for one in ids]
            if -1 not in rows:
                return _as_seeds(self._rows[torch.tensor(rows, dtype=torch.int64)])
        seeds = find_seeds(batch, self.config)
        with self._lock:
            self._keep(ids, _as_rows(seeds))
        return seeds

    def _keep(self, ids: list[int], columns: Tensor) -> None:
        new = [k for k, one in enumerate(ids) if one not in self._row]
        new = new[: self.max_events - len(self._row)]
        needed = len(self._row) + len(new)
        if needed > len(self._rows):
            grown = columns.new_empty(max(needed, 2 * len(self._rows)), columns.shape[1])
            grown[: len(self._row)] = self._rows[: len(self._row)]
            self._rows = grown
        self._rows[len(self._row) : needed] = columns[new]
        self._row |= {ids[k]: len(self._row) + place for place, k in enumerate(new)}


def _as_rows(seeds: Seeds) -> Tensor:
    """Lay seeds side by side: (B, 11 + 3 K) float32."""
    fit = seeds.fit
    columns = [fit.direction, fit.position_m, fit.time_ns[:, None], fit.ok[:, None].float()]
    return torch.cat([*columns, seeds.point_m, seeds.alternatives.flatten(1)], dim=1)


def _as_seeds(rows: Tensor) -> Seeds:
    fit = FitResult(rows[:, :3], rows[:, 3:6], rows[:, 6], rows[:, 7] > 0)
    return Seeds(fit, rows[:, 11:].view(len(rows), -1, 3), rows[:, 8:11])


N_EVENT_FEATURES = 11
N_POSITION_FEATURES = 9
N_VECTORS = 3


@dataclass(frozen=True)
class SeedFrame:
    """The seed of each event as a frame, and each DOM in it.

    rotation: (B, 3, 3) float32, rows are the axes; the last one points to the seed's origin
    expected_ns: (D, 2) float32, when direct light is expected: of the track, of the point
    position: (D, 9) float32, near one: position in the frame, distances, direction from the point
    vectors: (D, 3, 3) float32, near one, in the frame: the position on the track's scale, the
        direction from the point, and the direction across the track times the way along it
    event_features: (B, 11 + 3 K) float32, near one: how the frame lies in the detector, how well
        track and point explain the first times, directions of the K alternatives
    """

    rotation: Tensor
    expected_ns: Tensor
    position: Tensor
    vectors: Tensor
    event_features: Tensor


def frame_axes(direction: Tensor) -> Tensor:
    """Build right-handed axes whose last one is the given direction.

    direction: (B, 3) unit vectors. Returns (B, 3, 3), rows are the axes.
    """
    up = torch.zeros_like(direction)
    up[:, 2] = 1
    north = torch.zeros_like(direction)
    north[:, 0] = 1
    is_vertical = direction[:, 2:].abs() > 0.9999
    first = torch.where(is_vertical, north, up)
    first = first - (first * direction).sum(-1, keepdim=True) * direction
    first = first / torch.linalg.vector_norm(first, dim=-1, keepdim=True)
    return torch.stack([first, torch.linalg.cross(direction, first, dim=-1), direction], dim=1)


def seed_frame(batch: EventBatch, statistics: DomStatistics, seeds: Seeds) -> SeedFrame:
    """Describe every DOM in the frame of its event's seed; finite for events of a single pulse."""
    event, n_events = batch.dom_event_idx(), batch.n_events
    first_ns = statistics.times_ns[:, 0]
    weight = torch.where(statistics.triggered, 1.0, 1e-3)
    fit, centre = seeds.fit, seeds.point_m
    rotation = frame_axes(fit.direction)
    along, distance = track_geometry(batch.xyz_m, fit.position_m[event], -fit.direction[event])
    centre_along, _ = track_geometry(centre, fit.position_m, -fit.direction)
    track_ns = cherenkov_time(along, distance, batch.medium)
    from_centre = batch.xyz_m - centre[event]
    radius = torch.linalg.vector_norm(from_centre, dim=-1)
    point_ns = radius * batch.medium.light_ns_per_m
    # whatever the seed's own time: half of the triggered DOMs see light before, half after this
    track_zero = segment_quantile(first_ns - track_ns, weight, 0.5, event, n_events)
    point_zero = segment_quantile(first_ns - point_ns, weight, 0.5, event, n_events)
    expected = torch.stack([track_ns + track_zero[event], point_ns + point_zero[event]], dim=-1)
    local = torch.einsum("dij,dj->di", rotation[event], batch.xyz_m - fit.position_m[event])
    local[:, 2] += centre_along[event]
    toward = torch.einsum("dij,dj->di", rotation[event], from_centre / (radius + 1.0)[:, None])
    scaled = [local / 200, torch.log1p(distance / 10)[:, None] / 3]
    scaled += [torch.log1p(radius / 10)[:, None] / 3, toward, batch.xyz_m[:, 2:] / 500]
    residual = (first_ns[:, None] - expected) / 100
    misfit = segment_mean(torch.log1p(residual.abs()), event, n_events, weight)
    features = _event_features(rotation, seeds, misfit, local, event)
    # a late hit far along the track turns it, as a lever does
    lever = local / (distance + 10.0)[:, None] * (local[:, 2:] / 200)
    lever[:, 2] = 0
    vectors = torch.stack([local / 200, toward, lever], dim=1)
    return SeedFrame(rotation, expected, torch.cat(scaled, dim=-1), vectors, features)


def _event_features(
    rotation: Tensor, seeds: Seeds, misfit: Tensor, local: Tensor, event: Tensor
) -> Tensor:
    """Describe the frame. misfit: (B, 2), mean log residual of first times to track and point."""
    n_events = len(rotation)
    extent = segment_mean(local.square(), event, n_events).sqrt() / 100
    up_and_tilt = rotation[:, [0, 2], 2]
    n_doms = segment_sum(torch.ones_like(event, dtype=local.dtype), event, n_events)
    columns = [
        up_and_tilt,
        torch.einsum("bij,bj->bi", rotation, seeds.point_m) / 500,
        misfit,
        extent[:, :2].mean(1, keepdim=True),
        extent[:, 2:],
        seeds.fit.ok[:, None].float(),
        torch.rsqrt(n_doms)[:, None],
        torch.einsum("bij,bkj->bki", rotation, seeds.alternatives).flatten(1),
    ]
    return torch.cat(columns, dim=-1)
