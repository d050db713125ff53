"""The ice: scattering and absorption by depth, averaged along the way of the light."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SPEED_OF_LIGHT = 0.299792458
"""Metres per nanosecond."""
N_GROUP = 1.35634
"""Group refractive index at 400 nm. Source: IceTray I3Constants."""
N_PHASE = 1.3195
"""Phase refractive index at 400 nm. Source: IceTray I3Constants."""
COS_CHERENKOV = 1.0 / N_PHASE
SIN_CHERENKOV = float(np.sqrt(1.0 - COS_CHERENKOV**2))
TAN_CHERENKOV = SIN_CHERENKOV / COS_CHERENKOV
ICE_DENSITY = 0.917
"""Density relative to water: metres water equivalent per metre of ice."""

_AMANDA_Z_M = (-50.0, 450.0)
"""Depths 1500-2000 m, where the Pandel constants were fitted to AMANDA data."""


@dataclass(frozen=True)
class Ice:
    """Layered ice with running integrals of the inverse lengths, for averages over any path.

    z_m: (L,) float64 ascending, metres.  scattering_integral, absorption_integral: (L,) integrals
    of 1/length from the bottom to z_m, dimensionless.
    """

    z_m: Floats
    scattering_integral: Floats
    absorption_integral: Floats
    scattering_per_m: Floats
    absorption_per_m: Floats

    def mean_lengths(self, z_from_m: Floats, z_to_m: Floats) -> tuple[Floats, Floats]:
        """Average the ice between two depths (harmonic mean over the path).

        z_from_m, z_to_m: (K,) metres. Returns effective scattering and absorption length, (K,) m.
        """
        # a level path would divide 0 by 0: give every path at least one metre of height
        low = np.minimum(z_from_m, z_to_m) - 0.5
        high = np.maximum(z_from_m, z_to_m) + 0.5
        height = high - low
        scattering = self._between(self.scattering_integral, self.scattering_per_m, low, high)
        absorption = self._between(self.absorption_integral, self.absorption_per_m, low, high)
        return height / scattering, height / absorption

    def _between(self, integral: Floats, density: Floats, low: Floats, high: Floats) -> Floats:
        def at(z: Floats) -> Floats:
            inside = np.interp(z, self.z_m, integral)
            below = np.minimum(z - self.z_m[0], 0.0) * density[0]
            above = np.maximum(z - self.z_m[-1], 0.0) * density[-1]
            return np.asarray(inside + below + above)

        return at(high) - at(low)


@cache
def south_pole_ice() -> Ice:
    """Load the built-in table: effective scattering and absorption lengths at 400 nm, 10 m steps.

    Source: SPICE Mie, arXiv:1301.5361; depths converted with the origin at 1948.07 m.
    """
    text = resources.files("iceaggr.resources").joinpath("ice_layers.csv").read_text()
    table = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1)
    table = table[np.argsort(table[:, 0])]
    z_m, per_m = table[:, 0], 1.0 / table[:, 1:]
    step = np.diff(z_m)[:, None] * 0.5 * (per_m[1:] + per_m[:-1])
    integral = np.vstack([np.zeros((1, 2)), np.cumsum(step, axis=0)])
    return Ice(z_m, integral[:, 0], integral[:, 1], per_m[:, 0], per_m[:, 1])


@cache
def reference_lengths() -> tuple[float, float]:
    """Average the ice over the depths to which the Pandel constants belong.

    Returns effective scattering and absorption length in metres.
    """
    bottom, top = (np.array([z]) for z in _AMANDA_Z_M)
    scattering_m, absorption_m = south_pole_ice().mean_lengths(bottom, top)
    return float(scattering_m[0]), float(absorption_m[0])
