"""Cutting and joining DomEvents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iceaggr.events.dom_events import DomEvents
from iceaggr.events.workspace import Workspace


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


def concatenate(parts: Sequence[DomEvents], workspace: Workspace | None = None) -> DomEvents:
    """Join events end to end; at least one part.

    workspace: memory for the joined pulses; None takes fresh memory.
    """
    if len(parts) == 1:
        return parts[0]

    def pulses(name: str) -> npt.NDArray[Any]:
        columns = [getattr(part, name) for part in parts]
        if workspace is None:
            return np.concatenate(columns)
        out = workspace.array(name, sum(map(len, columns)), np.result_type(*columns))
        return np.concatenate(columns, out=out)

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
        time_ns=pulses("time_ns"),
        charge_pe=pulses("charge_pe"),
        auxiliary=pulses("auxiliary"),
    )


def _offsets(parts: Sequence[np.ndarray], n_rows: Sequence[int]) -> np.ndarray:
    before = np.cumsum([0, *n_rows])
    shifted = [part[:-1] + shift for part, shift in zip(parts, before[:-1], strict=True)]
    return np.concatenate([*shifted, before[-1:]])
