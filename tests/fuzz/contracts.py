"""What accepted input must hold: a reader that lets anything else pass has accepted silently."""

from __future__ import annotations

import numpy as np

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import Detector
from iceaggr.events.cleaning import MAX_TIME_NS, Account
from iceaggr.events.dom_events import DomEvents


def check_events(events: DomEvents) -> None:
    """Events as `DomEvents` promises them: grouped, sorted, finite, in range."""
    dom_offsets, pulse_offsets = events.event_dom_offsets, events.dom_pulse_offsets
    for offsets, n_rows in ((dom_offsets, events.n_doms), (pulse_offsets, events.n_pulses)):
        assert offsets[0] == 0
        assert offsets[-1] == n_rows
        assert (np.diff(offsets) >= 1).all()
    assert len(dom_offsets) == events.n_events + 1 == len(events.azimuth) + 1
    assert len(pulse_offsets) == events.n_doms + 1
    assert len(events.charge_pe) == len(events.auxiliary) == events.n_pulses
    assert np.isfinite(events.charge_pe).all()
    assert (events.charge_pe > 0).all()
    assert ((events.time_ns >= 0) & (events.time_ns <= MAX_TIME_NS)).all()
    assert _ascends(events.time_ns, pulse_offsets, strictly=False)
    assert _ascends(events.sensor_id, dom_offsets, strictly=True)
    assert len(np.unique(events.event_id)) == events.n_events
    assert events.auxiliary.view(np.uint8).max(initial=0) <= 1


def _ascends(values: np.ndarray, offsets: np.ndarray, strictly: bool) -> bool:
    steps = np.diff(values.astype(np.int64))
    inside = np.ones(len(steps), bool)
    inside[offsets[1:-1] - 1] = False
    return bool((steps[inside] > 0).all() if strictly else (steps[inside] >= 0).all())


def check_account(account: Account, n_events: int, n_pulses: int) -> None:
    """In = kept + rejected, for events and for pulses, and nothing was left out."""
    assert account.n_events_in == n_events
    assert account.n_pulses_in == n_pulses
    assert account.n_events_in == account.n_events_kept + sum(account.rejected_events.values())
    assert account.n_pulses_in == account.n_pulses_kept + sum(account.rejected_pulses.values())


def check_detector(detector: Detector) -> None:
    """A sensor table as `Detector` promises it."""
    assert detector.n_sensors > 0
    assert (np.diff(detector.sensor_id) > 0).all()
    assert np.isfinite(detector.xyz_m).all()
    assert np.isfinite(detector.efficiency).all()
    assert (detector.efficiency > 0).all()
    assert (detector.string_id >= -1).all()


def check_batch(batch: EventBatch) -> None:
    """A minibatch whose every value is finite."""
    assert batch.time_ns.isfinite().all()
    assert batch.charge_pe.isfinite().all()
    assert batch.xyz_m.isfinite().all()
    assert (batch.charge_pe > 0).all()
