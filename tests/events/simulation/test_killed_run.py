import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil


def test_simulation_leaves_no_process_when_it_is_killed(tmp_path: Path) -> None:
    code = (
        "from iceaggr.events.simulation import SimulationConfig, simulate\n"
        "from iceaggr.storage import open_store\n"
        "if __name__ == '__main__':\n"
        f"    simulate(open_store(), {tmp_path.as_uri()!r},"
        " SimulationConfig(n_events=10**6, n_events_per_file=10**6, n_processes=2))\n"
    )
    script = tmp_path / "simulate.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)]) as run:
        try:
            workers = wait_for_workers(run.pid)
        finally:
            run.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def command_line(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def wait_for_workers(parent_id: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = psutil.Process(parent_id).children(recursive=True)
        if sum("spawn_main" in command_line(process) for process in found) == 2:
            time.sleep(2)  # until they are at work
            return found
        time.sleep(0.2)
    raise AssertionError("no worker processes appeared")
