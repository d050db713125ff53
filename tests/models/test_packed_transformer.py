"""Layers over packed segments, whatever precision and way of attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig
from iceaggr.models import DirectionModel, build_model, packed_transformer
from iceaggr.models.packed_transformer import LayerStack, same_segment_mask
from iceaggr.models.packing import Chunk, pack, pack_in_order
from iceaggr.normalization_document import Normalization
from tests.batches.batch_builder import random_event_batch

NETWORKS = {
    "plain": {},
    "biased": {"relative_bias": True, "event_token": True, "dom_statistics": True},
    "in small chunks": {"max_rows_per_chunk": 40, "max_rows_kept": 80},
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network(name: str) -> DirectionModel:
    torch.manual_seed(3)
    config = ModelConfig.model_validate(
        {"d_model": 64, "n_heads": 4, "n_dom_layers": 1, "n_event_layers": 2, "dropout": 0.0}
        | NETWORKS[name]
    )
    model = build_model(config, Normalization.seed())
    for parameter in model.parameters():
        # a bias of zero would hide where it is added
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter)
    return model


def ragged(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("lengths", [[1], [300], [5, 1, 1, 700, 2, 128, 1], [128, 128], [1] * 400])
def test_mask_lists_every_block_with_a_pair_of_one_segment_and_no_other(lengths: list[int]) -> None:
    offsets = ragged(lengths)
    (chunk,) = pack_in_order(offsets, sum(lengths), 10**9).chunks
    mask = same_segment_mask(chunk)
    n_blocks = max(2, -(-sum(lengths) // 128))
    pairs = torch.zeros(n_blocks * 128, n_blocks * 128, dtype=torch.bool)
    pairs[: sum(lengths), : sum(lengths)] = chunk.segment[:, None] == chunk.segment
    has_pair = pairs.view(n_blocks, 128, n_blocks, 128).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), has_pair)


def test_mask_refuses_a_chunk_packed_into_groups() -> None:
    (chunk,) = pack(ragged([2, 3]), 100).chunks
    with pytest.raises(ValueError, match="expected one packed in order"):
        same_segment_mask(chunk)


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_attention_predicts_what_grouped_attention_does(name: str) -> None:
    model, batch = network(name).requires_grad_(False), random_event_batch(12, seed=5)
    expected = model(batch).vector
    # the same operations one by one: no backend of the CPU differentiates the fused one
    model.compile_layers(backend="eager")
    torch.testing.assert_close(model(batch).vector, expected, rtol=1e-4, atol=1e-5)


def gradients(model: DirectionModel, batch: EventBatch) -> list[Tensor]:
    found = torch.autograd.grad(model(batch).vector.square().sum(), list(model.parameters()))
    return [gradient.cpu() for gradient in found]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_gpu_kernel_has_the_values_and_gradients_of_the_cpu(name: str) -> None:
    model, batch = network(name), random_event_batch(40, seed=5)
    expected, of_cpu = model(batch).vector, gradients(model, batch)
    placed = batch.to("cuda")
    model.to("cuda").compile_layers()
    torch.testing.assert_close(model(placed).vector.cpu(), expected, rtol=1e-3, atol=1e-4)
    for on_gpu, on_cpu in zip(gradients(model, placed), of_cpu, strict=True):
        scale = float(on_cpu.abs().max()) + 1e-6
        torch.testing.assert_close(on_gpu / scale, on_cpu / scale, rtol=0, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_gpu_in_sixteen_bits_stays_near_the_cpu() -> None:
    model, batch = network("biased").requires_grad_(False), random_event_batch(40, seed=5)
    expected = model(batch).direction
    model.to("cuda").compile_layers()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = model(batch.to("cuda")).direction.cpu()
    assert float((found - expected).norm(dim=-1).mean()) < 0.02


@pytest.mark.parametrize("name", ["plain", "biased"])
def test_layers_are_traced_once_for_every_shape(name: str) -> None:
    model = network(name).requires_grad_(False)
    batches = [random_event_batch(n, seed=n) for n in (12, 5, 30)]
    expected = [model(batch).vector for batch in batches]
    # all of the compilation but the last step, which is another one on every device
    model.compile_layers(backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for batch, vector in zip(batches, expected, strict=True):
        torch.testing.assert_close(model(batch).vector, vector, rtol=1e-4, atol=1e-5)
        if batch is batches[0]:
            n_traced = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == n_traced


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
