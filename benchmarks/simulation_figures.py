"""Simulate events, measure the speed, and print the comparison with the published figures.

Usage: python benchmarks/simulation_figures.py [N_EVENTS] [SEED]
"""

from __future__ import annotations

import sys
import tempfile

from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.events.simulation.figures import figures_table, measure_figures
from iceaggr.storage import open_store


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
            summary = simulate(store, f"file://{folder}/{n_processes}", config)
            print(f"{n_processes} process(es): {summary.events_per_second:.0f} events/s")
        print(figures_table(measure_figures(store, f"file://{folder}/2")))


if __name__ == "__main__":
    main()
