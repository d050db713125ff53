"""Ways in which a process comes to an untimely end, each one for real."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup/memory")
KINDS = ("SIGKILL", "SIGTERM", "oom_kill", "no_memory")
"""Two signals; the kernel's out-of-memory killer in a control group of its own, which is what a
container meets; and allocations that fail, which is what a limited shell meets."""
HANGS_AFTER_S = 90.0
"""A child hangs when it used no processor time for so long; on a busy machine the wall clock says
nothing. One that is never through hangs, too."""
_NEVER_THROUGH_S = 1800.0
_POLL_S = 0.002
_STOPPED_IF_S = 5.0
"""A pause of 2 ms that takes longer than this was none of a busy machine."""
ROOT = Path(__file__).parents[2]


class Child:
    """A forked process that runs one call, with its output in a file.

    memory_bytes: limit of its control group, above what it shares with this process; 0 none.
    address_bytes: limit of the address space it may add; 0 none.
    """

    def __init__(
        self,
        call: Callable[[], object],
        log: Path,
        *,
        memory_bytes: int = 0,
        address_bytes: int = 0,
    ) -> None:
        self._group = _new_group(memory_bytes) if has_cgroups() else None
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _run(call, log, self._group, address_bytes)

    def finish(self) -> int | None:
        """Wait for the end; gives the exit code as `wait` does, None if the child hangs."""
        used_s, idle_s = -1.0, 0.0
        while idle_s < HANGS_AFTER_S and time.monotonic() - self.began < _NEVER_THROUGH_S:
            code = self.wait(time.monotonic() - self.began + 1.0)
            if code is not None:
                return code
            now_s = _processor_seconds(self.pid)
            idle_s = 0.0 if now_s > used_s else idle_s + 1.0
            used_s = now_s
        return None

    def wait(self, within_s: float) -> int | None:
        """Give the exit code, negative for a signal; None if it goes on.

        Time in which this process itself was stopped does not count: its children were, too.
        """
        deadline, latest = self.began + within_s, time.monotonic()
        while latest < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._forget_group()
                return os.waitstatus_to_exitcode(status)
            time.sleep(_POLL_S)
            deadline += max(0.0, time.monotonic() - latest - _STOPPED_IF_S)
            latest = time.monotonic()
        return None

    def end(self, signal_number: int) -> int:
        """Send a signal and give the exit code. Raises: AssertionError if it does not end."""
        os.kill(self.pid, signal_number)
        code = self.finish()
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise AssertionError(f"does not end after signal {signal_number}")
        return code

    def peak_bytes(self) -> int:
        """Measure the greatest memory of its control group so far; 0 without one."""
        return int((self._group / "memory.max_usage_in_bytes").read_text()) if self._group else 0

    def _forget_group(self) -> None:
        self.last_peak_bytes = self.peak_bytes()
        if self._group is not None:
            for _ in range(100):
                try:
                    self._group.rmdir()
                    return
                except OSError:  # the kernel still counts its pages
                    time.sleep(0.01)


def has_cgroups() -> bool:
    """Tell whether this process may make control groups that limit memory."""
    try:
        probe = CGROUP / f"iceaggr-probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def _new_group(memory_bytes: int) -> Path:
    group = CGROUP / f"iceaggr-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    if memory_bytes:
        (group / "memory.limit_in_bytes").write_text(str(memory_bytes))
    return group


def _run(call: Callable[[], object], log: Path, group: Path | None, address_bytes: int) -> None:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        faulthandler.dump_traceback_later(HANGS_AFTER_S - 5, repeat=True)
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
        if address_bytes:
            limit = virtual_bytes() + address_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        call()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        os.write(2, f"error: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _processor_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def virtual_bytes() -> int:
    """Measure the address space of this process."""
    return (
        int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        * resource.getpagesize()
    )
