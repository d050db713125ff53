"""Light-source hypotheses: when and from how far a track or a point would light each sensor.

Letters: K fits (an event has one per starting point), R hits of all fits, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from iceaggr.detector import C_M_PER_NS, Medium

# The Cherenkov geometry of a straight track: which way light takes, and when it arrives.


def track_geometry(xyz_m: Tensor, position: Tensor, travel: Tensor) -> tuple[Tensor, Tensor]:
    """Measure where a sensor lies relative to a track.

    xyz_m, position, travel: (..., 3), metres, travel of unit norm.
    Returns the distance along the track and the distance of closest approach, (...) metres.
    """
    relative = xyz_m - position
    along = (relative * travel).sum(-1)
    across = relative - along[..., None] * travel
    return along, across.square().sum(-1).clamp_min(1e-6).sqrt()


def cherenkov_time(along_m: Tensor, distance_m: Tensor, medium: Medium) -> Tensor:
    """Time after the muon passed the reference point at which unscattered light arrives, ns."""
    return (along_m + medium.delay_per_distance * distance_m) / C_M_PER_NS


EFFECTIVE_SLOPE, EFFECTIVE_OFFSET_M = 0.8395, 3.0
"""Effective distance 0.8395 d + 3 m, which corrects the Pandel density for the photomultiplier's
orientation: for light from the side. Source: IceTray rpdf, ice H2, there 3.094 m; kept in water,
for which nobody has published it."""
ACROSS_WIDTH_M, POINT_WIDTH_M = 150.0, 100.0
"""Widths of the priors that keep tracks and points near where they start."""
MAX_TURN_RAD, MAX_SHIFT_M, MAX_DELAY_NS = 0.35, 70.0, 1000.0
"""Largest changes of one iteration: beyond these the quadratic approximation means nothing."""


@dataclass(frozen=True)
class Geometry:
    """Direct light from a source to each hit, and how it moves with the parameters.

    arrival_ns: (R,) relative to the source's time; distance_m: (R,)
    arrival_by, distance_by: (R, P) derivatives
    """

    arrival_ns: Tensor
    distance_m: Tensor
    arrival_by: Tensor
    distance_by: Tensor


class Source(Protocol):
    """A hypothesis with its parameters for K fits."""

    @property
    def max_step(self) -> tuple[float, ...]:
        """Give the largest change of each parameter in one iteration, P numbers."""

    @property
    def time_ns(self) -> Tensor:
        """Give the time of the source, (K,) ns."""

    def geometry(self, xyz_m: Tensor, fit: Tensor, medium: Medium) -> Geometry:
        """Compute times and distances of hits. xyz_m: (R, 3); fit: (R,) fit of each hit."""

    def moved(self, step: Tensor) -> Self:
        """Take a step in the parameters, (K, P)."""

    def where(self, chosen: Tensor, other: Self) -> Self:
        """Take this source where chosen, (K,) bool, else the other."""

    def prior(self) -> tuple[Tensor, Tensor]:
        """Give the deviation from the starting point in widths, (K, P), and 1/width, (P,)."""


@dataclass(frozen=True)
class TrackSource:
    """Muon tracks. travel: (K, 3) unit; position_m: (K, 3); time_ns: (K,); start_m: (K, 3).

    Parameters: two angles of the travel direction (rad), two offsets across it (m), time (ns).
    """

    travel: Tensor
    position_m: Tensor
    time_ns: Tensor
    start_m: Tensor

    @property
    def max_step(self) -> tuple[float, ...]:
        """Give the largest change of each parameter in one iteration."""
        return MAX_TURN_RAD, MAX_TURN_RAD, MAX_SHIFT_M, MAX_SHIFT_M, MAX_DELAY_NS

    def take(self, rows: Tensor) -> TrackSource:
        """Select fits. rows: (K',) int64."""
        return TrackSource(
            self.travel[rows], self.position_m[rows], self.time_ns[rows], self.start_m[rows]
        )

    def axes(self) -> tuple[Tensor, Tensor]:
        """Build two unit vectors across the travel direction, each (K, 3)."""
        x, y, z = self.travel.unbind(-1)
        # Duff et al. 2017: an orthonormal basis without branches or singularities
        sign = torch.where(z >= 0, 1.0, -1.0)
        a = -1 / (sign + z)
        b = x * y * a
        first = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], dim=-1)
        return first, torch.stack([b, sign + y * y * a, -y], dim=-1)

    def geometry(self, xyz_m: Tensor, fit: Tensor, medium: Medium) -> Geometry:
        """Compute Cherenkov times and closest distances of hits."""
        first, second = self.axes()
        frame = torch.stack([self.travel, first, second], dim=1)[fit]
        relative = xyz_m - self.position_m[fit]
        along, p, q = torch.einsum("rij,rj->ri", frame, relative).unbind(-1)
        distance = (p * p + q * q + 1e-2).sqrt()
        across = torch.stack([p, q], dim=-1) / distance[:, None]
        delay = medium.delay_per_distance
        turn = ((distance - delay * along) / C_M_PER_NS)[:, None] * across
        shift = (-delay / C_M_PER_NS) * across
        one, zero = torch.ones_like(along)[:, None], torch.zeros_like(along)[:, None]
        return Geometry(
            (along + delay * distance) / C_M_PER_NS,
            distance,
            torch.cat([turn, shift, one], dim=-1),
            torch.cat([-along[:, None] * across, -across, zero], dim=-1),
        )

    def moved(self, step: Tensor) -> TrackSource:
        """Turn and shift the tracks."""
        first, second = self.axes()
        travel = self.travel + step[:, :1] * first + step[:, 1:2] * second
        travel = travel / torch.linalg.vector_norm(travel, dim=-1, keepdim=True)
        position = self.position_m + step[:, 2:3] * first + step[:, 3:4] * second
        return TrackSource(travel, position, self.time_ns + step[:, 4], self.start_m)

    def where(self, chosen: Tensor, other: TrackSource) -> TrackSource:
        """Choose tracks, fit by fit."""
        column = chosen[:, None]
        return TrackSource(
            torch.where(column, self.travel, other.travel),
            torch.where(column, self.position_m, other.position_m),
            torch.where(chosen, self.time_ns, other.time_ns),
            self.start_m,
        )

    def prior(self) -> tuple[Tensor, Tensor]:
        """Pull weakly towards the start across the track: few hits must not run away."""
        first, second = self.axes()
        offset = self.position_m - self.start_m
        inverse = 1 / ACROSS_WIDTH_M
        zero = torch.zeros_like(self.time_ns)
        p, q = (offset * first).sum(-1) * inverse, (offset * second).sum(-1) * inverse
        pulls = torch.stack([zero, zero, p, q, zero], dim=-1)
        return pulls, pulls.new_tensor([0.0, 0.0, inverse, inverse, 0.0])


@dataclass(frozen=True)
class PointSource:
    """Cascades. position_m: (K, 3); time_ns: (K,); start_m: (K, 3).

    Parameters: position (m) and time (ns).
    """

    position_m: Tensor
    time_ns: Tensor
    start_m: Tensor

    @property
    def max_step(self) -> tuple[float, ...]:
        """Give the largest change of each parameter in one iteration."""
        return MAX_SHIFT_M, MAX_SHIFT_M, MAX_SHIFT_M, MAX_DELAY_NS

    def geometry(self, xyz_m: Tensor, fit: Tensor, medium: Medium) -> Geometry:
        """Compute light travel times and distances of hits."""
        relative = xyz_m - self.position_m[fit]
        distance = (relative.square().sum(-1) + 1.0).sqrt()
        unit = relative / distance[:, None]
        one, zero = torch.ones_like(distance)[:, None], torch.zeros_like(distance)[:, None]
        return Geometry(
            distance * medium.light_ns_per_m,
            distance,
            torch.cat([-medium.light_ns_per_m * unit, one], dim=-1),
            torch.cat([-unit, zero], dim=-1),
        )

    def moved(self, step: Tensor) -> PointSource:
        """Shift the points."""
        return PointSource(self.position_m + step[:, :3], self.time_ns + step[:, 3], self.start_m)

    def where(self, chosen: Tensor, other: PointSource) -> PointSource:
        """Choose points, fit by fit."""
        return PointSource(
            torch.where(chosen[:, None], self.position_m, other.position_m),
            torch.where(chosen, self.time_ns, other.time_ns),
            self.start_m,
        )

    def prior(self) -> tuple[Tensor, Tensor]:
        """Pull weakly towards the start."""
        inverse = 1 / POINT_WIDTH_M
        pulls = (self.position_m - self.start_m) * inverse
        zero = torch.zeros_like(self.time_ns)[:, None]
        return torch.cat([pulls, zero], dim=-1), pulls.new_tensor([inverse, inverse, inverse, 0.0])
