from __future__ import annotations

from dataclasses import replace

import pytest

from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError
from iceaggr.normalization import Normalization, Normalizer, check_inputs
from tests.normalization.sample_events import BATCH, FITTED

CONFIG = NormalizationConfig()


@pytest.mark.parametrize("normalization", [FITTED, Normalization.seed()])
def test_check_inputs_accepts_normalised_inputs(normalization: Normalization) -> None:
    check_inputs(Normalizer(normalization)(BATCH), BATCH, CONFIG)


def test_check_inputs_refuses_raw_inputs() -> None:
    inputs = Normalizer(Normalization.raw())(BATCH)
    with pytest.raises(NormalizationError, match=r"time_norm 100\.00% beyond 10") as refused:
        check_inputs(inputs, BATCH, CONFIG)
    message = str(refused.value)
    assert "[time_norm, xyz_norm, sensor_norm]" in message
    assert f"worst {BATCH.time_ns.max():g}" in message
    assert "in 400 events (5000, 5001, 5002, 5003, 5004 ...)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["time_norm", "charge_norm", "xyz_norm", "sensor_norm"])
def test_check_inputs_refuses_a_single_value_that_is_not_finite(field: str, value: float) -> None:
    inputs = Normalizer(FITTED)(BATCH)
    values = getattr(inputs, field).clone()
    event = 123
    row = int(BATCH.event_dom_offsets[event])
    if field in ("time_norm", "charge_norm"):
        row = int(BATCH.dom_pulse_offsets[row])
    values.view(len(values), -1)[row, -1] = value
    with pytest.raises(NormalizationError, match=rf"\[{field}\].*1 not finite.*\({5000 + event}\)"):
        check_inputs(replace(inputs, **{field: values}), BATCH, CONFIG)


def test_check_inputs_counts_the_share_of_outliers_against_the_limit() -> None:
    inputs = Normalizer(FITTED)(BATCH)
    time_norm = inputs.time_norm.clone()
    n_outliers = BATCH.n_pulses // 100
    time_norm[:n_outliers] = 50.0
    check_inputs(replace(inputs, time_norm=time_norm), BATCH, CONFIG)
    time_norm[: n_outliers + 2] = -51.0
    with pytest.raises(NormalizationError, match=r"time_norm 1\.0\d% beyond 10.*worst -51"):
        check_inputs(replace(inputs, time_norm=time_norm), BATCH, CONFIG)


def test_check_inputs_refuses_charge_zero() -> None:
    charge = BATCH.charge_pe.clone()
    charge[0] = 0.0
    batch = replace(BATCH, charge_pe=charge)
    with pytest.raises(NormalizationError, match=r"charge_norm.*1 not finite, worst -inf"):
        check_inputs(Normalizer(FITTED)(batch), batch, CONFIG)
