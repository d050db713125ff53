from __future__ import annotations

import pytest
import torch
from torch import nn

from iceaggr.config import ExperimentConfig, ModelConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import build_model
from iceaggr.normalization_document import Normalization
from iceaggr.training.device import LoadedBatch, Processes, compile_for
from iceaggr.training.step import (
    AveragedWeights,
    OptimiserStep,
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
)
from tests.batches.batch_builder import random_event_batch

ADAMW = TrainingConfig(learning_rate=0.1, weight_decay=0.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()


def test_only_matrices_are_decayed() -> None:
    model = network()
    optimizer = build_optimizer(model, ADAMW)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        assert torch.allclose(parameter, before[name] * kept), name


def test_restored_optimizer_takes_the_same_steps() -> None:
    model = network()
    optimizer = build_optimizer(model, ADAMW)
    step(model, optimizer)
    tensors = {k: t.clone() for k, t in optimizer_tensors(optimizer, model).items()}
    weights = {k: t.clone() for k, t in model.state_dict().items()}
    step(model, optimizer)

    other = network()
    other.load_state_dict(weights)
    restored = build_optimizer(other, ADAMW)
    restore_optimizer(restored, other, tensors)
    step(other, restored)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_optimizer_refuses_the_state_of_another_model() -> None:
    model = network()
    with pytest.raises(KeyError, match="unknown"):
        restore_optimizer(build_optimizer(model, ADAMW), model, {"step/unknown": torch.ones(())})


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


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BAD_GRADIENT = r"gradient is not finite \[step 2\].*found head.out.bias"
CONFIG = ExperimentConfig(
    model=ModelConfig(d_model=64, n_heads=4, n_dom_layers=1, n_event_layers=1, dropout=0.0),
    training=TrainingConfig(ema_decay=0.9),
)


def stepper(device: str) -> OptimiserStep:
    torch.manual_seed(1)
    model = build_model(CONFIG.model, Normalization.seed()).train()
    compile_for(model, torch.device(device), CONFIG.training)
    return OptimiserStep(model, CONFIG, torch.device(device), Processes())


def loaded(device: str) -> LoadedBatch:
    batch = random_event_batch(16, seed=2)
    return LoadedBatch(batch, batch.to(device), {})


def spoil_next_gradient(step: OptimiserStep) -> None:
    step.model.head.out.bias.register_hook(lambda gradient: gradient * float("nan"))


def weights(step: OptimiserStep) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in step.model.parameters()]


@pytest.mark.gpu
@needs_gpu
def test_gpu_leaves_the_weights_alone_and_names_the_gradient_a_step_later() -> None:
    step, batch = stepper("cuda"), loaded("cuda")
    step.take(batch, 1, 0.0, 1e-3, 16)
    before = weights(step)
    spoil_next_gradient(step)
    step.take(batch, 2, 0.0, 1e-3, 16)
    assert all(torch.equal(a, b) for a, b in zip(weights(step), before, strict=True))
    with pytest.raises(TrainingError, match=BAD_GRADIENT):
        step.check_last()


@pytest.mark.gpu
@needs_gpu
def test_gpu_takes_the_steps_of_the_cpu() -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        step, batch = stepper(device), loaded(device)
        step.config = CONFIG.model_copy(
            update={"training": CONFIG.training.model_copy(update={"precision": "float32"})}
        )
        outcomes = [step.take(batch, k + 1, 0.0, 1e-3, 16) for k in range(5)]
        step.check_last()
        losses[device] = torch.stack([one.event_loss.mean().cpu() for one in outcomes])
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-3, atol=1e-4)


def test_cpu_names_a_bad_gradient_before_the_weights_change() -> None:
    step, batch = stepper("cpu"), loaded("cpu")
    step.take(batch, 1, 0.0, 1e-3, 16)
    before = weights(step)
    spoil_next_gradient(step)
    with pytest.raises(TrainingError, match=BAD_GRADIENT):
        step.take(batch, 2, 0.0, 1e-3, 16)
    assert all(torch.equal(a, b) for a, b in zip(weights(step), before, strict=True))
