"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
