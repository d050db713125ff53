from __future__ import annotations

import pytest
import torch
from torch import nn

from iceaggr.config import TrainingConfig
from iceaggr.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer

CONFIG = TrainingConfig(learning_rate=0.1, weight_decay=0.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()


def test_only_matrices_are_decayed() -> None:
    model = network()
    optimizer = build_optimizer(model, CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        assert torch.allclose(parameter, before[name] * kept), name


def test_restored_optimizer_takes_the_same_steps() -> None:
    model = network()
    optimizer = build_optimizer(model, CONFIG)
    step(model, optimizer)
    tensors = {k: t.clone() for k, t in optimizer_tensors(optimizer, model).items()}
    weights = {k: t.clone() for k, t in model.state_dict().items()}
    step(model, optimizer)

    other = network()
    other.load_state_dict(weights)
    restored = build_optimizer(other, CONFIG)
    restore_optimizer(restored, other, tensors)
    step(other, restored)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_optimizer_refuses_the_state_of_another_model() -> None:
    model = network()
    with pytest.raises(KeyError, match="unknown"):
        restore_optimizer(build_optimizer(model, CONFIG), model, {"step/unknown": torch.ones(())})
