from dataclasses import fields

import numpy as np
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.reconstruction import likelihood_fit
from iceaggr.reconstruction.sensor_order import in_sensor_order
from tests.batches.batch_builder import Event, assemble, random_events, track_events


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
