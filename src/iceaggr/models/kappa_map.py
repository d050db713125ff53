"""The last word on kappa: a monotone map, fitted on validation events once the weights are final.

The likelihood teaches kappa on train events, for all of them together. New events of some kappa
may still err more, or less, than it says: the surest ones most of all. So the validation events are
cut into equal parts by kappa, each part says by what its kappa has to be multiplied for its errors
to be as wide as claimed, and the logarithm of that factor is linear in log kappa between the parts.
It multiplies the predicted vector: directions stay, and so does the order of the events by kappa.
A map that does not help events it was not fitted to is none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

N_PARTS = 10
"""Equal parts of the validation events by kappa."""
MIN_EVENTS_PER_PART = 250
"""Fewer parts where there are fewer events; no map below two parts."""
N_FOLDS = 5
"""Parts of the validation events that are judged by a map of the others."""
MAX_LOG_FACTOR = 3.0
"""No factor beyond e^3 = 20 either way."""
MIN_SLOPE = 0.1
"""Of the new log kappa over the old one, so that the order of the events stays."""

Floats = npt.NDArray[np.float64]


class KappaMap(BaseModel):
    """Multiplies kappa by exp(log_factor), linear in log kappa between knots, constant beyond.

    log_kappa, log_factor: (K,), the knots, K at least one
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    log_kappa: tuple[float, ...]
    log_factor: tuple[float, ...]

    @model_validator(mode="after")
    def _is_monotone(self) -> KappaMap:
        old, factor = np.array(self.log_kappa), np.array(self.log_factor)
        if not 0 < len(old) == len(factor):
            raise ValueError(f"{len(old)} knots and {len(factor)} factors")
        if np.any(np.diff(old) <= 0) or np.any(np.diff(old + factor) <= 0):
            raise ValueError("the map of kappa does not rise from knot to knot")
        if np.any(np.abs(factor) > MAX_LOG_FACTOR):
            raise ValueError(f"a factor beyond exp({MAX_LOG_FACTOR:g})")
        return self

    def rescaled(self, vector: Tensor) -> Tensor:
        """Multiply vectors (B, 3) of length kappa; what is zero or not finite stays so."""
        log_kappa = torch.linalg.vector_norm(vector.double(), dim=-1).clamp_min(1e-12).log()
        factor = torch.from_numpy(self._factor(log_kappa.cpu().numpy())).to(vector.device)
        return (vector.double() * factor[:, None]).to(vector.dtype)

    def of(self, kappa: Floats) -> Floats:
        """Map concentrations (N,) above zero."""
        return kappa * self._factor(np.log(kappa))

    def _factor(self, log_kappa: Floats) -> Floats:
        return np.exp(np.interp(log_kappa, self.log_kappa, self.log_factor))


def fit_kappa_map(kappa: Floats, cosine: Floats) -> KappaMap | None:
    """Fit the map to predictions whose truth is known; None where it would not help others.

    kappa: (N,) predicted; cosine: (N,) of the opening angles, the events in any order that says
    nothing of either. Each fifth of them is judged by a map of the others: their likelihood has to
    gain by more than its standard error, or kappa stays as it is.
    """
    known = kappa > 0
    kappa, cosine = kappa[known], cosine[known]
    n_parts = min(N_PARTS, len(kappa) // MIN_EVENTS_PER_PART)
    if n_parts < 2:
        return None
    gain, fold = np.empty(len(kappa)), np.arange(len(kappa)) % N_FOLDS
    for k in range(N_FOLDS):
        here = fold == k
        of_others = _fitted(kappa[~here], cosine[~here], n_parts)
        gain[here] = _nats(kappa[here], cosine[here])
        gain[here] -= _nats(of_others.of(kappa[here]), cosine[here])
    if gain.mean() <= gain.std() / np.sqrt(len(gain)):
        return None
    return _fitted(kappa, cosine, n_parts)


def _fitted(kappa: Floats, cosine: Floats, n_parts: int) -> KappaMap:
    """Ask each part for its factor, pulled towards one as far as its error makes likely.

    Source: W. James and C. Stein 1961, positive part, for each factor by itself.
    """
    knots, factors = [], []
    for part in np.array_split(np.argsort(kappa, kind="stable"), n_parts):
        found, error = _log_factor(kappa[part], cosine[part])
        knots.append(np.median(np.log(kappa[part])))
        factors.append(found * max(0.0, 1.0 - (error / found) ** 2) if found else 0.0)
    return _risen(np.array(knots), np.array(factors))


def _log_factor(kappa: Floats, cosine: Floats) -> tuple[float, float]:
    """Find the logarithm of the common factor of some events, and its standard error.

    Source: its likelihood is largest where the mean cosine is what kappa claims.
    """

    def claimed(log_factor: float) -> float:
        return float(claimed_cosine(kappa * np.exp(log_factor)).mean())

    low, high = -MAX_LOG_FACTOR, MAX_LOG_FACTOR
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if claimed(middle) < cosine.mean() else (low, middle)
    slope = (claimed(low + 0.01) - claimed(low - 0.01)) / 0.02
    error = float(cosine.std()) / np.sqrt(len(cosine)) / max(slope, 1e-9)
    return low, error


def _risen(knots: Floats, factors: Floats) -> KappaMap:
    """Keep the new kappa rising from knot to knot, from the least sure one on."""
    # rounded, as many events of one kappa may share a knot
    knots, first = np.unique(knots.round(3), return_index=True)
    new = knots + factors[first]
    for k in range(1, len(new)):
        new[k] = max(new[k], new[k - 1] + MIN_SLOPE * (knots[k] - knots[k - 1]))
    factors = np.clip(new - knots, -MAX_LOG_FACTOR, MAX_LOG_FACTOR)  # beyond by rounding alone
    return KappaMap(log_kappa=tuple(knots), log_factor=tuple(factors))


def claimed_cosine(kappa: Floats) -> Floats:
    """Give the mean cosine of the opening angle that each kappa claims: coth kappa - 1 / kappa."""
    safe = np.maximum(kappa, 1e-3)
    return np.where(kappa < 1e-3, kappa / 3, 1 / np.tanh(safe) - 1 / safe)


def _nats(kappa: Floats, cosine: Floats) -> Floats:
    """Give the negative log-likelihood of each event, up to a constant.

    Source: density kappa / (2 pi (1 - exp(-2 kappa))) exp(-kappa (1 - cos psi)).
    """
    return np.asarray(np.log(-np.expm1(-2 * kappa) / kappa) + kappa * (1 - cosine))
