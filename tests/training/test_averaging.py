from __future__ import annotations

import torch
from torch import nn

from iceaggr.training.averaging import AveragedWeights


def set_weights(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_average_follows_the_recursion() -> None:
    model = nn.Linear(2, 2)
    set_weights(model, 0.0)
    average = AveragedWeights(model, decay=0.5)
    expected = 0.0
    for n_updates, value in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0), start=1):
        set_weights(model, value)
        average.update(model, n_updates)
        decay = min(0.5, (1 + n_updates) / (10 + n_updates))
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(average.tensors["weight"], torch.full((2, 2), expected))


def test_average_is_applied_within_the_block_only() -> None:
    model = nn.Linear(2, 2)
    set_weights(model, 1.0)
    average = AveragedWeights(model, decay=0.5)
    set_weights(model, 3.0)
    with average.applied(model):
        assert torch.equal(model.weight, torch.ones(2, 2))
    assert torch.equal(model.weight, torch.full((2, 2), 3.0))
    assert torch.equal(average.tensors["weight"], torch.ones(2, 2))
