"""Cutting and joining DomEvents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from iceaggr.events.dom_events import (
    DOM_NAMES,
    EVENT_NAMES,
    DomEvents,
    EventDoms,
    SortedEvents,
)
from iceaggr.events.schema import PULSE_NAMES

Events = TypeVar("Events", bound=DomEvents | SortedEvents)


def take_range(events: Events, start: int, stop: int) -> Events:
    """Take events [start, stop) without copying pulses."""
    doms = slice(*events.event_dom_offsets[[start, stop]])
    pulses = slice(*events.dom_pulse_offsets[[doms.start, doms.stop]])
    rows = {EVENT_NAMES: slice(start, stop), DOM_NAMES: doms, events.PULSE_FIELDS: pulses}
    return replace(
        events,
        event_dom_offsets=events.event_dom_offsets[start : stop + 1] - doms.start,
        dom_pulse_offsets=events.dom_pulse_offsets[doms.start : doms.stop + 1] - pulses.start,
        **{name: getattr(events, name)[of] for names, of in rows.items() for name in names},
    )


def concatenate(parts: Sequence[DomEvents]) -> DomEvents:
    """Join events end to end; at least one part."""
    if len(parts) == 1:
        return parts[0]
    return with_pulses(parts, _joined(parts, PULSE_NAMES))


def with_pulses(parts: Sequence[EventDoms], pulses: Mapping[str, npt.NDArray[Any]]) -> DomEvents:
    """Join events end to end, at least one part, and give them their pulses.

    pulses: the columns PULSE_NAMES of all parts, (N,) each; they are taken as they are.
    """
    return DomEvents(
        event_dom_offsets=_offsets(
            [part.event_dom_offsets for part in parts], [part.n_doms for part in parts]
        ),
        dom_pulse_offsets=_offsets(
            [part.dom_pulse_offsets for part in parts], [part.n_pulses for part in parts]
        ),
        **_joined(parts, (*EVENT_NAMES, *DOM_NAMES)),
        **pulses,
    )


def _joined(parts: Sequence[EventDoms], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def _offsets(parts: Sequence[np.ndarray], n_rows: Sequence[int]) -> np.ndarray:
    before = np.cumsum([0, *n_rows])
    shifted = [part[:-1] + shift for part, shift in zip(parts, before[:-1], strict=True)]
    return np.concatenate([*shifted, before[-1:]])
