from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from iceaggr.models.dropout import draw_kept
from iceaggr.models.feedforward import lean_feedforward, runs_lean


def built() -> tuple[torch.Tensor, nn.Linear, nn.Linear]:
    torch.manual_seed(3)
    into, out = nn.Linear(4, 16).double(), nn.Linear(16, 4).double()
    return torch.randn(9, 4, dtype=torch.float64, requires_grad=True), into, out


def plain(x: torch.Tensor, into: nn.Linear, out: nn.Linear, dropout: float) -> torch.Tensor:
    hidden = functional.gelu(into(x))
    if dropout:
        kept, scale = draw_kept(hidden.shape, dropout)
        hidden = hidden * kept * scale
    result: torch.Tensor = out(hidden)
    return result


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_lean_feedforward_equals_the_plain_network_with_all_gradients(dropout: float) -> None:
    x, into, out = built()
    leaves = [x, *into.parameters(), *out.parameters()]
    weights = torch.randn(9, 4, dtype=torch.float64)
    results = []
    for network in (plain, lean_feedforward):
        torch.manual_seed(8)
        y = network(x, into, out, dropout)
        results.append([y, *torch.autograd.grad((y * weights).sum(), leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_lean_feedforward_keeps_one_wide_tensor() -> None:
    x, into, out = built()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) or t, lambda t: t
    ):
        lean_feedforward(x, into, out, 0.0)
    wide = 9 * 16 * 8
    assert kept.count(wide) == 1
    assert max(kept) == wide


def test_runs_lean_refuses_autocast() -> None:
    x = torch.zeros(2, 4)
    assert runs_lean(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not runs_lean(x)
