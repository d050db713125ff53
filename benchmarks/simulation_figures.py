"""Simulate events, measure the speed, and print the comparison with the published figures.

Usage: python benchmarks/simulation_figures.py [N_EVENTS] [SEED]
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import os
import sys
import tempfile

from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.events.simulation.figures import figures_table, measure_figures
from iceaggr.storage import open_store


def cpu_seconds() -> float:
    """Processor time of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Run with one and with two processes, then print speeds and the table."""
    n_events = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    store = open_store()
    with tempfile.TemporaryDirectory() as folder:
        for n_processes in (1, 2):
            config = SimulationConfig(
                n_events=n_events, n_events_per_file=5_000, seed=seed, n_processes=n_processes
            )
            before = cpu_seconds()
            summary = simulate(store, f"file://{folder}/{n_processes}", config)
            per_cpu_second = n_events / (cpu_seconds() - before)
            print(
                f"{n_processes} process(es): {summary.events_per_second:.0f} events/s, "
                f"{per_cpu_second:.0f} per second of processor time"
            )
        print(figures_table(measure_figures(store, f"file://{folder}/2")))


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
