from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceaggr.config import TrainingConfig
from iceaggr.training.schedule import START_SHARE, Pace, learning_rate_at

ONE_CYCLE = TrainingConfig(schedule="one_cycle", learning_rate=2e-3, warmup_share=0.1)


def test_constant_rate_is_the_configured_one_throughout() -> None:
    config = TrainingConfig(learning_rate=3e-4, warmup_share=0.5)
    assert {learning_rate_at(p, config) for p in (0.0, 0.3, 1.0)} == {3e-4}


def test_one_cycle_starts_low_peaks_after_warmup_and_ends_at_zero() -> None:
    assert learning_rate_at(0.0, ONE_CYCLE) == pytest.approx(2e-3 * START_SHARE)
    assert learning_rate_at(0.1, ONE_CYCLE) == pytest.approx(2e-3)
    assert learning_rate_at(0.55, ONE_CYCLE) == pytest.approx(1e-3)
    assert learning_rate_at(1.0, ONE_CYCLE) == pytest.approx(0.0, abs=1e-12)


def test_one_cycle_without_warmup_starts_at_the_peak() -> None:
    config = ONE_CYCLE.model_copy(update={"warmup_share": 0.0})
    assert learning_rate_at(0.0, config) == pytest.approx(2e-3)


@given(st.floats(0, 1), st.floats(0, 1))
def test_one_cycle_rises_then_falls(a: float, b: float) -> None:
    low, high = sorted((a, b))
    before, after = (learning_rate_at(p, ONE_CYCLE) for p in (low, high))
    if high <= 0.1:
        assert before <= after + 1e-15
    if low >= 0.1:
        assert before >= after - 1e-15


def test_rate_refuses_progress_outside_the_run() -> None:
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        learning_rate_at(1.5, ONE_CYCLE)


def test_pace_follows_steps_without_a_time_limit() -> None:
    pace = Pace(n_steps_planned=200, limit_s=0)
    assert pace.advance(50, elapsed_s=1e9, reserve_s=1e9) == 0.25
    assert not pace.time_is_up


def test_pace_follows_whichever_ends_first() -> None:
    pace = Pace(n_steps_planned=100, limit_s=100)
    assert pace.advance(10, elapsed_s=5, reserve_s=0) == pytest.approx(0.10)
    assert pace.advance(12, elapsed_s=40, reserve_s=0) == pytest.approx(0.40)


def test_pace_keeps_time_for_the_last_validation() -> None:
    pace = Pace(n_steps_planned=1000, limit_s=100)
    pace.advance(1, elapsed_s=79, reserve_s=20)
    assert not pace.time_is_up
    assert pace.advance(2, elapsed_s=80, reserve_s=20) == 1.0
    assert pace.time_is_up


def test_pace_lets_validation_claim_at_most_half_of_the_time() -> None:
    pace = Pace(n_steps_planned=1000, limit_s=100)
    pace.advance(1, elapsed_s=49, reserve_s=1e6)
    assert not pace.time_is_up


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 200), st.floats(0, 50))))
def test_pace_never_goes_backwards(points: list[tuple[int, float, float]]) -> None:
    pace = Pace(n_steps_planned=100, limit_s=100)
    reached = [pace.advance(*point) for point in points]
    assert reached == sorted(reached)
    assert all(0 <= p <= 1 for p in reached)
