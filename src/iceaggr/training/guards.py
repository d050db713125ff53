"""Guards: nothing that is not finite reaches the weights, a validation or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError, TrainingError
from iceaggr.models.normalizer import check_inputs

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
    spoiled = not_finite(model.state_dict().items())
    bad_events = ~torch.isfinite(event_loss)
    if spoiled:
        what, found = "a weight is not finite", f"{spoiled}; {_events(event_id)}"
    elif bad_events.any():
        what = "the loss is not finite"
        found = f"{int(bad_events.sum())} of {len(bad_events)} events, "
        found += _events(event_id[bad_events])
    else:
        names = not_finite(zip(gradients.names, gradients.norms, strict=True))
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

    kept: what the step left by name: weights, buffers and, where there is one, their average
    numbers: (3,) on the host: sum of the loss, norm of all gradients, of everything that is kept
    arrived: when a GPU has sent them, or None on a CPU
    """

    event_loss: Tensor
    gradients: GradientNorms
    event_id: Tensor
    where: str
    kept: Mapping[str, Tensor]
    numbers: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls,
        kept: Mapping[str, Tensor],
        batch: EventBatch,
        event_loss: Tensor,
        gradients: GradientNorms,
        where: str,
    ) -> TakenStep:
        """Note what a step on a batch left behind, without waiting for it."""
        tensors = [value for value in kept.values() if value.is_floating_point()]
        weights = torch.stack(torch._foreach_norm(tensors))
        numbers = torch.stack(
            [event_loss.sum(), gradients.total, torch.linalg.vector_norm(weights)]
        )
        arrived = None
        if numbers.is_cuda:
            # the event lies before the next step, so that only this one is waited for
            numbers = torch.empty_like(numbers, device="cpu").pin_memory().copy_(numbers, True)
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(event_loss, gradients, batch.event_id, where, kept, numbers, arrived)

    def check(self, model: nn.Module) -> None:
        """Look. Raises: TrainingError naming the events, and the tensors that are spoiled."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if bool(torch.isfinite(self.numbers).all()):
            return
        check_step(self.event_loss, self.gradients, self.event_id, model, self.where)
        names = not_finite(self.kept.items())
        raise TrainingError(
            "the optimiser step spoiled the weights",
            where=self.where,
            found=f"{names or 'their norm overflows'}; {_events(self.event_id)}",
            expected="finite weights",
            remedy="The last good checkpoint is kept; lower the learning rate",
        )


def check_kept(kept: Mapping[str, Tensor], where: str) -> None:
    """Refuse to validate or to save what is not finite; waits for the device once.

    kept: weights, buffers, averages and moments by name, of any number type.
    Raises: TrainingError naming the tensors.
    """
    answers: dict[torch.device, list[Tensor]] = {}
    for value in kept.values():
        # counters of the optimiser may lie on the host while the rest lies on a GPU
        answers.setdefault(value.device, []).append(torch.isfinite(value).all())
    if all(bool(torch.stack(of_device).all()) for of_device in answers.values()):
        return
    raise TrainingError(
        "what training keeps is not finite",
        where=where,
        found=not_finite(kept.items()),
        expected="finite weights, averages and moments",
        remedy="The last good checkpoint is kept: the same command goes on from it",
    )


def check_predictions(vector: Tensor, loss: Tensor, event_id: Tensor, where: str) -> None:
    """Refuse to score predictions that are not finite, which have no opening angle.

    vector: (B, 3) predicted.  loss: (B,).  event_id: (B,).
    Raises: TrainingError naming the events.
    """
    bad = ~(torch.isfinite(vector).all(dim=-1) & torch.isfinite(loss))
    if not bad.any():
        return
    raise TrainingError(
        "a prediction is not finite",
        where=where,
        found=f"{int(bad.sum())} of {len(bad)} events, {_events(event_id[bad])}",
        expected="a finite vector and loss for every event",
        remedy="The last good checkpoint is kept; look at these events or lower the learning rate",
    )


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str:
    """List the names of tensors that hold a number that is not finite; "" if there is none."""
    names = [name for name, tensor in named if not bool(torch.isfinite(tensor).all())]
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more


def _events(event_id: Tensor) -> str:
    ids = event_id.tolist()
    more = f" and {len(ids) - N_NAMED} more" if len(ids) > N_NAMED else ""
    return f"event_id {', '.join(map(str, ids[:N_NAMED]))}{more}"
