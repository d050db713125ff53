"""Parts of a layer that keep less in memory: what is cheap is computed again going backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# Dropout that draws sixteen bits per value on a CPU, where torch's own takes a fifth of a step.

_LEVELS = 2**16


class Dropout(nn.Module):
    """Sets a share of the values to zero in training, and scales up the others.

    On a CPU the share is rounded to 1/65,536. Everywhere it follows torch's generator, so that a
    recomputed chunk drops the same values and a resumed run goes on exactly.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of a tensor of any shape."""
        if not self.training or self.share == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.share)
        kept, scale = draw_kept(x.shape, self.share)
        out: Tensor = _Keep.apply(x, kept, scale)
        return out


def draw_kept(shape: torch.Size, share: float) -> tuple[Tensor, float]:
    """Draw which values stay, on the CPU: uint8 of the shape, 1 = kept; and their scale."""
    n_dropped = min(round(share * _LEVELS), _LEVELS - 1)
    # torch's generator gives the seed, one twice as fast gives the bits
    seed = int(torch.empty((), dtype=torch.int64).random_())
    n_values = shape.numel()
    lanes = np.random.SFC64(seed).random_raw((n_values + 3) // 4).view(np.int16)[:n_values]
    # numpy compares sixteen-bit numbers many at a time, torch one by one
    kept = lanes >= np.int16(n_dropped - _LEVELS // 2)
    return torch.from_numpy(kept.view(np.uint8)).view(shape), _LEVELS / (_LEVELS - n_dropped)


class _Keep(torch.autograd.Function):
    """x * kept * scale, remembering one byte per value instead of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None, None


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
