"""The Cherenkov geometry of a straight track: which way light takes, and when it arrives.

Source: geometry of a cone that moves with c while its light moves with c / n_group.
"""

from __future__ import annotations

import math

from torch import Tensor

from iceaggr.light_in_ice import C_M_PER_NS, N_GROUP, N_PHASE

CHERENKOV_RAD = math.acos(1 / N_PHASE)
LIGHT_NS_PER_M = N_GROUP / C_M_PER_NS
"""Time that light takes in ice, 4.524 ns/m."""
DELAY_PER_DISTANCE = N_GROUP / math.sin(CHERENKOV_RAD) - 1 / math.tan(CHERENKOV_RAD)
"""Light path of the cone per metre of closest distance, in units of c t: 0.917."""


def track_geometry(xyz_m: Tensor, position: Tensor, travel: Tensor) -> tuple[Tensor, Tensor]:
    """Measure where a sensor lies relative to a track.

    xyz_m, position, travel: (..., 3), metres, travel of unit norm.
    Returns the distance along the track and the distance of closest approach, (...) metres.
    """
    relative = xyz_m - position
    along = (relative * travel).sum(-1)
    across = relative - along[..., None] * travel
    return along, across.square().sum(-1).clamp_min(1e-6).sqrt()


def cherenkov_time(along_m: Tensor, distance_m: Tensor) -> Tensor:
    """Time after the muon passed the reference point at which unscattered light arrives, ns."""
    return (along_m + DELAY_PER_DISTANCE * distance_m) / C_M_PER_NS
