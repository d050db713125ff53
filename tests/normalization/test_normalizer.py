from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from iceaggr.errors import NormalizationError
from iceaggr.normalization import Normalization, Normalizer
from tests.normalization.sample_events import BATCH, FITTED


def test_seed_preset_reproduces_its_constants() -> None:
    inputs = Normalizer(Normalization.seed())(BATCH)
    torch.testing.assert_close(inputs.time_norm, (BATCH.time_ns - 1e4) / 3e4)
    torch.testing.assert_close(inputs.charge_norm, torch.log10(BATCH.charge_pe) / 3)
    torch.testing.assert_close(inputs.xyz_norm, BATCH.xyz_m / 500)
    torch.testing.assert_close(inputs.auxiliary_norm, BATCH.auxiliary.float())
    torch.testing.assert_close(inputs.sensor_norm, BATCH.sensor_idx / 5160)


def test_raw_preset_changes_nothing() -> None:
    inputs = Normalizer(Normalization.raw())(BATCH)
    assert torch.equal(inputs.time_norm, BATCH.time_ns)
    assert torch.equal(inputs.charge_norm, BATCH.charge_pe)
    assert torch.equal(inputs.xyz_norm, BATCH.xyz_m)


def test_normalizer_tells_neighbouring_nanoseconds_apart_at_late_times() -> None:
    late = replace(BATCH, time_ns=84_000 + torch.arange(BATCH.n_pulses).float() % 500)
    time_norm = Normalizer(FITTED)(late).time_norm
    recovered = time_norm.double() * FITTED.time_ns.scale + FITTED.time_ns.centre
    assert (recovered - late.time_ns).abs().max() < 0.02


@pytest.mark.parametrize("saved", [Normalization.seed(), Normalization.raw(), FITTED])
@pytest.mark.parametrize("built", [Normalization.seed(), Normalization.raw()])
def test_normalizer_state_dict_brings_back_the_saved_normalisation(
    saved: Normalization, built: Normalization
) -> None:
    original, loaded = Normalizer(saved), Normalizer(built)
    assert not list(original.parameters())
    loaded.load_state_dict(original.state_dict())
    for name in ("time_norm", "charge_norm", "xyz_norm", "sensor_norm", "auxiliary_norm"):
        assert torch.equal(getattr(loaded(BATCH), name), getattr(original(BATCH), name)), name


def test_normalizer_refuses_to_run_after_a_cast() -> None:
    with pytest.raises(NormalizationError, match=r"found torch\.bfloat16, expected torch\.float32"):
        Normalizer(FITTED).bfloat16()(BATCH)


def test_normalizer_computes_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inputs = Normalizer(FITTED)(BATCH)
    assert inputs.time_norm.dtype == torch.float32
    assert torch.equal(inputs.time_norm, Normalizer(FITTED)(BATCH).time_norm)
