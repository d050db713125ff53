from __future__ import annotations

import pytest
import torch

from iceaggr.config import ExperimentConfig, ModelConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.models import build_model
from iceaggr.normalization import Normalization
from iceaggr.training.compilation import compile_for
from iceaggr.training.device import LoadedBatch
from iceaggr.training.distributed import Processes
from iceaggr.training.step import OptimiserStep
from tests.batches.batch_builder import random_event_batch

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
