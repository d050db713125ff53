"""Layers over packed segments, whatever precision and way of attention."""

from __future__ import annotations

import pytest
import torch

from iceaggr.config import ModelConfig
from iceaggr.models.packed_transformer import LayerStack


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
