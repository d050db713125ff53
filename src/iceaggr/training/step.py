"""One optimiser step: forward, loss, backward, guard, clip, step, guard, average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ExperimentConfig, TrainingConfig
from iceaggr.losses import direction_loss
from iceaggr.models import DirectionModel
from iceaggr.training.device import LoadedBatch, Processes, autocast
from iceaggr.training.guards import GradientNorms, TakenStep, check_kept, check_step

# The optimisers of a model: AdamW for everything, or Muon for the matrices inside the network.
#
# A gradient of a matrix is mostly a few large directions, and a step along it teaches little else.
# Muon takes all directions of the step alike. On simulated events it reaches in 300 steps what
# AdamW reaches in 600 (docs/LOG.md).

MIN_MATRIX_SIDE = 16
"""Matrices with a shorter side are readouts, of few directions: they stay with AdamW."""
MATRIX_RATE = 10 / 3
"""Learning rate of Muon, in units of the configured one."""
MOMENTUM = 0.95
N_NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients a, b, c of X <- a X + b (X X^T) X + c (X X^T)^2 X. Source: as for `Muon`."""


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of each matrix, Nesterov's way.

    Where `found_inf`, a () tensor of the device, is set and not zero, nothing changes, as with
    fused AdamW. Source: K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural
    networks", weight decay as in AdamW.
    """

    found_inf: Tensor | None = None

    def __init__(self, matrices: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient; only from a sound gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, matrix.grad, group["lr"], group["weight_decay"])

    def _move(self, matrix: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].lerp(gradient, 1 - MOMENTUM)
        step = orthogonalised(gradient.lerp(momentum, MOMENTUM))
        # a tall matrix has more rows than directions
        rate = lr * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        moved = matrix * (1 - lr * weight_decay) - rate * step
        if self.found_inf is not None:
            is_sound = self.found_inf == 0
            momentum = torch.where(is_sound, momentum, state["momentum"])
            moved = torch.where(is_sound, moved, matrix)
        state["momentum"].copy_(momentum)
        matrix.copy_(moved)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix (R, C) near one, between 0.7 and 1.2.

    Source: Newton-Schulz iteration with the coefficients of Muon, in float32.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.float() / (torch.linalg.matrix_norm(wide.float()) + 1e-7)
    for _ in range(N_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


Optimizers = tuple[torch.optim.Optimizer, ...]


def build_optimizers(model: nn.Module, config: TrainingConfig) -> Optimizers:
    """Build AdamW, and Muon if configured, with weight decay on matrices only.

    Decay pulls biases and norm scales towards zero for no gain, so vectors are left out.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    inner: list[nn.Parameter] = []
    if config.optimizer == "muon":
        inner = [p for p in parameters if p.ndim == 2 and min(p.shape) >= MIN_MATRIX_SIDE]
    taken = {id(p) for p in inner}
    others = [p for p in parameters if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    on_gpu = any(p.is_cuda for p in parameters)
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        fused=on_gpu,
    )
    if not inner:
        return (adamw,)
    return adamw, Muon(inner, MATRIX_RATE * config.learning_rate, config.weight_decay)


def set_learning_rate(optimizers: Optimizers, learning_rate: float) -> None:
    """Set the learning rate of every group: the configured one, and Muon's in units of it."""
    for optimizer in optimizers:
        factor = MATRIX_RATE if isinstance(optimizer, Muon) else 1.0
        for group in optimizer.param_groups:
            group["lr"] = factor * learning_rate


def optimizer_tensors(optimizers: Optimizers, model: nn.Module) -> dict[str, Tensor]:
    """List the optimisers' state as tensors named "<quantity>/<parameter>"."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{quantity}/{names[parameter]}": value
        for optimizer in optimizers
        for parameter, quantities in optimizer.state.items()
        for quantity, value in quantities.items()
    }


def restore_optimizers(
    optimizers: Optimizers, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Put tensors of `optimizer_tensors` back.

    Raises: KeyError if a tensor belongs to no parameter of the model.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    place: dict[str, tuple[int, int]] = {}
    for number, optimizer in enumerate(optimizers):
        ordered = [p for group in optimizer.param_groups for p in group["params"]]
        place |= {names[parameter]: (number, row) for row, parameter in enumerate(ordered)}
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        quantity, _, name = key.partition("/")
        number, row = place[name]
        states[number].setdefault(row, {})[quantity] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


# Exponential moving average of the weights.


class AveragedWeights:
    """Averages the parameters over the steps; validated and saved instead of the last ones.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the average
    forgets the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, n_updates: int) -> None:
        """Move the average towards the present weights."""
        decay = min(self.decay, (1 + n_updates) / (10 + n_updates))
        present = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.tensors.values()), present, 1 - decay)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over stored averages. Raises: KeyError if they are of another model."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Run a block with the averaged weights in the model, then put the present ones back."""
        parameters = dict(model.named_parameters())
        present = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._copy(self.tensors, parameters)
        try:
            yield
        finally:
            self._copy(present, parameters)

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict[str, Tensor], target: dict[str, nn.Parameter]) -> None:
        for name, parameter in target.items():
            parameter.copy_(source[name])


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves for the curves.

    event_loss: (B,).  vector: (B, 3) predicted.  gradient_norm: () before clipping
    """

    event_loss: Tensor
    vector: Tensor
    gradient_norm: Tensor


class OptimiserStep:
    """Holds model, optimiser and average, and takes steps."""

    def __init__(
        self,
        model: DirectionModel,
        config: ExperimentConfig,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.model = model.to(device)
        self.config = config
        self.device = device
        self.processes = processes
        self.optimizers = build_optimizers(self.model, config.training)
        decay = config.training.ema_decay
        self.average = AveragedWeights(self.model, decay) if decay else None
        self._parallel_model = processes.wrap(self.model, device)
        self._last: TakenStep | None = None
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._kept = {name: value.detach() for name, value in self.model.state_dict().items()}
        if self.average is not None:
            self._kept |= {f"average/{name}": t for name, t in self.average.tensors.items()}

    @contextmanager
    def best_weights(self) -> Iterator[DirectionModel]:
        """Give the model with the weights that are validated and saved: the averaged ones."""
        if self.average is None:
            yield self.model
        else:
            with self.average.applied(self.model):
                yield self.model

    def check_last(self) -> None:
        """Check what the last step left, before it is used again or written anywhere.

        Not at the end of the step itself: by now the device has long computed the answer.
        Raises: TrainingError naming that step, its events and the spoiled tensors.
        """
        last, self._last = self._last, None
        if last is not None:
            last.check(self.model)

    def check_kept(self, where: str) -> None:
        """Check all that is validated or written: weights, buffers, average, optimiser's moments.

        Raises: TrainingError naming the tensors that are not finite.
        """
        self.check_last()
        check_kept(self._kept | optimizer_tensors(self.optimizers, self.model), where)

    def take(
        self,
        loaded: LoadedBatch,
        step: int,
        progress: float,
        learning_rate: float,
        n_events: int,
    ) -> StepOutcome:
        """Take step number `step` (from 1) on a labelled batch.

        n_events: events of this step over all processes; the loss is the mean over all of them.
        Raises: TrainingError, before any weight has changed, if loss or gradient is not finite, or
        if the step before has spoiled the weights. A GPU leaves the weights alone by itself, and
        the error is raised a step later, when the answer has arrived.
        """
        where = f"step {step}"
        batch = loaded.placed
        set_learning_rate(self.optimizers, learning_rate)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        assert batch.direction is not None, "check_batch lets only labelled events pass"
        with autocast(self.device, self.config.training):
            output = self._parallel_model(batch, loaded.features)
            event_loss = direction_loss(output, batch.direction, self.config.loss, progress)
        # gradients are averaged over the processes, so each one weighs in with its share of events
        scale = self.processes.world_size / n_events
        (event_loss.sum() * scale).backward()
        gradients = GradientNorms.of(self.model)
        self._step_if_finite(event_loss.detach(), gradients, batch, where)
        if self.average is not None:
            self.average.update(self.model, step)
        self._last = TakenStep.of(self._kept, batch, event_loss.detach(), gradients, where)
        return StepOutcome(event_loss.detach(), output.vector.detach(), gradients.total)

    def _step_if_finite(
        self, event_loss: Tensor, gradients: GradientNorms, batch: EventBatch, where: str
    ) -> None:
        self.check_last()
        if self.device.type == "cuda":
            # the optimisers read this on the device, so that nothing waits here
            is_finite = torch.isfinite(event_loss.sum() + gradients.total)
            for optimizer in self.optimizers:
                optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        else:
            check_step(event_loss, gradients, batch.event_id, self.model, where)
        torch.nn.utils.clip_grads_with_norm_(
            self._parameters, self.config.training.max_gradient_norm, gradients.total
        )
        for optimizer in self.optimizers:
            optimizer.step()
