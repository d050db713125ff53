"""Runs the whole pipeline several times in one process and says what each run left in it.

    python -m tests.faults.load '{"raw_uri": ..., "work_uri": ..., "folder": ..., "n": 10}'

Prints one line of JSON: per run the resident memory, what of it the C library has given out and not
got back, open files and sockets, threads, child processes, temporary files and seconds.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch

from tests.faults.pipeline_runs import STEPS, TinyRun


class _Heap(ctypes.Structure):
    """What mallinfo2 tells of all heaps of the process (glibc 2.33 and later), in bytes."""

    _fields_: ClassVar[list[tuple[str, type]]] = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def traces() -> dict[str, float]:
    """Measure what this process holds, once what it does not need is given back."""
    gc.collect()
    library = ctypes.CDLL(None)
    library.malloc_trim(0)
    library.mallinfo2.restype = _Heap
    heap = library.mallinfo2()
    process = psutil.Process()
    descriptors = _open_descriptors()
    n_sockets = sum(name.startswith("socket:") for name in descriptors)
    return {
        "resident_mib": process.memory_info().rss / 2**20,
        "held_mib": (heap.uordblks + heap.hblkhd) / 2**20,
        "python_blocks": sys.getallocatedblocks(),
        "open_files": len(descriptors) - n_sockets,
        "open_sockets": n_sockets,
        "threads": threading.active_count(),
        "child_processes": len(process.children(recursive=True)),
        "temporary_files": len(_temporary_files()),
    }


def _open_descriptors() -> list[str]:
    """Name what each open descriptor leads to; the one that lists them is closed by then."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def _temporary_files() -> list[str]:
    """List what is ours: torch makes one empty folder per user and keeps it."""
    names = os.listdir(tempfile.gettempdir())
    return [name for name in names if not name.startswith("torchinductor_")]


def main(settings: dict[str, Any]) -> None:
    """Run the pipeline n times on the same raw events."""
    torch.set_num_threads(1)
    told = []
    for number in range(settings["n"]):
        began = time.monotonic()
        run = TinyRun(
            settings["raw_uri"],
            settings["work_uri"],
            Path(settings["folder"]) / f"run-{number}",
            f"load-{number}-{uuid.uuid4().hex}",
            tracked=True,
            model_name=settings["model_name"],
        )
        run.run(STEPS)
        told.append({**traces(), "seconds": time.monotonic() - began})
    print(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
