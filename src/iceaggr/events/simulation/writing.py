"""Writing simulated events so that a crash half-way never looks complete."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow.parquet as pq

from iceaggr.events.raw_folder import CHECKED, RawFolder
from iceaggr.events.simulation.block import SimulatedEvents, join_events
from iceaggr.events.simulation.config import N_EVENT_IDS_PER_SEED, SimulationConfig
from iceaggr.events.simulation.layout import (
    PULSE_SCHEMA,
    geometry_csv,
    meta_table,
    pulse_table,
    truth_table,
)
from iceaggr.interfaces import ObjectStore

MARKER = "simulation.json"
"""Written first: says that the folder is a simulation's own, with all its settings."""
_N_PULSES_PER_ROW_GROUP = 1_000_000


class RawWriter:
    """Writes batch files as events arrive and the meta file last, when all are in place.

    Memory holds one row group of pulses and the labels of one batch file.
    """

    def __init__(
        self, store: ObjectStore, out_uri: str, config: SimulationConfig, scratch: Path
    ) -> None:
        self._folder = RawFolder(store, out_uri, scratch, labelled=config.labels)
        self._config = config
        self._scratch = scratch
        self._pulses: pq.ParquetWriter | None = None
        self._waiting: list[SimulatedEvents] = []
        self._labels: list[SimulatedEvents] = []
        self._n_in_file = 0
        self._n_written = 0
        self.n_files = 0

    def __enter__(self) -> Self:
        settings = self._config.model_dump(exclude={"n_processes"})
        self._folder.claim(MARKER, settings, geometry_csv())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pulses is not None:
            self._pulses.close()
        self._folder.__exit__(kind, error, trace)

    def add(self, events: SimulatedEvents) -> None:
        """Append events, closing batch files as they fill."""
        while len(events.n_pulses):
            room = self._config.n_events_per_file - self._n_in_file
            part = events.head(room)
            events = events.tail(room)
            self._waiting.append(part)
            self._labels.append(part.without_pulses())
            self._n_in_file += len(part.n_pulses)
            if self._n_in_file == self._config.n_events_per_file:
                self._close_file()
            elif sum(len(p.time_ns) for p in self._waiting) >= _N_PULSES_PER_ROW_GROUP:
                self._flush_pulses()

    def finish(self) -> None:
        """Close the last batch file and publish the meta file: only now the data are complete."""
        if self._n_in_file:
            self._close_file()
        self._folder.finish()

    def _batch_name(self) -> str:
        return f"batch_{self.n_files + 1}.parquet"

    def _event_ids(self, last: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        start = self._config.seed * N_EVENT_IDS_PER_SEED + last - n
        return np.arange(start, start + n, dtype=np.int64)

    def _flush_pulses(self) -> None:
        events = join_events(self._waiting)
        self._waiting = []
        self._n_written += len(events.n_pulses)
        if self._pulses is None:
            self._pulses = pq.ParquetWriter(
                self._scratch / self._batch_name(), PULSE_SCHEMA, **CHECKED
            )
        event_id = self._event_ids(self._n_written, len(events.n_pulses))
        self._pulses.write_table(pulse_table(events, event_id))

    def _close_file(self) -> None:
        if self._waiting:
            self._flush_pulses()
        assert self._pulses is not None, "a batch file holds at least one event"
        self._pulses.close()
        self._pulses = None
        events, self._labels = join_events(self._labels), []
        event_id = self._event_ids(self._n_written, len(events.n_pulses))
        path = self._scratch / self._batch_name()
        self._folder.publish(path)
        if self._config.labels:
            truth = truth_table(events, event_id)
            pq.write_table(truth, path, **CHECKED)
            self._folder.publish_truth(path)
        self.n_files += 1
        self._folder.append_meta(meta_table(events, event_id, self.n_files, self._config.labels))
        self._n_in_file = 0
