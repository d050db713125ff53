"""Constants of light in ice at 400 nm, which simulation and reconstruction share."""

from __future__ import annotations

C_M_PER_NS = 0.299792458
"""Speed of light in vacuum, which muons reach: metres per nanosecond."""

N_PHASE = 1.3195
"""Phase refractive index, which sets the Cherenkov angle. Source: IceTray I3Constants."""

N_GROUP = 1.35634
"""Group refractive index, which sets how fast light travels. Source: IceTray I3Constants."""
