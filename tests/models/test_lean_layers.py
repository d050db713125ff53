from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from iceaggr.models.lean_layers import (
    Dropout,
    draw_kept,
    normed_feedforward,
    normed_linear,
    runs_lean,
)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 999)
    y = Dropout(share)(x)
    assert float((y == 0).float().mean()) == pytest.approx(share, abs=0.003)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    # neighbours are independent: the lanes of one draw must not be linked
    both = ((y[:, 1:] == 0) & (y[:, :-1] == 0)).float().mean()
    assert float(both) == pytest.approx(share**2, abs=0.005)


def test_dropout_gradient_uses_the_same_mask() -> None:
    x = torch.ones(40, 50, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_follows_the_generator_and_rests_in_evaluation() -> None:
    layer, x = Dropout(0.4), torch.randn(30, 7)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x


def built() -> tuple[torch.Tensor, nn.LayerNorm, nn.Linear, nn.Linear]:
    torch.manual_seed(3)
    norm, into, out = nn.LayerNorm(4).double(), nn.Linear(4, 16).double(), nn.Linear(16, 4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return torch.randn(9, 4, dtype=torch.float64, requires_grad=True), norm, into, out


def plain_feedforward(
    x: torch.Tensor, norm: nn.LayerNorm, into: nn.Linear, out: nn.Linear, dropout: float
) -> torch.Tensor:
    hidden = functional.gelu(into(norm(x)))
    if dropout:
        kept, scale = draw_kept(hidden.shape, dropout)
        hidden = hidden * kept * scale
    result: torch.Tensor = out(hidden)
    return result


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_normed_feedforward_equals_the_plain_network_with_all_gradients(dropout: float) -> None:
    x, *modules = built()
    leaves = [x, *(parameter for module in modules for parameter in module.parameters())]
    weights = torch.randn(9, 4, dtype=torch.float64)
    results = []
    for network in (plain_feedforward, normed_feedforward):
        torch.manual_seed(8)
        y = network(x, *modules, dropout)
        results.append([y, *torch.autograd.grad((y * weights).sum(), leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_normed_linear_equals_the_plain_layers_with_all_gradients() -> None:
    x, norm, linear, _ = built()
    leaves = [x, *norm.parameters(), *linear.parameters()]
    weights = torch.randn(9, 16, dtype=torch.float64)
    results = []
    for y in (linear(norm(x)), normed_linear(x, norm, linear)):
        results.append([y, *torch.autograd.grad((y * weights).sum(), leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def kept_bytes(compute: Callable[[], torch.Tensor]) -> list[int]:
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()
    assert result.requires_grad
    return [tensor.nbytes for tensor in kept.values()]


def test_normed_feedforward_keeps_one_wide_tensor_and_nothing_normed() -> None:
    x, norm, into, out = built()
    kept = kept_bytes(lambda: normed_feedforward(x, norm, into, out, 0.0))
    narrow, wide = 9 * 4 * 8, 9 * 16 * 8
    assert kept.count(wide) == 1
    assert max(kept) == wide
    assert kept.count(narrow) == 1


def test_normed_linear_keeps_nothing_normed() -> None:
    x, norm, linear, _ = built()
    narrow = 9 * 4 * 8
    assert kept_bytes(lambda: normed_linear(x, norm, linear)).count(narrow) == 1
    assert kept_bytes(lambda: linear(norm(x))).count(narrow) == 2


def test_runs_lean_refuses_autocast() -> None:
    x = torch.zeros(2, 4)
    assert runs_lean(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not runs_lean(x)
