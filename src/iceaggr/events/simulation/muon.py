"""Muon energy losses: mean loss and range, and single stochastic losses along the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iceaggr.events.simulation.ice import ICE_DENSITY, Floats

_A_GEV_PER_M = 0.259 * ICE_DENSITY
_B_PER_M = 0.363e-3 * ICE_DENSITY
"""dE/dx = a + b E in ice. Source: Chirkin and Rhode, hep-ph/0407075, Table 3 (per mwe)."""
_PAIR_SHARE = 0.45
"""Share of b from pair production, the rest from bremsstrahlung and photonuclear interactions.
Source: approximate shares at TeV energies, hep-ph/0407075."""
_V_PAIR = (1e-4, 0.1)
"""Pair production: dN/dv ~ v^-2 between these relative losses (soft)."""
V_CUT = 1e-3
"""Smaller relative losses belong to the smooth light of the track."""

_PAIR_PER_M = _PAIR_SHARE * _B_PER_M / np.log(_V_PAIR[1] / _V_PAIR[0])
_HARD_PER_M = (1.0 - _PAIR_SHARE) * _B_PER_M
CONTINUOUS_B_PER_M = float(_PAIR_PER_M * np.log(V_CUT / _V_PAIR[0]) + _HARD_PER_M * V_CUT)
"""The part of b below V_CUT, per metre."""


@dataclass(frozen=True)
class Losses:
    """K stochastic losses: row of the muon, metres along its line, energy in GeV, all (K,)."""

    row: npt.NDArray[np.int64]
    along_m: Floats
    energy_gev: Floats


def muon_range_m(energy_gev: Floats) -> Floats:
    """Mean range in ice, (K,) m: ln(1 + E b/a)/b."""
    return np.asarray(np.log1p(energy_gev * _B_PER_M / _A_GEV_PER_M) / _B_PER_M)


def muon_energy(start_gev: Floats, travelled_m: Floats) -> Floats:
    """Mean energy after a distance, (K,) GeV; 0 once the muon has stopped."""
    critical = _A_GEV_PER_M / _B_PER_M
    left = (start_gev + critical) * np.exp(-_B_PER_M * np.maximum(travelled_m, 0.0)) - critical
    return np.maximum(left, 0.0)


def draw_losses(
    start_gev: Floats, start_m: Floats, first_m: Floats, last_m: Floats, rng: np.random.Generator
) -> Losses:
    """Draw the losses above V_CUT between first_m and last_m on the muon's line.

    start_gev at start_m; all (M,), metres along the line. Pair production falls as v^-2,
    bremsstrahlung and photonuclear losses as 1/v; both carry their share of b on average.
    """
    length = np.maximum(last_m - first_m, 0.0)
    n_pair = rng.poisson(length * _PAIR_PER_M * (1.0 / V_CUT - 1.0 / _V_PAIR[1]))
    n_hard = rng.poisson(length * _HARD_PER_M * np.log(1.0 / V_CUT))
    rows = np.arange(len(length))
    row = np.concatenate([np.repeat(rows, n_pair), np.repeat(rows, n_hard)])
    u = rng.random(len(row))
    pair = np.arange(len(row)) < n_pair.sum()
    v = np.where(
        pair,
        1.0 / (1.0 / V_CUT - u * (1.0 / V_CUT - 1.0 / _V_PAIR[1])),
        V_CUT ** (1.0 - u),
    )
    along = first_m[row] + rng.random(len(row)) * length[row]
    energy = v * muon_energy(start_gev[row], along - start_m[row])
    return Losses(row, along, energy)
