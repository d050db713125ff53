"""Run a simulation: blocks in worker processes, files written in order by the caller."""

from __future__ import annotations

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
from pathlib import Path

from iceaggr.errors import RawDataError
from iceaggr.events.simulation.block import SimulatedEvents, simulate_block
from iceaggr.events.simulation.config import (
    N_EVENTS_PER_BLOCK,
    SimulationConfig,
    SimulationSummary,
)
from iceaggr.events.simulation.writing import RawWriter
from iceaggr.interfaces import ObjectStore
from iceaggr.machine_errors import MachineError

_BLOCKS_AHEAD = 2


def simulate(
    store: ObjectStore,
    out_uri: str,
    config: SimulationConfig,
    on_progress: Callable[[int], None] | None = None,
) -> SimulationSummary:
    """Write simulated events in the public competition layout below out_uri.

    on_progress receives the number of events simulated so far. The data depend on the
    configuration only, not on the number of processes; more events extend the same data.
    Raises: RawDataError if the folder already holds raw events or a worker process dies;
    StorageError if the store refuses a file.
    """
    began = time.perf_counter()
    n_done = n_pulses = n_tried = n_outside = 0
    with (
        tempfile.TemporaryDirectory(prefix="iceaggr-simulate-") as scratch,
        RawWriter(store, out_uri, config, Path(scratch)) as writer,
    ):
        for events in _blocks(config):
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
        n_events=n_done,
        n_files=n_files,
        n_pulses=n_pulses,
        n_interactions_tried=n_tried,
        n_pulses_outside_readout=n_outside,
        seconds=time.perf_counter() - began,
    )


def _blocks(config: SimulationConfig) -> Iterator[SimulatedEvents]:
    n_blocks = -(-config.n_events // N_EVENTS_PER_BLOCK)
    n_processes = min(config.n_processes or os.cpu_count() or 1, n_blocks)
    if n_processes == 1:
        for block in range(n_blocks):
            yield simulate_block(config, block)
    else:
        yield from _blocks_in_parallel(config, n_blocks, n_processes)


def _blocks_in_parallel(
    config: SimulationConfig, n_blocks: int, n_processes: int
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
                waiting.append(pool.submit(simulate_block, config, block))
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
