"""Parts of a layer that keep less in memory: what is cheap is computed again going backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from iceaggr.models.dropout import draw_kept


def runs_lean(x: Tensor) -> bool:
    """Tell whether the lean parts serve these values: on a CPU, in their own precision."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def normed_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """Compute `linear(norm(x))` without keeping the normed values. x: (R, C) on a CPU."""
    result: Tensor = _NormedLinear.apply(x, norm.eps, *_parameters(norm, linear))
    return result


def normed_feedforward(
    x: Tensor, norm: nn.LayerNorm, into: nn.Linear, out: nn.Linear, dropout: float
) -> Tensor:
    """Compute `out(dropout(gelu(into(norm(x)))))`, keeping one of its three wide tensors.

    x: (R, C) on a CPU. Returns (R, C).
    """
    parameters = _parameters(norm, into, out)
    result: Tensor = _NormedFeedforward.apply(x, norm.eps, dropout, *parameters)
    return result


def _parameters(*modules: nn.LayerNorm | nn.Linear) -> list[Tensor]:
    return [parameter for module in modules for parameter in (module.weight, module.bias)]


class _NormedLinear(torch.autograd.Function):
    """Keeps its input, and the mean and width of each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, *parameters: Tensor) -> Tensor:
        gain, shift, weight, bias = parameters
        normed, mean, width = torch.native_layer_norm(x, gain.shape, gain, shift, eps)
        ctx.save_for_backward(x, mean, width, gain, shift, weight)
        ctx.eps = eps
        return torch.addmm(bias, normed, weight.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, width, gain, shift, weight = ctx.saved_tensors
        normed = functional.layer_norm(x, gain.shape, gain, shift, ctx.eps)
        of_weight, of_bias = gradient.t() @ normed, gradient.sum(0)
        of_norm = _norm_backward(gradient @ weight, x, mean, width, gain, shift)
        return of_norm[0], None, *of_norm[1:], of_weight, of_bias


class _NormedFeedforward(torch.autograd.Function):
    """Keeps its input, the hidden values before gelu, and a byte for each dropped one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dropout: float, *parameters: Tensor) -> Tensor:
        gain, shift, into, into_bias, out, out_bias = parameters
        kept, scale = None, 1.0
        if dropout > 0:
            kept, scale = draw_kept(torch.Size((len(x), len(into))), dropout)
        normed, mean, width = torch.native_layer_norm(x, gain.shape, gain, shift, eps)
        hidden = torch.addmm(into_bias, normed, into.t())
        ctx.save_for_backward(x, mean, width, gain, shift, into, out, hidden, kept)
        ctx.eps, ctx.scale = eps, scale
        return torch.addmm(out_bias, _active(hidden, kept), out.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, width, gain, shift, into, out, hidden, kept = ctx.saved_tensors
        scaled = gradient * ctx.scale
        of_out = scaled.t() @ _active(hidden, kept)
        of_active = scaled @ out
        if kept is not None:
            of_active.mul_(kept)
        of_hidden = torch.ops.aten.gelu_backward(of_active, hidden)
        normed = functional.layer_norm(x, gain.shape, gain, shift, ctx.eps)
        of_into, of_into_bias = of_hidden.t() @ normed, of_hidden.sum(0)
        of_norm = _norm_backward(of_hidden @ into, x, mean, width, gain, shift)
        of_linears = of_into, of_into_bias, of_out, gradient.sum(0)
        return of_norm[0], None, None, *of_norm[1:], *of_linears


def _norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, width: Tensor, gain: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of input, gain and shift of a layer norm."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        gradient, x, gain.shape, mean, width, gain, shift, [True, True, True]
    )
    return found


def _active(hidden: Tensor, kept: Tensor | None) -> Tensor:
    active = functional.gelu(hidden)
    return active if kept is None else active.mul_(kept)
