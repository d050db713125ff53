"""Cutting and joining DomEvents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from iceaggr.events.dom_events import PULSE_VALUES, DomEvents, EventDoms, SortedEvents

Events = TypeVar("Events", bound=DomEvents | SortedEvents)


def take_range(events: Events, start: int, stop: int) -> Events:
    """Take events [start, stop) without copying pulses."""
    doms = slice(*events.event_dom_offsets[[start, stop]])
    pulses = slice(*events.dom_pulse_offsets[[doms.start, doms.stop]])
    return replace(
        events,
        event_id=events.event_id[start:stop],
        azimuth=events.azimuth[start:stop],
        zenith=events.zenith[start:stop],
        event_dom_offsets=events.event_dom_offsets[start : stop + 1] - doms.start,
        sensor_id=events.sensor_id[doms],
        dom_pulse_offsets=events.dom_pulse_offsets[doms.start : doms.stop + 1] - pulses.start,
        **{name: getattr(events, name)[pulses] for name in events.PULSE_FIELDS},
    )


def concatenate(parts: Sequence[DomEvents]) -> DomEvents:
    """Join events end to end; at least one part."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in PULSE_VALUES
    }
    return with_pulses(parts, columns)


def with_pulses(parts: Sequence[EventDoms], pulses: Mapping[str, npt.NDArray[Any]]) -> DomEvents:
    """Join events end to end, at least one part, and give them their pulses.

    pulses: the columns PULSE_VALUES of all parts, (N,) each; they are taken as they are.
    """
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
        **pulses,
    )


def _offsets(parts: Sequence[np.ndarray], n_rows: Sequence[int]) -> np.ndarray:
    before = np.cumsum([0, *n_rows])
    shifted = [part[:-1] + shift for part, shift in zip(parts, before[:-1], strict=True)]
    return np.concatenate([*shifted, before[-1:]])
