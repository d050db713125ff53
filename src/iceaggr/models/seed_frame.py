"""The frame of a seed track: its axes, and where and when each DOM lies in it.

The first axis of the frame points up as far as the track allows, so that what breaks the rotation
symmetry (DOMs look down, ice comes in layers) always breaks it in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.models.dom_statistics import DomStatistics
from iceaggr.models.seeds import Seeds
from iceaggr.reconstruction.optics import LIGHT_NS_PER_M, cherenkov_time, track_geometry
from iceaggr.reconstruction.segments import segment_mean, segment_quantile, segment_sum

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
    track_ns = cherenkov_time(along, distance)
    from_centre = batch.xyz_m - centre[event]
    radius = torch.linalg.vector_norm(from_centre, dim=-1)
    point_ns = radius * LIGHT_NS_PER_M
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
