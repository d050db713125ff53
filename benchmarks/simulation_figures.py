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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.events.simulation.ice import Ints
from iceaggr.interfaces import ObjectStore
from iceaggr.storage import open_store

# Summary figures of raw events beside the published ones, each with the band it must stay in.

_QUIET_FROM_NS, _QUIET_TO_NS = 6_000, 9_500
"""Before the trigger and inside every ordinary readout: only noise."""
_EARLY_FIRST_PULSE_NS = 6_900


@dataclass(frozen=True)
class Figure:
    """One published figure and the band that the simulation must stay in."""

    name: str
    published: str
    low: float
    high: float


FIGURES = (
    Figure("pulses per event, 80 % quantile", "about 100", 85, 115),
    Figure("pulses per event, 90 % quantile", "about 144", 120, 170),
    Figure("pulses per event, median of the top tenth", "221", 170, 290),
    Figure("pulses per event, mean", "164", 100, 240),
    Figure("share of events above 1000 pulses, %", "1.124", 0.7, 1.6),
    Figure("pulses per event, smallest", "about 5", 5, 40),
    Figure("auxiliary share of pulses", "0.28", 0.20, 0.36),
    Figure("auxiliary pulses per event, mean", "46 (0.28 x 164)", 36, 56),
    Figure("sensors with one pulse, share", "0.78", 0.72, 0.84),
    Figure("sensors with 2-3 pulses, share", "0.16", 0.12, 0.20),
    Figure("sensors with 4-10 pulses, share", "0.04", 0.02, 0.065),
    Figure("sensors with more than 10 pulses, share", "0.02", 0.01, 0.04),
    Figure("time, first quartile, ns", "10545", 10_000, 11_100),
    Figure("time, median, ns", "11760", 10_800, 12_600),
    Figure("time, third quartile, ns", "13764", 12_400, 15_000),
    Figure("time, smallest, ns", "5714", 5_690, 5_800),
    Figure("time, largest, ns", "77785 to 84577", 60_000, 100_000),
    Figure("first pulse, first quartile, ns", "5973", 5_920, 6_020),
    Figure("first pulse, median, ns", "6129", 6_060, 6_200),
    Figure("first pulse, third quartile, ns", "6405", 6_300, 6_520),
    Figure("first pulse, mean, ns", "6748", 6_550, 6_950),
    Figure("charge, smallest, p.e.", "0.025", 0.025, 0.025),
    Figure("charge, largest, p.e.", "2762", 800, 2_900),
    Figure("charge, mean, p.e.", "3.9", 2.0, 7.0),
    Figure("dark hits in 12 us", "36 (derived)", 30, 42),
)
"""Source: public notebooks on the competition data and its description; see docs/simulation.md."""


def measure_figures(store: ObjectStore, raw_uri: str) -> dict[str, float]:
    """Measure every figure of FIGURES on a labelled raw folder, all files together.

    Memory holds all pulses of the folder: meant for samples of up to a million events.
    """
    raw_uri = raw_uri.rstrip("/")
    meta = _read(store, f"{raw_uri}/train_meta.parquet")
    n_files = int(meta["batch_id"].to_numpy().max())
    pulses = pa.concat_tables(
        _read(store, f"{raw_uri}/train/batch_{k + 1}.parquet") for k in range(n_files)
    )
    n_pulses = meta["last_pulse_index"].to_numpy() - meta["first_pulse_index"].to_numpy() + 1
    columns = {name: pulses[name].to_numpy() for name in ("time", "charge", "auxiliary")}
    event = np.repeat(np.arange(len(n_pulses)), n_pulses)
    per_sensor = _pulses_per_sensor(event, pulses["sensor_id"].to_numpy().astype(np.int64))
    values = [
        *_sizes(n_pulses),
        float(columns["auxiliary"].mean()),
        float(columns["auxiliary"].sum() / len(n_pulses)),
        *per_sensor,
        *_times(columns["time"], n_pulses),
        *_charges(columns["charge"]),
        _dark_hits(columns["time"], n_pulses),
    ]
    return dict(zip((figure.name for figure in FIGURES), values, strict=True))


def figures_table(measured: dict[str, float]) -> str:
    """Lay out the comparison as a Markdown table: published, measured, band, within."""
    lines = ["| figure | published | simulated | band | within |", "|---|---|---|---|---|"]
    for figure in FIGURES:
        value = measured[figure.name]
        within = "yes" if figure.low <= value <= figure.high else "**no**"
        digits = f"{value:.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
        band = f"{figure.low:g} to {figure.high:g}"
        lines.append(f"| {figure.name} | {figure.published} | {digits} | {band} | {within} |")
    return "\n".join(lines)


def _read(store: ObjectStore, uri: str) -> pa.Table:
    with store.open_input(uri) as source:
        return pq.read_table(source)


def _sizes(n_pulses: Ints) -> list[float]:
    p80, p90, p95 = np.quantile(n_pulses, [0.8, 0.9, 0.95]).tolist()
    large = 100.0 * float((n_pulses > 1000).mean())
    return [p80, p90, p95, float(n_pulses.mean()), large, float(n_pulses.min())]


def _pulses_per_sensor(event: Ints, sensor_id: Ints) -> list[float]:
    _, n = np.unique(event * 10_000 + sensor_id, return_counts=True)
    return [
        float((n == 1).mean()),
        float(((n >= 2) & (n <= 3)).mean()),
        float(((n >= 4) & (n <= 10)).mean()),
        float((n > 10).mean()),
    ]


def _times(time_ns: Ints, n_pulses: Ints) -> list[float]:
    first = time_ns[np.cumsum(n_pulses) - n_pulses]
    quartiles = [0.25, 0.5, 0.75]
    return [
        *np.quantile(time_ns, quartiles).tolist(),
        float(time_ns.min()),
        float(time_ns.max()),
        *np.quantile(first, quartiles).tolist(),
        float(first.mean()),
    ]


def _charges(charge_pe: npt.NDArray[np.float64]) -> list[float]:
    return [float(charge_pe.min()), float(charge_pe.max()), float(charge_pe.mean())]


def _dark_hits(time_ns: Ints, n_pulses: Ints) -> float:
    first = time_ns[np.cumsum(n_pulses) - n_pulses]
    ordinary = first < _EARLY_FIRST_PULSE_NS
    quiet = (time_ns >= _QUIET_FROM_NS) & (time_ns < _QUIET_TO_NS)
    counted = int((quiet & np.repeat(ordinary, n_pulses)).sum())
    share_of_12_us = (_QUIET_TO_NS - _QUIET_FROM_NS) / 12_000
    return counted / max(int(ordinary.sum()), 1) / share_of_12_us


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
                preset="easy",
                n_events=n_events,
                n_events_per_file=5_000,
                seed=seed,
                n_processes=n_processes,
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
