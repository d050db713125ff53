"""Dropout that draws sixteen bits per value on a CPU, where torch's own takes a fifth of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

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
