"""Cutting and joining DomEvents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iceaggr.events.dom_events import DomEvents


def take_range(events: DomEvents, start: int, stop: int) -> DomEvents:
    """Take events [start, stop) without copying pulses."""
    doms = slice(*events.event_dom_offsets[[start, stop]])
    pulses = slice(*events.dom_pulse_offsets[[doms.start, doms.stop]])
    return DomEvents(
        event_id=events.event_id[start:stop],
        azimuth=events.azimuth[start:stop],
        zenith=events.zenith[start:stop],
        event_dom_offsets=events.event_dom_offsets[start : stop + 1] - doms.start,
        sensor_id=events.sensor_id[doms],
        dom_pulse_offsets=events.dom_pulse_offsets[doms.start : doms.stop + 1] - pulses.start,
        time_ns=events.time_ns[pulses],
        charge_pe=events.charge_pe[pulses],
        auxiliary=events.auxiliary[pulses],
    )


def concatenate(
    parts: Sequence[DomEvents], pulses: Mapping[str, npt.NDArray[Any]] | None = None
) -> DomEvents:
    """Join events end to end; at least one part.

    pulses: pulse columns (N,) that the caller joins himself; they are taken as they are.
    """
    if len(parts) == 1 and not pulses:
        return parts[0]
    given = pulses or {}
    columns = {
        name: given[name]
        if name in given
        else np.concatenate([getattr(part, name) for part in parts])
        for name in ("time_ns", "charge_pe", "auxiliary")
    }
    return DomEvents(
        event_id=np.concatenate([part.event_id for part in parts]),
        azimuth=np.concatenate([part.azimuth for part in parts]),
        zenith=np.concatenate([part.zenith for part in parts]),
        event_dom_offsets=_offsets(
            [part.event_dom_offsets for part in parts], [part.n_doms for part in parts]
        ),
        sensor_id=np.concatenate([part.sensor_id for part in parts]),
        dom_pulse_offsets=_offsets(
            [part.dom_pulse_offsets for part in parts], [part.n_pulses for part in parts]
        ),
        **columns,
    )


def _offsets(parts: Sequence[np.ndarray], n_rows: Sequence[int]) -> np.ndarray:
    before = np.cumsum([0, *n_rows])
    shifted = [part[:-1] + shift for part, shift in zip(parts, before[:-1], strict=True)]
    return np.concatenate([*shifted, before[-1:]])
