from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig
from iceaggr.models import DirectionModel, build_model
from iceaggr.models.fused_attention import same_segment_mask
from iceaggr.models.packing import pack, pack_in_order
from iceaggr.normalization import Normalization
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
