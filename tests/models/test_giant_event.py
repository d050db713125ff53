"""One event of 178,250 pulses on all 5,160 DOMs: the largest that the project promises to train on.

Computed in chunks it must give the same prediction and gradients as in one piece, and keep only a
small share of the activations for the backward pass.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import LossConfig, ModelConfig, NormalizationConfig
from iceaggr.detector import icecube86
from iceaggr.errors import TrainingError
from iceaggr.losses import direction_loss
from iceaggr.models import DirectionModel, build_model
from iceaggr.models.normalizer import Normalizer
from iceaggr.normalization_document import Normalization
from iceaggr.training.guards import check_batch

N_PULSES, N_DOMS = 178_250, 5_160
EVENT_ID = 77
PLAIN = ModelConfig(
    d_model=16,
    n_heads=2,
    n_dom_layers=1,
    n_event_layers=1,
    dropout=0.0,
    max_rows_per_chunk=10**9,
    max_rows_kept=10**9,
)
PHYSICS = PLAIN.model_copy(
    update={"dom_statistics": True, "event_token": True, "seed": "line_fit", "seed_frame": True}
)
IN_CHUNKS = {"max_rows_per_chunk": 8192, "max_rows_kept": 1}


@pytest.fixture(scope="module")
def giant_event() -> EventBatch:
    """Draw the event: every DOM hit at least once, some a hundred times as often as others."""
    rng, detector = np.random.default_rng(5), icecube86()
    brightness = rng.pareto(2.0, N_DOMS) + 0.1
    counts = 1 + rng.multinomial(N_PULSES - N_DOMS, brightness / brightness.sum())
    dom = np.repeat(np.arange(N_DOMS), counts)
    time_ns = rng.uniform(6000, 16_000, N_PULSES).round()
    direction = rng.normal(size=(1, 3))
    return EventBatch(
        event_id=torch.tensor([EVENT_ID]),
        event_dom_offsets=torch.tensor([0, N_DOMS]),
        sensor_idx=torch.arange(N_DOMS),
        xyz_m=torch.from_numpy(detector.xyz_m).float(),
        efficiency=torch.from_numpy(detector.efficiency).float(),
        dom_pulse_offsets=torch.from_numpy(np.append(0, np.cumsum(counts))),
        time_ns=torch.from_numpy(time_ns[np.lexsort((time_ns, dom))]).float(),
        charge_pe=torch.from_numpy(0.025 + 0.05 * rng.integers(1, 100, N_PULSES)).float(),
        auxiliary=torch.from_numpy(rng.random(N_PULSES) < 0.5),
        direction=torch.from_numpy(direction / np.linalg.norm(direction)).float(),
    )


def trained_once(
    config: ModelConfig, batch: EventBatch
) -> tuple[DirectionModel, torch.Tensor, int]:
    """Go forward and backward once: the model with its gradients, the vector, the bytes kept."""
    torch.manual_seed(0)
    model = build_model(config, Normalization.seed()).train()
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(batch)
        loss = direction_loss(output, batch.direction, LossConfig()).sum()
    n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    kept.clear()
    loss.backward()
    return model, output.vector.detach(), n_bytes


@pytest.mark.parametrize("config", [PLAIN, PHYSICS], ids=["plain", "physics"])
def test_giant_event_in_chunks_equals_one_piece_and_keeps_a_small_share(
    config: ModelConfig, giant_event: EventBatch
) -> None:
    assert (giant_event.n_pulses, giant_event.n_doms) == (N_PULSES, N_DOMS)
    whole, expected, n_whole = trained_once(config, giant_event)
    chunked, found, n_chunked = trained_once(config.model_copy(update=IN_CHUNKS), giant_event)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for (name, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            reach = float(one.grad.abs().max())
            torch.testing.assert_close(
                other.grad, one.grad, rtol=1e-3, atol=1e-4 * reach, msg=f"gradient of {name}"
            )
    assert n_chunked < 0.1 * n_whole, f"kept {n_chunked:,} of {n_whole:,} bytes"


def test_giant_event_is_normalised_pulse_by_pulse(giant_event: EventBatch) -> None:
    normalization = Normalization.seed()
    found = Normalizer(normalization)(giant_event)
    time, charge = normalization.time_ns, normalization.charge_pe
    expected_time = (giant_event.time_ns.double() - time.centre) / time.scale
    raw_charge = giant_event.charge_pe.double()
    transformed = raw_charge.log10() if charge.transform == "log10" else raw_charge
    expected_charge = (transformed - charge.centre) / charge.scale
    torch.testing.assert_close(found.time_norm.double(), expected_time, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.charge_norm.double(), expected_charge, rtol=0, atol=1e-5)
    assert found.time_norm.shape == (N_PULSES,)
    assert found.xyz_norm.shape == (N_DOMS, 3)


def test_giant_event_passes_the_check_of_batches_unless_its_last_pulse_is_damaged(
    giant_event: EventBatch,
) -> None:
    normalizer, config = Normalizer(Normalization.seed()), NormalizationConfig()
    check_batch(giant_event, normalizer, config, where="train step 1")
    charge = giant_event.charge_pe.clone()
    charge[-1] = torch.nan
    damaged = replace(giant_event, charge_pe=charge)
    with pytest.raises(TrainingError, match=rf"charge_norm.*1 not finite.*\({EVENT_ID}\)"):
        check_batch(damaged, normalizer, config, where="train step 1")
