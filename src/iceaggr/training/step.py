"""One optimiser step: forward, loss, backward, guard, clip, step, guard, average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ExperimentConfig
from iceaggr.losses import direction_loss
from iceaggr.models import DirectionModel
from iceaggr.training.averaging import AveragedWeights
from iceaggr.training.device import LoadedBatch, autocast
from iceaggr.training.distributed import Processes
from iceaggr.training.guards import GradientNorms, TakenStep, check_kept, check_step
from iceaggr.training.optimizer import build_optimizer, optimizer_tensors, set_learning_rate


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
        self.optimizer = build_optimizer(self.model, config.training)
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
        check_kept(self._kept | optimizer_tensors(self.optimizer, self.model), where)

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
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
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
            # the fused optimiser reads this on the device, so that nothing waits here
            is_finite = torch.isfinite(event_loss.sum() + gradients.total)
            self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        else:
            check_step(event_loss, gradients, batch.event_id, self.model, where)
        torch.nn.utils.clip_grads_with_norm_(
            self._parameters, self.config.training.max_gradient_norm, gradients.total
        )
        self.optimizer.step()
