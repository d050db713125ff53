"""The feed-forward network of a layer, keeping one of its three wide tensors in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from iceaggr.models.dropout import draw_kept


def runs_lean(x: Tensor) -> bool:
    """Tell whether the lean network serves these values: on a CPU, in their own precision."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def lean_feedforward(x: Tensor, into: nn.Linear, out: nn.Linear, dropout: float) -> Tensor:
    """Compute `out(dropout(gelu(into(x))))` in training; the backward pass computes gelu again.

    x: (R, C) on a CPU. Returns (R, C).
    """
    parameters = into.weight, into.bias, out.weight, out.bias
    result: Tensor = _Feedforward.apply(x, dropout, *parameters)
    return result


class _Feedforward(torch.autograd.Function):
    """Keeps its input, the hidden values before gelu, and a byte for each dropped one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float, *parameters: Tensor) -> Tensor:
        into, into_bias, out, out_bias = parameters
        kept, scale = None, 1.0
        if dropout > 0:
            kept, scale = draw_kept(torch.Size((len(x), len(into))), dropout)
        hidden = torch.addmm(into_bias, x, into.t())
        ctx.save_for_backward(x, into, out, hidden, kept)
        ctx.scale = scale
        return torch.addmm(out_bias, _active(hidden, kept), out.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, into, out, hidden, kept = ctx.saved_tensors
        scaled = gradient * ctx.scale
        of_out = scaled.t() @ _active(hidden, kept)
        of_active = scaled @ out
        if kept is not None:
            of_active.mul_(kept)
        of_hidden = torch.ops.aten.gelu_backward(of_active, hidden)
        return (
            of_hidden @ into,
            None,
            of_hidden.t() @ x,
            of_hidden.sum(0),
            of_out,
            gradient.sum(0),
        )


def _active(hidden: Tensor, kept: Tensor | None) -> Tensor:
    active = functional.gelu(hidden)
    return active if kept is None else active.mul_(kept)
