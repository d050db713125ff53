"""Layers over packed segments, whatever precision and way of attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from iceaggr.config import ModelConfig
from iceaggr.models import packed_transformer
from iceaggr.models.packed_transformer import LayerStack
from iceaggr.models.packing import Chunk


@pytest.mark.parametrize("is_fused", [False, True])
def test_layers_add_up_in_float32_under_autocast(is_fused: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=32, n_heads=2, dropout=0.0)
    layers = LayerStack(config, n_layers=2).requires_grad_(False)
    if is_fused:
        layers.compile_layers(backend="eager")
    x = torch.randn(9, 32)
    offsets = torch.tensor([0, 2, 3, 9])
    (chunk,) = layers.packing(offsets, len(x)).chunks
    expected = layers.transform(chunk.take(x), chunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = chunk.take(x).bfloat16()
        found = layers.transform(embedded, chunk)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@torch._dynamo.config.patch(recompile_limit=1)
def test_more_networks_can_be_compiled_in_a_process_than_torch_traces_by_itself() -> None:
    offsets = torch.tensor([0, 2, 3, 9])
    for n_heads in (3, 5):
        config = ModelConfig(d_model=8 * n_heads, n_heads=n_heads, feedforward_factor=1)
        layers = LayerStack(config, n_layers=1).eval().requires_grad_(False)
        x = torch.randn(9, config.d_model)
        (chunk,) = layers.packing(offsets, len(x)).chunks
        expected = layers.transform(chunk.take(x), chunk)[chunk.rows.argsort()]
        layers.compile_layers(backend="eager")
        (chunk,) = layers.packing(offsets, len(x)).chunks
        torch.testing.assert_close(layers.transform(x, chunk), expected, rtol=1e-4, atol=1e-5)


def chunked_gradient(device: str) -> tuple[Tensor, Tensor]:
    """Give the gradient of a chunked stack with dropout, and the slope it must be."""
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=16, n_heads=1, dropout=0.5, max_rows_per_chunk=40, max_rows_kept=40
    )
    layers = LayerStack(config, n_layers=2).to(device)
    offsets = torch.arange(0, 401, 4, device=device)
    x = torch.randn(400, 16, device=device)
    scale = torch.ones((), dtype=torch.float32, device=device, requires_grad=True)

    def total(factor: Tensor) -> Tensor:
        def run(chunk: Chunk) -> Tensor:
            return layers.transform(factor * chunk.take(x), chunk)[chunk.offsets[:-1]]

        torch.manual_seed(5)
        out = layers.run_chunks(layers.packing(offsets, len(x)), run)
        return (out.double() * torch.arange(16, device=device)).sum()

    (gradient,) = torch.autograd.grad(total(scale), scale)
    with torch.no_grad():
        slope = (total(scale + 1e-2) - total(scale - 1e-2)) / 2e-2
    return gradient.cpu().double(), slope.cpu()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_recomputed_chunks_draw_the_same_dropout(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    gradient, slope = chunked_gradient(device)
    torch.testing.assert_close(gradient, slope, rtol=0.02, atol=0.5)


def test_recomputed_chunks_tell_torch_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # without a tensor among its arguments torch would forget the random state of a GPU
    handed: list[tuple[Any, ...]] = []
    plain = packed_transformer.checkpoint

    def noting(function: Any, *args: Any, **options: Any) -> Any:
        handed.append(args)
        return plain(function, *args, **options)

    monkeypatch.setattr(packed_transformer, "checkpoint", noting)
    chunked_gradient("cpu")
    assert len(handed) == 9
    assert all(any(isinstance(arg, Tensor) for arg in args) for args in handed)
