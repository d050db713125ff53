"""Synthetic tracks through the real detector, and a model whose direction is the line fit's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import icecube86
from iceaggr.reconstruction.line_fit import line_fit


def track_batch(n_events: int, seed: int, first_event_id: int = 0) -> EventBatch:
    """Make isotropic tracks: the DOMs within 130 m of each, one to three pulses per DOM."""
    rng = np.random.default_rng(seed)
    xyz_m = icecube86().xyz_m
    origin = rng.normal(size=(n_events, 3))
    origin /= np.linalg.norm(origin, axis=1, keepdims=True)
    parts = [_track(xyz_m, direction, rng) for direction in origin]
    n_doms = [len(part[0]) for part in parts]
    dom = np.concatenate([part[0] for part in parts])
    per_dom = np.concatenate([part[1] for part in parts])
    time_ns = np.concatenate([part[2] for part in parts])
    n_pulses = len(time_ns)
    return EventBatch(
        event_id=torch.arange(n_events) + first_event_id,
        event_dom_offsets=_offsets(n_doms),
        sensor_idx=torch.from_numpy(dom),
        xyz_m=torch.from_numpy(xyz_m[dom].astype(np.float32)),
        efficiency=torch.ones(len(dom)),
        dom_pulse_offsets=_offsets(per_dom),
        time_ns=torch.from_numpy(time_ns.astype(np.float32)),
        charge_pe=torch.from_numpy(rng.exponential(2.0, n_pulses).astype(np.float32) + 0.025),
        auxiliary=torch.from_numpy(rng.random(n_pulses) < 0.3),
        direction=torch.from_numpy(origin.astype(np.float32)),
    )


def truth_of(batches: list[EventBatch], seed: int = 0) -> pd.DataFrame:
    """Invent a truth for events: energies over four decades, both topologies and currents."""
    event_id = torch.cat([batch.event_id for batch in batches]).numpy()
    rng = np.random.default_rng(seed)
    is_track = rng.random(len(event_id)) < 0.5
    charged = is_track | (rng.random(len(event_id)) < 0.3)
    return pd.DataFrame(
        {
            "event_id": event_id,
            "energy_gev": 10 ** rng.uniform(2, 6, len(event_id)),
            "topology": np.where(is_track, "track", "cascade"),
            "contained": rng.random(len(event_id)) < 0.4,
            "neutrino_muon_angle": np.where(is_track, rng.exponential(0.02, len(event_id)), np.nan),
            "interaction": np.where(charged, "cc", "nc"),
            "flavour": np.where(is_track, 14, -12),
            "inelasticity": rng.random(len(event_id)),
            "muon_azimuth": np.where(is_track, rng.uniform(0, 6.28, len(event_id)), np.nan),
            "muon_zenith": np.where(is_track, rng.uniform(0, 3.14, len(event_id)), np.nan),
            "vertex_x_m": rng.uniform(-500, 500, len(event_id)),
            "vertex_y_m": rng.uniform(-500, 500, len(event_id)),
            "vertex_z_m": rng.uniform(-500, 500, len(event_id)),
            "coincident_muon": rng.random(len(event_id)) < 0.3,
        }
    )


@dataclass(frozen=True)
class Output:
    """The two outputs that evaluation reads."""

    direction: Tensor
    kappa: Tensor


class LineFitModel(nn.Module):
    """Predicts the line fit's direction, turned by a fixed Gaussian error per event."""

    def __init__(self, blur: float = 0.2, kappa: float = 20.0) -> None:
        super().__init__()
        self.blur, self.kappa = blur, kappa

    def forward(self, batch: EventBatch) -> Output:
        noise = torch.stack([_noise(int(event)) for event in batch.event_id])
        direction = line_fit(batch).direction + self.blur * noise
        spread = torch.linspace(0.5, 1.5, batch.n_events)
        return Output(nn.functional.normalize(direction, dim=-1), self.kappa * spread)


def _noise(event_id: int) -> Tensor:
    return torch.randn(3, generator=torch.Generator().manual_seed(event_id))


def _track(
    xyz_m: np.ndarray, origin: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pick DOMs near a track through a random inner point, and times along it plus scatter."""
    relative = xyz_m - rng.uniform(-300.0, 300.0, 3)
    along = relative @ -origin
    distance = np.linalg.norm(relative + along[:, None] * origin, axis=1)
    dom = np.flatnonzero(distance < 130.0)
    dom = np.sort(rng.choice(dom, max(3, len(dom) // 3), replace=False))
    per_dom = rng.integers(1, 4, len(dom))
    first = 10_000.0 + (along[dom] + distance[dom]) / 0.3 + rng.exponential(80.0, len(dom))
    late = [np.sort(np.r_[0.0, rng.exponential(200.0, n - 1)]) for n in per_dom]
    return dom, per_dom, np.concatenate([t + d for t, d in zip(first, late, strict=True)])


def _offsets(counts: np.ndarray | list[int]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
