"""A small set in NuBench's layouts, written as the benchmark writes it: tracks in IceCube-86."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from iceaggr.detector import icecube86
from tests.events.raw_layout import event_table, pulse_table

TABLES = ("mc_truth", "merged_photons", "pulses_no_noise")


def nubench_frames(n_events: int = 300, seed: int = 0, particle: bool = False) -> dict:
    """Build the three tables and both selections; 10 events are in neither.

    particle: the truth names the direction of flight, not where the neutrino came from.
    """
    rng = np.random.default_rng(seed)
    meta = event_table(rng, 1, n_events, 40)
    pulses = pulse_table(rng, meta).reset_index()
    sensors = icecube86()
    rows = pulses["sensor_id"].to_numpy(np.int64)
    photons = pd.DataFrame(
        {
            **{f"sensor_pos_{a}": sensors.xyz_m[rows, k] for k, a in enumerate("xyz")},
            "sensor_string_id": sensors.string_id[rows],
            "sensor_id": rows,
            "charge": pulses["charge"].astype(float),
            "t": pulses["time"] + rng.uniform(-0.4, 0.4, len(pulses)),
            "event_no": pulses["event_id"],
        }
    )
    azimuth, zenith = (meta[name].to_numpy(float) for name in ("azimuth", "zenith"))
    if particle:
        azimuth, zenith = (azimuth + np.pi) % (2 * np.pi), np.pi - zenith
    kind = np.where(rng.random(n_events) < 0.5, 14, -14)
    truth = pd.DataFrame(
        {
            "interaction": rng.integers(1, 3, n_events),
            "initial_state_energy": rng.uniform(100, 1e4, n_events),
            "initial_state_type": kind,
            "initial_state_zenith": zenith,
            "initial_state_azimuth": azimuth,
            **{f"initial_state_{a}": rng.normal(0, 200, n_events) for a in "xyz"},
            "bjorken_x": rng.random(n_events),
            "bjorken_y": rng.random(n_events),
            "visible_inelasticity": rng.random(n_events),
            "muon_zenith": zenith,
            "muon_azimuth": azimuth,
            "event_no": meta["event_id"],
        }
    )
    ids = rng.permutation(truth["event_no"].to_numpy())
    n_test = n_events // 4
    selections = {"test": ids[:n_test], "train": ids[n_test:-10]}
    is_signal = ~pulses["auxiliary"].to_numpy()
    tables = {"mc_truth": truth, "merged_photons": photons, "pulses_no_noise": photons[is_signal]}
    return {"tables": tables, "selections": selections}


def write_nubench(folder: Path, frames: dict, layout: str, n_parts: int = 5) -> Path:
    """Write a set; layout: sqlite or parquet."""
    (folder / "selections").mkdir(parents=True)
    for split, ids in frames["selections"].items():
        table = pd.DataFrame({"event_no": ids})
        table.to_parquet(folder / "selections" / f"{split}_selection.parquet")
    write_nubench_geometry(folder / "geometry.parquet")
    (folder / "merged").mkdir()
    if layout == "sqlite":
        with closing(sqlite3.connect(folder / "merged" / "merged.db")) as connection:
            for name, table in frames["tables"].items():
                table.to_sql(name, connection, index=False)
                connection.execute(f"CREATE INDEX event_no_{name} ON {name} (event_no)")
            connection.commit()
        return folder
    ids = np.array_split(frames["tables"]["mc_truth"]["event_no"].to_numpy(), n_parts)
    for name, table in frames["tables"].items():
        (folder / "merged" / name).mkdir()
        for number, own in enumerate(ids):
            part = table[table["event_no"].isin(own)].set_index("event_no")
            part.to_parquet(folder / "merged" / name / f"{name}_{number}.parquet")
    return folder


def write_nubench_geometry(path: Path) -> None:
    """Write the sensor table as GraphNeT has it."""
    table = icecube86()
    columns = {f"sensor_pos_{a}": table.xyz_m[:, k] for k, a in enumerate("xyz")}
    columns |= {"sensor_string_id": table.string_id.astype(float), "sensor_id": table.sensor_id}
    columns |= {"t": 0} | {a: table.xyz_m[:, k] for k, a in enumerate("xyz")}
    pd.DataFrame(columns).to_parquet(path)
