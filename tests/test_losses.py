import math
from typing import Any

import numpy as np
import pytest
import torch

from iceaggr.angles import opening_angle
from iceaggr.config import LossConfig
from iceaggr.losses import angle_loss, direction_loss, loss_of_ignorance, von_mises_fisher_loss
from iceaggr.models import DirectionOutput

KAPPAS = (1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 8e4)


def random_units(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)


def series_langevin(kappa: float) -> float:
    """coth k - 1/k in extended precision, by its series where the difference cancels."""
    if kappa < 0.1:
        return kappa / 3 - kappa**3 / 45 + 2 * kappa**5 / 945
    k = np.longdouble(kappa)
    return float(1 / np.tanh(k) - 1 / k)


def log_norm(kappa: float) -> float:
    """log of 4 pi sinh k / k: by series for small k, else without overflow."""
    if kappa < 0.1:
        return math.log(4 * math.pi) + kappa**2 / 6 - kappa**4 / 180 + kappa**6 / 2835
    k = np.longdouble(kappa)
    return float(np.log(2 * np.longdouble(np.pi)) + k + np.log1p(-np.exp(-2 * k)) - np.log(k))


@pytest.mark.parametrize("kappa", KAPPAS)
def test_von_mises_fisher_value_matches_the_closed_form(kappa: float) -> None:
    true, predicted = random_units(50, 1), random_units(50, 2)
    vector = kappa * predicted
    length = torch.linalg.vector_norm(vector.double(), dim=-1)
    expected = [log_norm(float(k)) for k in length]
    expected = torch.tensor(expected) - (vector.double() * true.double()).sum(-1)
    torch.testing.assert_close(
        von_mises_fisher_loss(vector, true).double(), expected, rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("kappa", KAPPAS)
def test_von_mises_fisher_gradient_matches_the_closed_form(kappa: float) -> None:
    true, predicted = random_units(50, 3), random_units(50, 4)
    vector = (kappa * predicted).requires_grad_()
    von_mises_fisher_loss(vector, true).sum().backward()
    unit = torch.nn.functional.normalize(vector.detach().double(), dim=-1)
    expected = series_langevin(kappa) * unit - true.double()
    assert vector.grad is not None
    torch.testing.assert_close(vector.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_von_mises_fisher_gradient_with_kappa_alone_is_exact_when_kappa_is_tiny() -> None:
    # across the true direction only the normalisation pulls: k / 3, lost by a float32 closed form
    vector = torch.tensor([[1e-4, 0.0, 0.0]], requires_grad=True)
    von_mises_fisher_loss(vector, torch.tensor([[0.0, 0.0, 1.0]])).sum().backward()
    assert vector.grad is not None
    assert float(vector.grad[0, 0]) == pytest.approx(1e-4 / 3, rel=1e-3)


def test_von_mises_fisher_is_normalised_on_the_sphere() -> None:
    cosine = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    ring = torch.stack([(1 - cosine**2).sqrt(), torch.zeros_like(cosine), cosine], dim=-1)
    for kappa in (0.01, 1.0, 20.0):
        loss = von_mises_fisher_loss(torch.tensor([[0.0, 0.0, kappa]]).expand(20_001, 3), ring)
        total = 2 * math.pi * torch.trapezoid((-loss.double()).exp(), cosine)
        assert float(total) == pytest.approx(1.0, abs=1e-4)


def test_losses_stay_finite_when_vector_is_zero() -> None:
    true = torch.tensor([[0.0, 0.0, 1.0]])
    for loss in (angle_loss, von_mises_fisher_loss):
        vector = torch.zeros(1, 3, requires_grad=True)
        value = loss(vector, true)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert vector.grad is not None
        assert torch.isfinite(vector.grad).all()


def test_angle_loss_equals_the_opening_angle() -> None:
    predicted, true = random_units(200, 5), random_units(200, 6)
    torch.testing.assert_close(
        angle_loss(7.5 * predicted, true), opening_angle(predicted, true), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-4, 1.0, math.pi - 1e-4, math.pi])
def test_angle_gradient_has_at_most_unit_length(angle: float) -> None:
    vector = torch.tensor([[math.sin(angle), 0.0, math.cos(angle)]], requires_grad=True)
    angle_loss(vector, torch.tensor([[0.0, 0.0, 1.0]])).sum().backward()
    assert vector.grad is not None
    length = float(torch.linalg.vector_norm(vector.grad))
    assert length <= 1 + 1e-5
    if 1e-4 <= angle <= math.pi - 1e-4:
        assert length == pytest.approx(1.0, abs=1e-3)


def test_direction_loss_changes_from_likelihood_to_angle_at_the_configured_progress() -> None:
    config = LossConfig(
        kind="von_mises_fisher_then_angle", angle_from_progress=0.6, likelihood_share=0.25
    )
    output, true = DirectionOutput(3 * random_units(20, 7)), random_units(20, 8)
    likelihood = von_mises_fisher_loss(output.vector, true)
    angle = angle_loss(output.vector, true)
    torch.testing.assert_close(direction_loss(output, true, config, 0.59), likelihood)
    torch.testing.assert_close(direction_loss(output, true, config, 0.6), angle + 0.25 * likelihood)


@pytest.mark.parametrize(
    ("kind", "loss"), [("angle", angle_loss), ("von_mises_fisher", von_mises_fisher_loss)]
)
def test_direction_loss_uses_the_configured_kind(kind: str, loss) -> None:
    output, true = DirectionOutput(3 * random_units(20, 7)), random_units(20, 8)
    config = LossConfig.model_validate({"kind": kind})
    torch.testing.assert_close(direction_loss(output, true, config, 1.0), loss(output.vector, true))


def test_direction_loss_refuses_progress_outside_the_run() -> None:
    output, true = DirectionOutput(random_units(2, 7)), random_units(2, 8)
    with pytest.raises(ValueError, match=r"progress is 1.5"):
        direction_loss(output, true, LossConfig(), 1.5)


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("angle", 0.5, math.pi / 2),
        ("von_mises_fisher", 0.9, math.log(4 * math.pi)),
        ("von_mises_fisher_then_angle", 0.1, math.log(4 * math.pi)),
        ("von_mises_fisher_then_angle", 0.9, math.pi / 2 + 0.3 * math.log(4 * math.pi)),
    ],
)
def test_loss_of_ignorance_is_that_of_kappa_zero(
    kind: Any, progress: float, expected: float
) -> None:
    config = LossConfig(kind=kind, likelihood_share=0.3)
    assert loss_of_ignorance(config, progress) == pytest.approx(expected)
    # directions at a right angle, the mean of all, with next to no confidence
    vector, true = torch.tensor([[1e-5, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    found = direction_loss(DirectionOutput(vector), true, config, progress)
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_direction_of_a_vector_that_is_not_finite_is_not_a_direction() -> None:
    vector = torch.tensor([[float("nan"), 0.0, 1.0], [float("inf"), 0.0, 0.0], [0.0, 0.0, 0.0]])
    direction = DirectionOutput(vector).direction
    assert not torch.isfinite(direction[:2]).all(dim=-1).any()
    assert torch.equal(direction[2], torch.tensor([0.0, 0.0, 1.0]))
