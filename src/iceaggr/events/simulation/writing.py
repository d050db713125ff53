"""Writing simulated events so that a crash half-way never looks complete."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.errors import RawDataError
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
CHECKED = {"write_page_checksum": True}
"""Ranged reads come without any checksum of the store: readers verify those of the pages."""
_N_PULSES_PER_ROW_GROUP = 1_000_000


class RawWriter:
    """Writes batch files as events arrive and the meta file last, when all are in place.

    Memory holds one row group of pulses and the labels of one batch file.
    """

    def __init__(
        self, store: ObjectStore, out_uri: str, config: SimulationConfig, scratch: Path
    ) -> None:
        self._store = store
        self._out_uri = out_uri.rstrip("/")
        self._config = config
        self._scratch = scratch
        self._kind = "train" if config.labels else "test"
        self._meta_path = scratch / "meta.parquet"
        self._meta: pq.ParquetWriter | None = None
        self._pulses: pq.ParquetWriter | None = None
        self._waiting: list[SimulatedEvents] = []
        self._labels: list[SimulatedEvents] = []
        self._n_in_file = 0
        self._n_written = 0
        self.n_files = 0

    def __enter__(self) -> Self:
        self._claim_folder()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in (self._pulses, self._meta):
            if writer is not None:
                writer.close()

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
        assert self._meta is not None, "a simulation writes at least one event"
        self._meta.close()
        self._meta = None
        self._store.upload(self._meta_path, self._uri(f"{self._kind}_meta.parquet"))

    def _uri(self, name: str) -> str:
        return f"{self._out_uri}/{name}"

    def _batch_name(self) -> str:
        return f"batch_{self.n_files + 1}.parquet"

    def _claim_folder(self) -> None:
        """Take an empty folder or the rest of an interrupted simulation, never anything else."""
        present = [found.uri for found in self._store.list(self._out_uri + "/")]
        if self._uri(f"{self._kind}_meta.parquet") in present:
            raise RawDataError(
                "folder already holds complete raw events",
                where=self._out_uri,
                found=f"{self._kind}_meta.parquet",
                expected="an empty folder",
                remedy="Choose another folder or delete this one",
            )
        own_folders = (self._uri(f"{self._kind}/"), self._uri("truth/"))
        leftovers = [uri for uri in present if uri.startswith(own_folders)]
        if leftovers and self._uri(MARKER) not in present:
            raise RawDataError(
                "folder holds files that no simulation wrote",
                where=self._out_uri,
                found=leftovers[0],
                expected="an empty folder",
                remedy="Choose another folder",
            )
        for uri in leftovers:
            self._store.delete(uri)
        settings = self._config.model_dump(exclude={"n_processes"})
        self._store.write_bytes(self._uri(MARKER), json.dumps(settings, indent=1).encode())
        self._store.write_bytes(self._uri("sensor_geometry.csv"), geometry_csv())

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
        self._publish(self._batch_name(), self._kind)
        if self._config.labels:
            truth = truth_table(events, event_id)
            pq.write_table(truth, self._scratch / self._batch_name(), **CHECKED)
            self._publish(self._batch_name(), "truth")
        self.n_files += 1
        self._append_meta(meta_table(events, event_id, self.n_files, self._config.labels))
        self._n_in_file = 0

    def _append_meta(self, table: pa.Table) -> None:
        """Add one row group: a reader of one batch file reads only its own."""
        if self._meta is None:
            self._meta = pq.ParquetWriter(self._meta_path, table.schema, **CHECKED)
        self._meta.write_table(table, row_group_size=max(table.num_rows, 1))

    def _publish(self, name: str, folder: str) -> None:
        self._store.upload(self._scratch / name, self._uri(f"{folder}/{name}"))
        (self._scratch / name).unlink()
