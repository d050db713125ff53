"""Run a simulation: blocks in worker processes, files written in order by the caller."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.built_in_detectors import BUILT_IN_NAMES
from iceaggr.detector import Detector, medium_of
from iceaggr.errors import DetectorError, MachineError, RawDataError
from iceaggr.events.conversion.sensors import chosen_medium, read_geometry
from iceaggr.events.raw_folder import CHECKED, RawFolder
from iceaggr.events.simulation.block import SimulatedEvents, join_events, simulate_block
from iceaggr.events.simulation.config import (
    N_EVENT_IDS_PER_SEED,
    N_EVENTS_PER_BLOCK,
    SimulationConfig,
    SimulationSummary,
)
from iceaggr.events.simulation.ice import Floats, Ints, site_of
from iceaggr.events.simulation.interactions import NU_NC, inside_array
from iceaggr.events.simulation.nubench_layout import NuBenchWriter
from iceaggr.interfaces import ObjectStore

# Tables of the public competition layout, made from simulated events.


def pulse_schema(detector: Detector) -> pa.Schema:
    """Describe the pulses with the event id as pandas index, as in the competition's files."""
    narrow = int(np.abs(detector.sensor_id).max()) <= np.iinfo(np.int16).max
    empty = pd.DataFrame(
        {
            "sensor_id": np.zeros(0, np.int16 if narrow else np.int64),
            "time": np.zeros(0, np.int64),
            "charge": np.zeros(0, np.float64),
            "auxiliary": np.zeros(0, np.bool_),
        },
        index=pd.Index(np.zeros(0, np.int64), name="event_id"),
    )
    return pa.Schema.from_pandas(empty)


def pulse_table(events: SimulatedEvents, event_id: Ints, schema: pa.Schema) -> pa.Table:
    """Build the rows of a batch file: one per pulse. event_id: (E,) int64."""
    columns = [
        events.sensor_id.astype(schema.field("sensor_id").type.to_pandas_dtype()),
        events.time_ns,
        events.charge_pe,
        events.auxiliary,
        np.repeat(event_id, events.n_pulses),
    ]
    return pa.Table.from_arrays([pa.array(c) for c in columns], schema=schema)


def meta_table(events: SimulatedEvents, event_id: Ints, source_file: int, labels: bool) -> pa.Table:
    """Build the rows of the meta file for one whole batch file; the last index is inclusive."""
    end = np.cumsum(events.n_pulses)
    columns: dict[str, Ints | Floats] = {
        "batch_id": np.full(len(event_id), source_file, dtype=np.int64),
        "event_id": event_id,
        "first_pulse_index": end - events.n_pulses,
        "last_pulse_index": end - 1,
    }
    if labels:
        columns["azimuth"], columns["zenith"] = _angles(events.truth.origin)
    return pa.table(columns)


def truth_table(events: SimulatedEvents, event_id: Ints, detector: Detector) -> pa.Table:
    """Build the rows of the truth file, which only evaluation may read.

    Angles are radians and point to the origin, as the label does; muon columns are NaN for
    cascades. visible_energy_gev is the electromagnetic energy with the light of the cascade, plus,
    for tracks, the energy with which the muon reaches the array. visible_inelasticity is the share
    of what shines at the vertex that hadrons make.
    """
    truth = events.truth
    track = truth.is_track
    muon_azimuth, muon_zenith = _angles(-truth.travel)
    cosine = np.clip(-(truth.origin * truth.travel).sum(axis=1), -1.0, 1.0)
    contained = inside_array(truth.vertex_m, site_of(detector))
    cascade_seen = np.where(track & ~contained, 0.0, truth.cascade_gev)
    nan = math.nan
    coincident_azimuth, coincident_zenith = _angles(events.muon_origin)
    return pa.table(
        {
            "event_id": event_id,
            "energy_gev": truth.energy_gev,
            "topology": np.where(track, "track", "cascade"),
            "interaction": np.where(truth.code == NU_NC, "nc", "cc"),
            "flavour": truth.flavour,
            "vertex_x_m": truth.vertex_m[:, 0],
            "vertex_y_m": truth.vertex_m[:, 1],
            "vertex_z_m": truth.vertex_m[:, 2],
            "contained": contained,
            "inelasticity": truth.inelasticity,
            "visible_inelasticity": truth.hadronic_gev / (truth.cascade_gev + truth.muon_gev),
            "bjorken_x": truth.bjorken_x,
            "visible_energy_gev": cascade_seen + events.muon_at_array_gev,
            "muon_energy_gev": np.where(track, events.muon_at_array_gev, nan),
            "muon_azimuth": np.where(track, muon_azimuth, nan),
            "muon_zenith": np.where(track, muon_zenith, nan),
            "neutrino_muon_angle": np.where(track, np.arccos(cosine), nan),
            "neutrino_pe": events.neutrino_pe,
            "coincident_muon": events.muon_pe > 0,
            "coincident_muon_pe": events.muon_pe,
            "coincident_muon_azimuth": coincident_azimuth,
            "coincident_muon_zenith": coincident_zenith,
        }
    )


def geometry_csv(detector: Detector) -> bytes:
    """Write the sensor table: of IceCube as the competition has it, of others in full."""
    if not site_of(detector).is_icecube:
        return detector.to_csv().encode()
    table = pd.DataFrame(detector.xyz_m, columns=["x", "y", "z"])
    table.insert(0, "sensor_id", detector.sensor_id)
    return table.to_csv(index=False).encode()


def _angles(direction: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    # here and not above: worker processes, which only need the physics, start without torch
    import torch

    from iceaggr.angles import azimuth_zenith

    azimuth, zenith = azimuth_zenith(torch.from_numpy(direction))
    return azimuth.numpy(), zenith.numpy()


# Writing simulated events so that a crash half-way never looks complete.

MARKER = "simulation.json"
"""Written first: says that the folder is a simulation's own, with all its settings."""
_N_PULSES_PER_ROW_GROUP = 1_000_000


class RawWriter:
    """Writes batch files as events arrive and the meta file last, when all are in place.

    Memory holds one row group of pulses and the labels of one batch file.
    """

    def __init__(
        self,
        store: ObjectStore,
        out_uri: str,
        config: SimulationConfig,
        detector: Detector,
        scratch: Path,
    ) -> None:
        self._folder = RawFolder(store, out_uri, scratch, labelled=config.labels)
        self._config = config
        self._detector = detector
        self._schema = pulse_schema(detector)
        self._scratch = scratch
        self._pulses: pq.ParquetWriter | None = None
        self._waiting: list[SimulatedEvents] = []
        self._labels: list[SimulatedEvents] = []
        self._n_in_file = 0
        self._n_written = 0
        self.n_files = 0

    def __enter__(self) -> Self:
        settings = self._config.model_dump(exclude={"n_processes"})
        self._folder.claim(MARKER, settings, geometry_csv(self._detector))
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
                self._scratch / self._batch_name(), self._schema, **CHECKED
            )
        event_id = self._event_ids(self._n_written, len(events.n_pulses))
        self._pulses.write_table(pulse_table(events, event_id, self._schema))

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
            truth = truth_table(events, event_id, self._detector)
            pq.write_table(truth, path, **CHECKED)
            self._folder.publish_truth(path)
        self.n_files += 1
        self._folder.append_meta(meta_table(events, event_id, self.n_files, self._config.labels))
        self._n_in_file = 0


_BLOCKS_AHEAD = 2


def detector_of(config: SimulationConfig) -> Detector:
    """Find the detector that is simulated, in the medium asked for or else in its own.

    Raises: DetectorError if it is no built-in one and no file of a geometry.
    """
    try:
        table = read_geometry(config.detector)
    except DetectorError as error:
        raise error.at(
            f"detector {config.detector}; built-in: {', '.join(BUILT_IN_NAMES)}"
        ) from None
    asked = medium_of(config.medium, "--medium") if config.medium else None
    return replace(table.detector, stated_medium=asked or chosen_medium("", table)[0])


def _writer(
    store: ObjectStore, out_uri: str, config: SimulationConfig, detector: Detector, scratch: Path
) -> RawWriter | NuBenchWriter:
    """Claim the folder for a writer of the layout asked for. Raises: RawDataError."""
    if config.layout == "raw":
        return RawWriter(store, out_uri, config, detector, scratch)

    def described(events: SimulatedEvents, event_id: Ints) -> pa.Table:
        azimuth, zenith = _angles(events.truth.origin)
        own = truth_table(events, event_id, detector)
        return own.append_column("azimuth", [azimuth]).append_column("zenith", [zenith])

    writer = NuBenchWriter(
        store,
        out_uri,
        config.layout,
        detector,
        scratch,
        first_id=config.seed * N_EVENT_IDS_PER_SEED,
        n_events_per_part=config.n_events_per_file,
        seed=config.seed,
        describe=described,
    )
    settings = config.model_dump(exclude={"n_processes"})
    writer.claim(MARKER, json.dumps(settings, indent=1).encode())
    return writer


def simulate(
    store: ObjectStore,
    out_uri: str,
    config: SimulationConfig,
    on_progress: Callable[[int], None] | None = None,
) -> SimulationSummary:
    """Write simulated events in the layout of the configuration below out_uri.

    on_progress receives the number of events simulated so far. The data depend on the
    configuration only, not on the number of processes; more events extend the same data.
    Raises: DetectorError if there is no such detector; RawDataError if the folder already holds
    raw events or a worker process dies; StorageError if the store refuses a file.
    """
    began = time.perf_counter()
    detector = detector_of(config)
    n_done = n_pulses = n_tried = n_outside = 0
    with (
        tempfile.TemporaryDirectory(prefix="iceaggr-simulate-") as scratch,
        _writer(store, out_uri, config, detector, Path(scratch)) as writer,
    ):
        for events in _blocks(config, detector):
            part = events.head(config.n_events - n_done)
            writer.add(part)
            n_done += len(part.n_pulses)
            n_pulses += len(part.time_ns)
            n_tried += part.n_tried
            n_outside += part.n_outside
            if on_progress is not None:
                on_progress(n_done)
        writer.finish()
        n_files = writer.n_files
    return SimulationSummary(
        out_uri=out_uri,
        medium_words=detector.medium_words,
        n_events=n_done,
        n_files=n_files,
        n_pulses=n_pulses,
        n_interactions_tried=n_tried,
        n_pulses_outside_readout=n_outside,
        seconds=time.perf_counter() - began,
    )


def _blocks(config: SimulationConfig, detector: Detector) -> Iterator[SimulatedEvents]:
    n_blocks = -(-config.n_events // N_EVENTS_PER_BLOCK)
    n_processes = min(config.n_processes or os.cpu_count() or 1, n_blocks)
    if n_processes == 1:
        for block in range(n_blocks):
            yield simulate_block(config, detector, block)
    else:
        yield from _blocks_in_parallel(config, detector, n_blocks, n_processes)


def _blocks_in_parallel(
    config: SimulationConfig, detector: Detector, n_blocks: int, n_processes: int
) -> Iterator[SimulatedEvents]:
    """Keep every worker busy, and only a few blocks in memory, in order."""
    # spawn: the caller may have threads (torch, a progress bar), which fork does not survive
    context = multiprocessing.get_context("spawn")
    try:
        pool = ProcessPoolExecutor(
            n_processes, mp_context=context, initializer=_end_with_parent, initargs=(os.getpid(),)
        )
    except OSError as error:
        raise MachineError(
            "processes cannot share memory",
            where="/dev/shm",
            found=str(error),
            expected="a writable /dev/shm with a few MiB",
            remedy="Give the container one (--shm-size=64m), or simulate with --processes 1",
        ) from error
    waiting: deque[Future[SimulatedEvents]] = deque()
    try:
        for block in range(n_blocks):
            with _deaf_children():
                waiting.append(pool.submit(simulate_block, config, detector, block))
            if len(waiting) >= n_processes + _BLOCKS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RawDataError(
            "a simulation process died",
            where="iceaggr.events.simulation",
            found="a process that the system ended",
            expected="all processes to finish",
            remedy="Check the memory (about 0.5 GiB per process) or lower n_processes",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Let processes that the block starts leave Ctrl-C to this one; each would tell it at length.

    The signal is held back meanwhile, not lost: children inherit what is held back.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(parent_id: int) -> None:
    """Let a worker process end when the caller was killed; it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent_id:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
