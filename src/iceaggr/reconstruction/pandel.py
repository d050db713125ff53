"""Arrival times of scattered light: the Pandel density blurred by a Gaussian, as a table.

A delay t behind unscattered light, seen at an effective distance d, follows a Gamma distribution
of shape d / 33.3 m and rate 1/557 ns + c_ice / 98 m. The table holds log density, log survival and
their derivatives on a grid that is fine near t = 0, where the density rises within nanoseconds.
Source: D. Pandel 1996, constants for AMANDA ice H2 as in IceTray rpdf; N. van Eijndhoven et al.
2007 for the Gaussian blur, here done numerically.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import fftconvolve
from scipy.special import gammainc
from torch import Tensor

from iceaggr.light_in_ice import C_M_PER_NS, N_GROUP

SCATTERING_M = 33.29
ABSORPTION_M = 98.0
TAU_NS = 556.7
RATE_PER_NS = 1 / TAU_NS + C_M_PER_NS / N_GROUP / ABSORPTION_M
"""Of the Gamma distribution: absorption cuts off late light."""
TIME_KNEE_NS, DISTANCE_KNEE_M = 20.0, 20.0
"""Where the grid of the table turns from even to logarithmic steps: even in asinh(t / knee)."""
TIME_STEP, DISTANCE_STEP = 0.06, 0.12
LAST_NS, FURTHEST_M = 6000, 500.0
LOWEST_LOG = -40.0
"""Lowest log density per ns: what lies below is rounding of the convolution."""
N_COLUMNS = 6
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ArrivalTerms:
    """Log density and survival of delays, with derivatives, each (R,) float32.

    log_density per ns; log_survival; *_by_ns, *_by_m: derivatives by delay and by distance
    """

    log_density: Tensor
    density_by_ns: Tensor
    density_by_m: Tensor
    log_survival: Tensor
    survival_by_ns: Tensor
    survival_by_m: Tensor


@dataclass(frozen=True)
class ArrivalTable:
    """Bilinear table over asinh(t / 20 ns) and asinh(d / 20 m). values: (T * M, 6) float32."""

    values: Tensor
    first_u: float
    n_times: int
    n_distances: int

    def lookup(self, delay_ns: Tensor, distance_m: Tensor) -> ArrivalTerms:
        """Interpolate. delay_ns, distance_m: (R,) float32; beyond the table its edge holds."""
        u = (torch.asinh(delay_ns / TIME_KNEE_NS) - self.first_u) / TIME_STEP
        w = torch.asinh(distance_m / DISTANCE_KNEE_M) / DISTANCE_STEP
        u = u.clamp(0, self.n_times - 1.001)
        w = w.clamp(0, self.n_distances - 1.001)
        row, column = u.floor(), w.floor()
        along, across = (u - row)[:, None], (w - column)[:, None]
        corner = (row * self.n_distances + column).long()
        low = torch.lerp(self.values[corner], self.values[corner + 1], across)
        corner = corner + self.n_distances
        high = torch.lerp(self.values[corner], self.values[corner + 1], across)
        return ArrivalTerms(*torch.lerp(low, high, along).unbind(-1))


@cache
def arrival_table(blur_ns: float, device: torch.device = CPU) -> ArrivalTable:
    """Build the table for a Gaussian blur, once per process and device.

    blur_ns: photomultiplier jitter and what the ice model does not know; large for a first search.
    """
    if device != CPU:
        table = arrival_table(blur_ns, CPU)
        return replace(table, values=table.values.to(device))
    first_u = float(np.arcsinh(-6 * blur_ns / TIME_KNEE_NS))
    n_times = int((np.arcsinh(LAST_NS / TIME_KNEE_NS) - first_u) / TIME_STEP) + 1
    n_distances = int(np.arcsinh(FURTHEST_M / DISTANCE_KNEE_M) / DISTANCE_STEP) + 1
    times = TIME_KNEE_NS * np.sinh(first_u + TIME_STEP * np.arange(n_times))
    distances = DISTANCE_KNEE_M * np.sinh(DISTANCE_STEP * np.arange(n_distances))
    logs = np.stack([_log_curves(times, d, blur_ns) for d in distances.clip(min=1.0)], axis=1)
    columns = []
    for name in range(2):
        values = logs[..., name]
        by_time = np.gradient(values, times, axis=0)
        by_distance = np.gradient(values, distances, axis=1)
        columns += [values, by_time, by_distance]
    rows = np.stack(columns, axis=-1).reshape(-1, N_COLUMNS)
    return ArrivalTable(torch.from_numpy(rows.astype(np.float32)), first_u, n_times, n_distances)


def _log_curves(
    times: npt.NDArray[np.float64], distance_m: float, blur_ns: float
) -> npt.NDArray[np.float64]:
    """Compute log density and log survival at some delays: (T, 2)."""
    edges = np.arange(0, LAST_NS + 2.0)
    # masses of 1 ns bins: exact also where the density itself diverges at zero delay
    mass = np.diff(gammainc(distance_m / SCATTERING_M, RATE_PER_NS * edges))
    reach = int(7 * blur_ns)
    offsets = np.arange(-reach, reach + 1.0)
    kernel = np.exp(-0.5 * (offsets / blur_ns) ** 2)
    density = fftconvolve(mass, kernel / kernel.sum()).clip(min=1e-17)
    grid = offsets[0] + 0.5 + np.arange(len(density))
    survival = 1 - np.cumsum(density) / density.sum() + density / density.sum() / 2
    log_survival = np.log(survival.clip(min=1e-12))
    log_density = np.log(density).clip(min=LOWEST_LOG)
    return np.stack(
        [np.interp(times, grid, log_density), np.interp(times, grid, log_survival)], axis=-1
    )
