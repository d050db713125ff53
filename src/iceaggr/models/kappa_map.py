"""The last word on kappa: a monotone map, fitted on validation events once the weights are final.

The likelihood teaches kappa on train events. A network that knows them too well claims too much of
new ones, most of all where it is surest. So the validation events say by what their kappa has to be
multiplied: the logarithm of the factor is linear in log kappa between a few knots and constant
beyond, as makes them likeliest. It multiplies the predicted vector: directions stay, and so does
the order of the events by kappa. A map that does not help events it was not fitted to is none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from iceaggr.angles import mean_cosine

KNOT_SHARES = (0.05, 0.3, 0.6, 0.8, 0.9, 0.97)
"""Shares of the validation events below each knot: closest where few sure events err the most."""
MIN_EVENTS = 500
"""Fewer known events make no map."""
N_FOLDS = 5
"""Parts of the validation events that are judged by a map of the others."""
MAX_LOG_FACTOR = 8.0
"""No factor beyond e^8 = 3,000 either way."""
PRIOR_WIDTH = 3.0
"""Of log factors about zero, so that knots without events stay put."""
MIN_SLOPE = 0.1
"""Of the new log kappa over the old one, so that the order of the events stays."""
MAX_STEP = 0.5
MAX_STEPS = 100

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
    nothing of either. Each fifth of them is judged by a map of the others: if their likelihood does
    not gain, kappa stays as it is.
    """
    known = kappa > 0
    kappa, cosine = kappa[known], cosine[known]
    if len(kappa) < MIN_EVENTS:
        return None
    gain, fold = 0.0, np.arange(len(kappa)) % N_FOLDS
    for k in range(N_FOLDS):
        here = fold == k
        of_others = _fitted(kappa[~here], cosine[~here]).of(kappa[here])
        gain += float((_nats(kappa[here], cosine[here]) - _nats(of_others, cosine[here])).sum())
    return _fitted(kappa, cosine) if gain > 0 else None


def _fitted(kappa: Floats, cosine: Floats) -> KappaMap:
    """Find the factors at the knots that make the events likeliest, by Newton's method.

    Source: the negative log-likelihood has the slope kappa (claimed cosine - cosine) in log kappa.
    Of its curvature the part that the errors make negative is left out where it would rule.
    """
    log_kappa = np.log(kappa)
    # rounded, as many events of one kappa may share a knot
    knots = np.unique(np.quantile(log_kappa, KNOT_SHARES).round(3))
    shares = np.stack([np.interp(log_kappa, knots, row) for row in np.eye(len(knots))], axis=1)
    factors, prior = np.zeros(len(knots)), np.eye(len(knots)) / PRIOR_WIDTH**2
    for _ in range(MAX_STEPS):
        new = kappa * np.exp(shares @ factors)
        slope = new * (mean_cosine(new) - cosine)
        spread = new**2 * _cosine_spread(new)
        curvature = np.maximum(slope + spread, 0.3 * spread)
        hessian = (shares * curvature[:, None]).T @ shares + prior
        step = np.linalg.solve(hessian, shares.T @ slope + prior @ factors)
        step *= min(1.0, MAX_STEP / max(np.abs(step).max(), 1e-12))
        factors = np.clip(factors - step, -MAX_LOG_FACTOR, MAX_LOG_FACTOR)
        if np.abs(step).max() < 1e-4:
            break
    return _risen(knots, factors)


def _risen(knots: Floats, factors: Floats) -> KappaMap:
    """Keep the new kappa rising from knot to knot, from the least sure one on."""
    new = knots + factors
    for k in range(1, len(new)):
        new[k] = max(new[k], new[k - 1] + MIN_SLOPE * (knots[k] - knots[k - 1]))
    factors = np.clip(new - knots, -MAX_LOG_FACTOR, MAX_LOG_FACTOR)  # beyond by rounding alone
    return KappaMap(log_kappa=tuple(knots), log_factor=tuple(factors))


def _cosine_spread(kappa: Floats) -> Floats:
    """Give the variance of the cosine that each kappa claims: 1 / kappa^2 - 1 / sinh^2 kappa."""
    safe = np.clip(kappa, 1e-2, 300.0)
    variance = np.where(kappa > 300.0, kappa**-2.0, safe**-2.0 - np.sinh(safe) ** -2.0)
    return np.where(kappa < 1e-2, 1 / 3, variance)


def _nats(kappa: Floats, cosine: Floats) -> Floats:
    """Give the negative log-likelihood of each event, up to a constant.

    Source: density kappa / (2 pi (1 - exp(-2 kappa))) exp(-kappa (1 - cos psi)).
    """
    return np.asarray(np.log(-np.expm1(-2 * kappa) / kappa) + kappa * (1 - cosine))
