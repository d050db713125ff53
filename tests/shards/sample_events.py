"""A sample of random events, as a batch, with the normalisation fitted to it."""

from __future__ import annotations

import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import icecube86
from iceaggr.events.dom_events import DomEvents
from iceaggr.shards.sketching import sketch_events
from iceaggr.shards.statistics import fit_normalization
from tests.shards.dom_events_builder import random_dom_events

DETECTOR = icecube86()


def batch_of(events: DomEvents) -> EventBatch:
    """Put all events into one batch, without caps."""
    rows = DETECTOR.sensor_idx(events.sensor_id)
    return EventBatch(
        event_id=torch.from_numpy(events.event_id),
        event_dom_offsets=torch.from_numpy(events.event_dom_offsets),
        sensor_idx=torch.from_numpy(rows),
        xyz_m=torch.from_numpy(DETECTOR.xyz_m[rows]).float(),
        efficiency=torch.from_numpy(DETECTOR.efficiency[rows]).float(),
        dom_pulse_offsets=torch.from_numpy(events.dom_pulse_offsets),
        time_ns=torch.from_numpy(events.time_ns).float(),
        charge_pe=torch.from_numpy(events.charge_pe).float(),
        auxiliary=torch.from_numpy(events.auxiliary),
    )


EVENTS = random_dom_events(400, seed=1, first_event_id=5000)
BATCH = batch_of(EVENTS)
FITTED = fit_normalization(sketch_events(EVENTS, DETECTOR))
