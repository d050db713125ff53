"""AdamW, and its state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iceaggr.config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Build AdamW with weight decay on matrices only.

    Decay pulls biases and norm scales towards zero for no gain, so vectors are left out.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    on_gpu = any(p.is_cuda for p in parameters)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        fused=on_gpu,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """List the optimiser's state as tensors named "<quantity>/<parameter>"."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{quantity}/{names[parameter]}": value
        for parameter, quantities in optimizer.state.items()
        for quantity, value in quantities.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Put tensors of `optimizer_tensors` back.

    Raises: KeyError if a tensor belongs to no parameter of the model.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    row = {names[parameter]: index for index, parameter in enumerate(ordered)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        quantity, _, name = key.partition("/")
        state.setdefault(row[name], {})[quantity] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
