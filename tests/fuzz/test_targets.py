"""Targets take their sound inputs; damage is refused in our words, or what is left is sound."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.damage import damage_bytes
from tests.fuzz.target import MODULES, load_target

SLOW = {"bundle", "checkpoint", "config", "documents", "served_pulses", "sharding"}


@pytest.mark.parametrize("name", MODULES)
def test_target_accepts_its_sound_inputs(name: str) -> None:
    target = load_target(name)
    assert target.seeds
    for seed in target.seeds:
        assert target.accepts(seed)


@pytest.mark.parametrize("name", MODULES)
def test_damaged_input_is_refused_or_sound(name: str) -> None:
    target = load_target(name)

    @settings(
        max_examples=10 if name in SLOW else 60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        seed=st.sampled_from(target.seeds),
        random=st.integers(0, 2**63),
        in_bytes=st.booleans(),
        n_times=st.integers(1, 3),
    )
    def damaged(seed: bytes, random: int, in_bytes: bool, n_times: int) -> None:
        rng = Random(random)
        for _ in range(n_times):
            seed = (damage_bytes if in_bytes else target.damage)(seed, rng)
        target.accepts(seed)

    damaged()


@pytest.mark.parametrize("name", MODULES)
def test_input_that_is_nothing_like_it_is_refused(name: str) -> None:
    target = load_target(name)
    for data in (b"", b"\0", b"[]", b"null", b'"x"', b"\xff" * 40, b"[" * 20_000):
        if name in ("loader_state", "served_pulses"):
            target.accepts(data)  # nothing is asked of the reader then
        else:
            assert not target.accepts(data), data[:10]
