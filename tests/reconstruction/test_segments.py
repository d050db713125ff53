from dataclasses import fields

import numpy as np
import pytest
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction import likelihood_fit
from iceaggr.reconstruction.segments import (
    in_sensor_order,
    segment_max,
    segment_mean,
    segment_min,
    segment_quantile,
    segment_sum,
    segment_sum_rounded_once,
)
from tests.batches.batch_builder import Event, assemble, random_events, track_events

SEGMENT = torch.tensor([2, 0, 2, 0, 2, 4])
VALUES = torch.tensor([3.0, 1.0, -1.0, 5.0, 4.0, 7.0])


def test_reductions_match_a_loop_and_fill_empty_segments() -> None:
    assert segment_sum(VALUES, SEGMENT, 5).tolist() == [6, 0, 6, 0, 7]
    assert segment_mean(VALUES, SEGMENT, 5).tolist() == [3, 0, 2, 0, 7]
    assert segment_min(VALUES, SEGMENT, 5).tolist() == [1, np.inf, -1, np.inf, 7]
    assert segment_max(VALUES, SEGMENT, 5).tolist() == [5, -np.inf, 4, -np.inf, 7]


def test_sum_rounded_once_is_the_same_for_every_order_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3000, 4, generator=generator) * 10 ** torch.rand(
        3000, 4, generator=generator
    ).mul(4)
    segment = torch.randint(0, 20, (3000,), generator=generator)
    order = torch.randperm(3000, generator=generator)
    found = segment_sum_rounded_once(values, segment, 21)
    assert torch.equal(segment_sum_rounded_once(values[order], segment[order], 21), found)
    assert not torch.equal(
        segment_sum(values[order], segment[order], 21), segment_sum(values, segment, 21)
    )
    exact = segment_sum(values.double(), segment, 21)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=6e-8, atol=0)
    assert float(found[20].abs().max()) == 0


def test_weighted_mean_of_vectors_ignores_rows_of_no_weight() -> None:
    values = torch.stack([VALUES, 2 * VALUES], dim=-1)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 2.0])
    found = segment_mean(values, SEGMENT, 5, weight)
    torch.testing.assert_close(found[:, 0], torch.tensor([5.0, 0, 1, 0, 7]))
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_quantile_is_the_first_value_that_reaches_the_share(share: float) -> None:
    rng = np.random.default_rng(0)
    segment = rng.integers(0, 20, 300)
    segment[segment == 7] = 8
    values, weight = rng.normal(size=300), rng.uniform(0.1, 5, 300)
    found = segment_quantile(
        torch.tensor(values), torch.tensor(weight), share, torch.tensor(segment), 20
    )
    for number in range(20):
        mine = segment == number
        expected = 0.0
        if mine.any():
            order = np.argsort(values[mine])
            running = np.cumsum(weight[mine][order])
            reached = running >= share * running[-1] * (1 - 1e-12)
            expected = values[mine][order][np.argmax(reached)]
        assert float(found[number]) == expected


def shuffled_doms(events: list[Event], seed: int) -> list[Event]:
    rng = np.random.default_rng(seed)
    return [
        Event(e.event_id, [e.doms[i] for i in rng.permutation(len(e.doms))], e.direction)
        for e in events
    ]


def assert_same_bits(found: EventBatch, expected: EventBatch) -> None:
    for field in fields(EventBatch):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        same = torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other
        assert same, field.name


def test_batch_in_sensor_order_comes_back_equal() -> None:
    batch = assemble(random_events(30, seed=1))
    assert_same_bits(in_sensor_order(batch), batch)


def test_doms_return_to_sensor_order_with_their_pulses() -> None:
    events = random_events(30, seed=2)
    mixed = assemble(shuffled_doms(events, seed=0))
    batch = assemble(events)
    assert not torch.equal(mixed.sensor_idx, batch.sensor_idx)
    assert_same_bits(in_sensor_order(mixed), batch)


def test_sensor_order_is_found_without_asking_a_gpu_for_numbers() -> None:
    # torch computes shapes only on this device: a number that is asked for raises
    batch = assemble(random_events(5, seed=3)).to("meta")
    ordered = in_sensor_order(batch)
    assert ordered.time_ns.is_meta
    assert ordered.time_ns.shape == batch.time_ns.shape


def test_likelihood_fit_gives_the_same_bits_for_every_order_of_doms() -> None:
    events = [*track_events(60, seed=3, delay_ns=100.0, noise_share=1.0), *random_events(60)]
    fit = likelihood_fit(assemble(events))
    again = likelihood_fit(assemble(shuffled_doms(events, seed=1)))
    assert torch.equal(again.direction, fit.direction)
    assert torch.equal(again.position_m, fit.position_m)
    assert torch.equal(again.time_ns, fit.time_ns)
