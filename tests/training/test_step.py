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
    MATRIX_RATE,
    AveragedWeights,
    Muon,
    OptimiserStep,
    Optimizers,
    build_optimizers,
    optimizer_tensors,
    orthogonalised,
    restore_optimizers,
    set_learning_rate,
)
from tests.batches.batch_builder import random_event_batch


def step(model: nn.Module, optimizers: Optimizers) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    n_inputs = next(model.parameters()).shape[1]
    model(torch.ones(5, n_inputs)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def wide_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.LayerNorm(24), nn.Linear(24, 2))


BOTH = pytest.mark.parametrize("kind", ["adamw", "muon"])


@BOTH
def test_only_matrices_are_decayed(kind: str) -> None:
    model = wide_network()
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5, optimizer=kind)
    optimizers = build_optimizers(model, config)
    assert len(optimizers) == (2 if kind == "muon" else 1)
    set_learning_rate(optimizers, 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.1 * MATRIX_RATE if kind == "muon" and name == "0.weight" else 0.1
        kept = 1 - rate * 0.5 if parameter.ndim >= 2 else 1.0
        assert torch.allclose(parameter, before[name] * kept), name


@BOTH
def test_restored_optimizer_takes_the_same_steps(kind: str) -> None:
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5, optimizer=kind)
    model = wide_network()
    optimizers = build_optimizers(model, config)
    step(model, optimizers)
    tensors = {k: t.clone() for k, t in optimizer_tensors(optimizers, model).items()}
    weights = {k: t.clone() for k, t in model.state_dict().items()}
    step(model, optimizers)

    other = wide_network()
    other.load_state_dict(weights)
    restored = build_optimizers(other, config)
    restore_optimizers(restored, other, tensors)
    step(other, restored)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@BOTH
def test_optimizer_refuses_the_state_of_another_model(kind: str) -> None:
    model = wide_network()
    optimizers = build_optimizers(model, TrainingConfig(optimizer=kind))
    with pytest.raises(KeyError, match="unknown"):
        restore_optimizers(optimizers, model, {"step/unknown": torch.ones(())})


@pytest.mark.parametrize("shape", [(24, 24), (20, 60), (60, 20)])
def test_orthogonalised_keeps_the_directions_and_levels_their_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    sizes = torch.logspace(0, -1.5, min(shape))
    found = orthogonalised(left @ torch.diag(sizes) @ right)
    along = left.T @ found @ right.T
    levelled = along.diagonal()
    assert float(levelled.min()) > 0.6
    assert float(levelled.max()) < 1.3
    assert float((along - torch.diag(levelled)).abs().max()) < 1e-3


def test_muon_leaves_all_alone_where_the_gradient_is_not_finite() -> None:
    matrix = nn.Parameter(torch.randn(20, 20))
    muon = Muon([matrix], lr=0.1, weight_decay=0.1)
    matrix.grad = torch.ones(20, 20)
    muon.found_inf = torch.zeros(())
    muon.step()
    before, momentum = matrix.detach().clone(), muon.state[matrix]["momentum"].clone()
    matrix.grad = torch.full((20, 20), torch.nan)
    muon.found_inf = torch.ones(())
    muon.step()
    assert torch.equal(matrix, before)
    assert torch.equal(muon.state[matrix]["momentum"], momentum)


def test_muon_is_the_step_of_torch_in_another_precision() -> None:
    torch.manual_seed(3)
    ours, theirs = (nn.Parameter(torch.ones(32, 16)) for _ in range(2))
    muon = Muon([ours], lr=0.05, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.95)
    for _ in range(4):
        ours.grad = torch.randn(32, 16)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
    # theirs orthogonalises in sixteen bits
    torch.testing.assert_close(ours, theirs, atol=0.004, rtol=0)


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
