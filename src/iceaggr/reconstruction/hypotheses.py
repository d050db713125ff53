"""Light-source hypotheses: when and from how far a track or a point would light each sensor.

Letters: K or M fits (an event has one per starting point), R hits of all fits, S sources, P
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iceaggr.detector import C_M_PER_NS, Medium
from iceaggr.events.simulation.pairs import Cascades, Tracks

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

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


# Light from along a line, whose amount counts as well as its times: for fits of every photon.

N_PARAMETERS = 7
"""Of a line: vertex (3, m), two angles (rad), time (ns), logarithm of the light."""


@dataclass(frozen=True)
class Line:
    """Light along M lines: cascades, sorted by fit, and the smooth light of a muon.

    vertex_m, travel: (M, 3).  time_ns: (M,), when the light's cause passes the vertex
    fit: (S,) int64.  along_m: (S,) from the vertex.  energy_gev: (S,), of light like an
    electromagnetic cascade.  muon_gev: (M,) at the vertex, 0 = no muon
    first_m, last_m: (M,) of the muon.  muon_light: (M,) factor on its light
    """

    vertex_m: Floats
    travel: Floats
    time_ns: Floats
    fit: Ints
    along_m: Floats
    energy_gev: Floats
    muon_gev: Floats
    first_m: Floats
    last_m: Floats
    muon_light: Floats

    def moved(self, step: Floats) -> Line:
        """Take a step in the parameters, (M, P)."""
        first, second = across(self.travel)
        travel = self.travel + step[:, 3:4] * first + step[:, 4:5] * second
        factor = np.exp(step[:, 6])
        return replace(
            self,
            vertex_m=self.vertex_m + step[:, :3],
            travel=travel / np.linalg.norm(travel, axis=1, keepdims=True),
            time_ns=self.time_ns + step[:, 5],
            energy_gev=self.energy_gev * factor[self.fit],
            muon_light=self.muon_light * factor,
        )

    def where(self, chosen: npt.NDArray[np.bool_], other: Line) -> Line:
        """Take this line where chosen, (M,) bool, else the other of the same sources."""
        column, of_source = chosen[:, None], chosen[self.fit]
        return replace(
            self,
            vertex_m=np.where(column, self.vertex_m, other.vertex_m),
            travel=np.where(column, self.travel, other.travel),
            time_ns=np.where(chosen, self.time_ns, other.time_ns),
            energy_gev=np.where(of_source, self.energy_gev, other.energy_gev),
            muon_light=np.where(chosen, self.muon_light, other.muon_light),
        )

    def cascades(self) -> Cascades:
        """Place the cascades."""
        travel = self.travel[self.fit]
        return Cascades(
            self.fit,
            self.vertex_m[self.fit] + self.along_m[:, None] * travel,
            travel,
            self.time_ns[self.fit] + self.along_m / C_M_PER_NS,
            self.energy_gev,
        )

    def tracks(self) -> Tracks:
        """Place the muons; their time zero is the nearest point to the detector's centre."""
        vertex = (self.vertex_m * self.travel).sum(axis=1)
        nearest = self.vertex_m - vertex[:, None] * self.travel
        fit = np.arange(len(self.time_ns))
        first, last = vertex + self.first_m, vertex + self.last_m
        return Tracks(fit, nearest, self.travel, vertex, first, last, self.muon_gev)


def points_of_light(vertex_m: Floats, travel: Floats, time_ns: Floats) -> Line:
    """Build M cascades of 10 TeV."""
    n = len(time_ns)
    zero, one = np.zeros(n), np.ones(n)
    return Line(vertex_m, travel, time_ns, np.arange(n), zero, 1e4 * one, zero, zero, zero, one)


def even_directions(n: int) -> Floats:
    """Spread n directions evenly over the sphere, (n, 3). Source: Fibonacci lattice."""
    k = np.arange(n) + 0.5
    z = 1.0 - 2.0 * k / n
    azimuth, radius = np.pi * (1.0 + np.sqrt(5.0)) * k, np.sqrt(1.0 - z * z)
    return np.column_stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z])


SEGMENT_M = 25.0
"""Between the cascades along a track."""
MUON_GEV = 1e4


def cascades_along(
    position_m: Floats, travel: Floats, time_ns: Floats, hits_m: list[Floats], reach_m: float
) -> Line:
    """Lay cascades along M tracks, from before the first hit to behind the last one within reach.

    position_m, travel: (M, 3) a point of each track and its unit vector of flight
    time_ns: (M,) at that point.  hits_m: M arrays (N, 3), where the event was seen
    """
    n_tracks = len(time_ns)
    fits, along = [], []
    first, last = np.zeros(n_tracks), np.zeros(n_tracks)
    for k, hits in enumerate(hits_m):
        way = hits - position_m[k]
        reach = way @ travel[k]
        near = np.linalg.norm(way - reach[:, None] * travel[k], axis=1) < reach_m
        on = reach[near] if near.any() else reach
        first[k], last[k] = on.min() - 2 * SEGMENT_M, on.max() + SEGMENT_M
        places = np.arange(first[k] + 0.5 * SEGMENT_M, last[k], SEGMENT_M)
        fits.append(np.full(len(places), k))
        along.append(places)
    fit, muons = np.concatenate(fits), np.full(n_tracks, MUON_GEV)
    energy, muon_light = np.full(len(fit), 0.1 * MUON_GEV), np.full(n_tracks, 0.1)
    places = np.concatenate(along)
    return Line(position_m, travel, time_ns, fit, places, energy, muons, first, last, muon_light)


def across(travel: Floats) -> tuple[Floats, Floats]:
    """Build two unit vectors across each direction, (M, 3).

    Source: Duff et al. 2017, an orthonormal basis without branches or singularities.
    """
    x, y, z = travel.T
    sign = np.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    first = np.column_stack([1 + sign * x * x * a, sign * b, -sign * x])
    return first, np.column_stack([b, sign + y * y * a, -y])
