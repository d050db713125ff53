"""Builds small EventBatch objects for tests: random hits, and straight Cherenkov tracks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import Detector, Medium, icecube86

N_GROUP = 1.35634
N_PHASE = 1.3195
C_M_PER_NS = 0.299792458


@dataclass(frozen=True)
class DomHits:
    """The pulses of one DOM: its row in the detector, times (ns), charges (p.e.), auxiliary."""

    sensor_idx: int
    time_ns: np.ndarray
    charge_pe: np.ndarray
    auxiliary: np.ndarray


@dataclass(frozen=True)
class Event:
    """One event: its DOMs and the unit vector to the origin."""

    event_id: int
    doms: list[DomHits]
    direction: np.ndarray


def assemble(events: list[Event], detector: Detector | None = None) -> EventBatch:
    """Join events, in the order given, into one batch."""
    detector = detector or icecube86()
    doms = [dom for event in events for dom in event.doms]
    sensor_idx = np.array([dom.sensor_idx for dom in doms], np.int64)

    def join(name: str, dtype: type) -> torch.Tensor:
        parts = [np.asarray(getattr(dom, name), dtype) for dom in doms]
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, dtype))

    def offsets(counts: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    return EventBatch(
        event_id=torch.tensor([event.event_id for event in events], dtype=torch.int64),
        event_dom_offsets=offsets([len(event.doms) for event in events]),
        sensor_idx=torch.from_numpy(sensor_idx),
        xyz_m=torch.from_numpy(detector.xyz_m[sensor_idx].astype(np.float32)),
        efficiency=torch.from_numpy(detector.efficiency[sensor_idx].astype(np.float32)),
        dom_pulse_offsets=offsets([len(dom.time_ns) for dom in doms]),
        time_ns=join("time_ns", np.float32),
        charge_pe=join("charge_pe", np.float32),
        auxiliary=join("auxiliary", np.bool_),
        direction=torch.from_numpy(
            np.array([event.direction for event in events], np.float32).reshape(-1, 3)
        ),
    )


def random_events(
    n_events: int, seed: int = 0, max_doms: int = 40, max_pulses: int = 12
) -> list[Event]:
    """Draw events without physics: 78 % of the DOMs hold one pulse, sizes vary from one DOM up."""
    rng = np.random.default_rng(seed)
    n_sensors = icecube86().n_sensors
    events = []
    for event_id in range(n_events):
        n_doms = int(rng.integers(1, max_doms + 1))
        sensors = np.sort(rng.choice(n_sensors, n_doms, replace=False))
        doms = []
        for sensor in sensors:
            n = 1 if rng.random() < 0.78 else int(rng.integers(2, max_pulses + 1))
            doms.append(
                DomHits(
                    sensor_idx=int(sensor),
                    time_ns=np.sort(rng.uniform(6000, 16000, n).round()),
                    charge_pe=0.025 + 0.05 * rng.integers(1, 100, n),
                    auxiliary=rng.random(n) < 0.5,
                )
            )
        events.append(Event(event_id, doms, random_direction(rng)))
    return events


def random_event_batch(
    n_events: int, seed: int = 0, max_doms: int = 40, max_pulses: int = 12
) -> EventBatch:
    """Draw a labelled batch without physics; the same seed gives the same batch."""
    return assemble(random_events(n_events, seed, max_doms, max_pulses))


def random_direction(rng: np.random.Generator) -> np.ndarray:
    """Draw an isotropic unit vector, (3,) float64."""
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def track_events(
    n_events: int,
    seed: int = 0,
    delay_ns: float = 20.0,
    noise_share: float = 0.0,
    medium: Medium | None = None,
) -> list[Event]:
    """Draw through-going tracks: DOMs within 60 m, hit at the Cherenkov time plus a delay.

    delay_ns: mean of the exponential delay.  noise_share: DOMs hit at random, per true hit.
    medium: delays are of its Pandel density instead, and light has its speed.
    """
    rng = np.random.default_rng(seed)
    return [_track(event_id, rng, delay_ns, noise_share, medium) for event_id in range(n_events)]


def _track(
    event_id: int,
    rng: np.random.Generator,
    delay_ns: float,
    noise_share: float,
    medium: Medium | None,
) -> Event:
    detector = icecube86()
    while True:
        origin = random_direction(rng)
        point = rng.uniform(-250, 250, 3)
        relative = detector.xyz_m - point
        along = relative @ -origin
        distance = np.linalg.norm(relative + along[:, None] * origin, axis=1)
        near = np.flatnonzero((distance < 60) & (rng.random(len(along)) < 0.7))
        if len(near) >= 12 and np.ptp(along[near]) > 400:
            break
    cherenkov = np.arccos(1 / (medium.n_phase if medium else N_PHASE))
    n_group = medium.n_group if medium else N_GROUP
    bracket = n_group / np.sin(cherenkov) - 1 / np.tan(cherenkov)
    times = 10_000 + (along + bracket * distance) / C_M_PER_NS
    doms = {}
    for sensor in near:
        n_pulses = 1 + rng.poisson(0.4)
        delays = np.sort(rng.exponential(delay_ns, n_pulses))
        if medium:
            shape = distance[sensor] / medium.scattering_m
            delays = np.sort(rng.gamma(shape, 1 / medium.delay_rate, n_pulses))
        doms[int(sensor)] = DomHits(
            int(sensor),
            (times[sensor] + delays).round(),
            np.full(len(delays), 1.025),
            np.zeros(len(delays), bool),
        )
    for sensor in rng.choice(detector.n_sensors, int(noise_share * len(near)), replace=False):
        doms[int(sensor)] = DomHits(
            int(sensor),
            rng.uniform(6000, 16000, 1).round(),
            np.array([0.525]),
            np.array([True]),
        )
    return Event(event_id, [doms[key] for key in sorted(doms)], origin)


def track_event_batch(
    n_events: int, seed: int = 0, delay_ns: float = 20.0, noise_share: float = 0.0
) -> EventBatch:
    """Draw a labelled batch of through-going tracks; the same seed gives the same batch."""
    return assemble(track_events(n_events, seed, delay_ns, noise_share))
