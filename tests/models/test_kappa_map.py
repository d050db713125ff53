"""The map of kappa: it finds what is wrong, leaves alone what is right, and keeps the order."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from iceaggr.evaluation.calibration import containment_angle, width_parts
from iceaggr.models.kappa_map import KappaMap, fit_kappa_map


def predictions(n_events: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw true concentrations like those of a model, and opening angles that follow them."""
    rng = np.random.default_rng(seed)
    kappa = np.exp(rng.normal(1.5, 1.5, n_events)).clip(0.05, 5000)
    return kappa, containment_angle(kappa, rng.random(n_events))


def boastful(kappa: np.ndarray) -> np.ndarray:
    """Claim too much for the surest events, up to twice, and a little too little for the others."""
    return kappa * np.interp(np.log(kappa), [1.0, 4.0], [0.9, 2.0])


def rescaled(found: KappaMap, kappa: np.ndarray) -> np.ndarray:
    vector = torch.zeros(len(kappa), 3, dtype=torch.float64)
    vector[:, 1] = torch.from_numpy(kappa)
    return found.rescaled(vector)[:, 1].numpy()


def worst_ratio(angle: np.ndarray, kappa: np.ndarray) -> float:
    return max(abs(np.log(part.ratio)) for part in width_parts(angle, kappa))


def test_widths_of_other_events_are_true_after_the_map() -> None:
    kappa, angle = predictions(10_000, seed=1)
    found = fit_kappa_map(boastful(kappa), np.cos(angle))
    assert found is not None
    kappa, angle = predictions(50_000, seed=2)
    assert worst_ratio(angle, boastful(kappa)) > 0.25
    assert worst_ratio(angle, rescaled(found, boastful(kappa))) < 0.06


def test_sure_and_wrong_events_take_their_toll_of_the_surest() -> None:
    kappa, angle = predictions(20_000, seed=5)
    rng = np.random.default_rng(6)
    # one in fifty of the sure events lies anywhere
    lost = (kappa > 30) & (rng.random(20_000) < 0.02)
    angle = np.where(lost, np.arccos(rng.uniform(-1, 1, 20_000)), angle)
    train, judge = slice(0, 10_000), slice(10_000, None)
    found = fit_kappa_map(kappa[train], np.cos(angle[train]))
    assert found is not None
    assert width_parts(angle[judge], kappa[judge])[-1].ratio > 1.3
    told = width_parts(angle[judge], rescaled(found, kappa[judge]))[-1]
    assert abs(told.ratio - 1) < 3 * told.error


def test_true_widths_are_left_alone() -> None:
    found = [fit_kappa_map(kappa, np.cos(angle)) for kappa, angle in map(drawn, range(10))]
    # by luck alone a map may seem to help: of ten honest samples hardly more than a few
    assert sum(one is not None for one in found) <= 3


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return predictions(5_000, seed)


def test_order_and_directions_stay() -> None:
    rng = np.random.default_rng(3)
    kappa = np.exp(rng.uniform(-2, 6, 5_000))
    # the surer the event, the farther off: the parts ask for the opposite order
    cosine = np.interp(np.log(kappa), [-2, 6], [0.9, -0.5])
    found = fit_kappa_map(kappa, cosine)
    assert found is not None
    assert np.all(np.diff(rescaled(found, np.sort(kappa))) > 0)
    vector = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    direction = torch.nn.functional.normalize(found.rescaled(vector), dim=-1)
    torch.testing.assert_close(direction, torch.nn.functional.normalize(vector, dim=-1))
    assert found.rescaled(vector).dtype == torch.float32


def test_few_events_or_a_single_kappa_give_no_nonsense() -> None:
    kappa, angle = predictions(400, seed=4)
    assert fit_kappa_map(boastful(kappa), np.cos(angle)) is None
    one = fit_kappa_map(np.full(5_000, 3.0), np.full(5_000, 0.2))
    assert one is None or rescaled(one, np.array([3.0]))[0] < 3.0
    assert fit_kappa_map(np.zeros(5_000), np.full(5_000, 0.2)) is None


def test_what_is_zero_or_not_a_number_stays_so() -> None:
    found = KappaMap(log_kappa=(0.0, 1.0), log_factor=(0.5, 0.2))
    vector = torch.tensor([[0.0, 0.0, 0.0], [torch.nan, 0.0, 1.0], [0.0, 2.0, 0.0]])
    told = found.rescaled(vector)
    assert not told[0].any()
    assert told[1].isnan().any()
    expected = 2 * np.exp(0.5 - 0.3 * np.log(2))
    assert float(told[2, 1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("log_kappa", "log_factor", "words"),
    [
        ([], [], "0 knots"),
        ([0.0, 1.0], [0.0], "2 knots and 1 factors"),
        ([1.0, 0.0], [0.0, 0.0], "does not rise"),
        ([0.0, 1.0], [2.0, 0.5], "does not rise"),
        ([0.0], [9.0], "beyond"),
        ([0.0], [float("nan")], "finite"),
    ],
)
def test_map_that_is_none_is_refused(log_kappa, log_factor, words) -> None:
    with pytest.raises(ValidationError, match=words):
        KappaMap(log_kappa=log_kappa, log_factor=log_factor)
