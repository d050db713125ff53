"""Guards: nothing that is not finite reaches the weights, and a run that learns nothing is seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import NormalizationConfig, TrainingConfig
from iceaggr.errors import NormalizationError, TrainingError
from iceaggr.normalization import check_inputs

if TYPE_CHECKING:
    from iceaggr.training.validation import ValidationResult

N_NAMED = 10
"""Event ids or parameters that an error lists."""


def check_batch(
    batch: EventBatch, normalizer: nn.Module, config: NormalizationConfig, where: str
) -> None:
    """Refuse a batch before it reaches the model.

    Raises: TrainingError naming event ids if an input is not finite, too many inputs are badly
    scaled, or a label is missing or not a unit vector.
    """
    try:
        check_inputs(normalizer(batch), batch, config)
    except NormalizationError as error:
        raise TrainingError(
            "batch refused before the model",
            where=where,
            found=str(error),
            expected="finite, normalised inputs",
            remedy="Look at these events, or fit the normalisation to this data",
        ) from error
    if batch.direction is None:
        raise TrainingError(
            "batch without labels",
            where=where,
            found=_events(batch.event_id),
            expected="labelled events",
            remedy="Train and validate on data with a meta file that holds azimuth and zenith",
        )
    off = (batch.direction.norm(dim=-1) - 1).abs()
    bad = ~(off < 1e-3)
    if bad.any():
        raise TrainingError(
            "label is not a unit vector",
            where=where,
            found=_events(batch.event_id[bad]),
            expected="azimuth and zenith of every event",
            remedy="Check the meta file of these events",
        )


@dataclass(frozen=True)
class GradientNorms:
    """The norm of each parameter's gradient before clipping. norms: (P,) float, on the device."""

    names: tuple[str, ...]
    norms: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> GradientNorms:
        """Measure the gradients that a model holds."""
        named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        norms = torch._foreach_norm([gradient for _, gradient in named])
        return cls(tuple(name for name, _ in named), torch.stack(norms))

    @cached_property
    def total(self) -> Tensor:
        """Measure all gradients together: ()."""
        return torch.linalg.vector_norm(self.norms)


def check_step(
    event_loss: Tensor, gradients: GradientNorms, event_id: Tensor, model: nn.Module, where: str
) -> None:
    """Refuse an optimiser step that would spoil the weights; waits for the device once.

    event_loss: (B,) loss per event.  event_id: (B,).
    Raises: TrainingError naming the events, and the parameters that are not finite.
    """
    if bool(torch.isfinite(event_loss.sum() + gradients.total)):
        return
    spoiled = _not_finite((name, p.detach()) for name, p in model.named_parameters())
    bad_events = ~torch.isfinite(event_loss)
    if spoiled:
        what, found = "a weight is not finite", f"{spoiled}; {_events(event_id)}"
    elif bad_events.any():
        what = "the loss is not finite"
        found = f"{int(bad_events.sum())} of {len(bad_events)} events, "
        found += _events(event_id[bad_events])
    else:
        names = _not_finite(zip(gradients.names, gradients.norms, strict=True))
        what = "a gradient is not finite"
        found = f"{names or 'their norm overflows'}; {_events(event_id)}"
    raise TrainingError(
        what,
        where=where,
        found=found,
        expected="finite numbers before the optimiser steps",
        remedy="The last good checkpoint is kept; look at these events or lower the learning rate",
    )


@dataclass(frozen=True)
class TakenStep:
    """What a step left, to be looked at when the next one is under way: looking waits.

    numbers: (3,) on the host: sum of the loss, norm of all gradients, of all weights
    arrived: when a GPU has sent them, or None on a CPU
    """

    event_loss: Tensor
    gradients: GradientNorms
    event_id: Tensor
    where: str
    numbers: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batch: EventBatch,
        event_loss: Tensor,
        gradients: GradientNorms,
        where: str,
    ) -> TakenStep:
        """Note what a step on a batch left behind, without waiting for it."""
        weights = torch.stack(torch._foreach_norm([p.detach() for p in model.parameters()]))
        numbers = torch.stack(
            [event_loss.sum(), gradients.total, torch.linalg.vector_norm(weights)]
        )
        arrived = None
        if numbers.is_cuda:
            # the event lies before the next step, so that only this one is waited for
            numbers = torch.empty_like(numbers, device="cpu").pin_memory().copy_(numbers, True)
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(event_loss, gradients, batch.event_id, where, numbers, arrived)

    def check(self, model: nn.Module) -> None:
        """Look. Raises: TrainingError naming the events, and the parameters that are spoiled."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if bool(torch.isfinite(self.numbers).all()):
            return
        check_step(self.event_loss, self.gradients, self.event_id, model, self.where)
        names = _not_finite((name, p.detach()) for name, p in model.named_parameters())
        raise TrainingError(
            "the optimiser step spoiled the weights",
            where=self.where,
            found=f"{names or 'their norm overflows'}; {_events(self.event_id)}",
            expected="finite weights",
            remedy="The last good checkpoint is kept; lower the learning rate",
        )


def learning_problem(result: ValidationResult, config: TrainingConfig) -> str:
    """Say what is wrong with a validation in words; empty when the model learns.

    Learning means a smaller mean opening angle than the best constant on the same events, by more
    than two standard errors of the difference event by event.
    """
    if result.mean_vector_length > config.max_mean_vector_length:
        return (
            f"predictions have collapsed to one direction: their mean vector has length "
            f"{result.mean_vector_length:.3f}, more than {config.max_mean_vector_length:g}"
        )
    if not result.gain_deg > 2 * result.gain_error_deg:
        return (
            f"no better than the best constant prediction: {result.opening_angle_deg:.2f} against "
            f"{result.constant_opening_angle_deg:.2f} degrees, gain {result.gain_deg:.2f} "
            f"+- {result.gain_error_deg:.2f}"
        )
    return ""


def check_learning_goes_on(result: ValidationResult, config: TrainingConfig, step: int) -> str:
    """Stop a run that does not learn, when so configured; returns the problem in words, or "".

    Raises: TrainingError from step `stop_if_not_learning_after_n_steps` on.
    """
    problem = learning_problem(result, config)
    limit = config.stop_if_not_learning_after_n_steps
    if problem and limit and step >= limit:
        raise TrainingError(
            "the model does not learn",
            where=f"step {step}, {result.n_events} validation events",
            found=problem,
            expected=f"learning after {limit} steps",
            remedy="Check inputs and labels first (iceaggr check), then the learning rate",
        )
    return problem


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> str:
    names = [name for name, tensor in named if not bool(torch.isfinite(tensor).all())]
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more


def _events(event_id: Tensor) -> str:
    ids = event_id.tolist()
    more = f" and {len(ids) - N_NAMED} more" if len(ids) > N_NAMED else ""
    return f"event_id {', '.join(map(str, ids[:N_NAMED]))}{more}"
