"""Synthetic DomEvents for tests: right in form and roughly in size, not a physics simulation."""

from __future__ import annotations

import numpy as np

from iceaggr.detector import Detector, icecube86
from iceaggr.events.dom_events import DomEvents


def random_dom_events(
    n_events: int,
    seed: int,
    *,
    detector: Detector | None = None,
    median_pulses: float = 60.0,
    labelled: bool = True,
    charge_dtype: type[np.floating] = np.float32,
    first_event_id: int = 0,
) -> DomEvents:
    """Draw events with a heavy tail of sizes, a trigger near 10 us and about half auxiliary pulses.

    Every event has at least one pulse; a DOM often has several, some at equal times. Pulses cluster
    on a few strings around a random DOM, charges are quantised to 0.025 + 0.05 k photo-electrons.
    """
    detector = detector or icecube86()
    rng = np.random.default_rng(seed)
    n_pulses = 1 + rng.lognormal(np.log(median_pulses), 0.9, n_events).astype(np.int64)
    event_idx = np.repeat(np.arange(n_events), n_pulses)
    n = len(event_idx)
    auxiliary = rng.random(n) < 0.5
    near = rng.integers(detector.n_sensors, size=n_events)[event_idx]
    near = near + rng.normal(0, 8, n).astype(np.int64) + 60 * rng.integers(-1, 2, n)
    anywhere = rng.integers(detector.n_sensors, size=n)
    row = np.where(auxiliary, anywhere, near % detector.n_sensors)
    sensor_id = detector.sensor_id[row]
    window = rng.uniform(5700, 16000, n)
    time = np.where(auxiliary, window, 9700 + rng.exponential(1500, n)).astype(np.int64)
    charge = 0.025 + 0.05 * np.floor(rng.lognormal(0, 0.6, n) / 0.05)
    order = np.lexsort((time, sensor_id, event_idx))
    event_idx, sensor_id = event_idx[order], sensor_id[order]
    new_dom = np.ones(n, bool)
    new_dom[1:] = (np.diff(event_idx) != 0) | (np.diff(sensor_id) != 0)
    dom_start = np.flatnonzero(new_dom)
    azimuth = rng.uniform(0, 2 * np.pi, n_events)
    zenith = np.arccos(rng.uniform(-1, 1, n_events))
    return DomEvents(
        event_id=first_event_id + np.arange(n_events, dtype=np.int64),
        azimuth=azimuth if labelled else np.full(n_events, np.nan),
        zenith=zenith if labelled else np.full(n_events, np.nan),
        event_dom_offsets=np.searchsorted(event_idx[dom_start], np.arange(n_events + 1)),
        sensor_id=sensor_id[dom_start].astype(np.int32),
        dom_pulse_offsets=np.append(dom_start, n).astype(np.int64),
        time_ns=time[order],
        charge_pe=charge[order].astype(charge_dtype),
        auxiliary=auxiliary[order],
    )
