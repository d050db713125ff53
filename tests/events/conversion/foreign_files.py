"""One small set of another detector's events, written as other people write theirs."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd

from iceaggr.events.conversion import ConversionSettings, convert, plan_conversion
from iceaggr.events.sources import GivenNames
from iceaggr.storage import open_store

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
N_STRINGS, N_ON_STRING = 4, 6


def sensor_frame() -> pd.DataFrame:
    """All 24 sensors: 4 strings of 6, 50 m apart, ids from 0 on."""
    string, dom = np.divmod(np.arange(N_STRINGS * N_ON_STRING), N_ON_STRING)
    return pd.DataFrame(
        {
            "sensor_id": np.arange(len(string)),
            "sensor_string_id": string,
            "dom": dom,
            "sensor_pos_x": 50.0 * (string % 2),
            "sensor_pos_y": 50.0 * (string // 2),
            "sensor_pos_z": 10.0 * dom - 2000.0,
        }
    )


def frames(n_events: int = 12, first_id: int = 100, seed: int = 0) -> tuple:
    """Pulses and truth in GraphNeT's names; ids out of order, one event without a pulse."""
    rng = np.random.default_rng(seed)
    ids = first_id + rng.permutation(n_events)
    counts = rng.integers(1, 9, n_events)
    counts[-1] = 0
    sensors = sensor_frame().drop(columns="dom").iloc[rng.integers(0, 24, counts.sum())]
    pulses = sensors.reset_index(drop=True).assign(
        t=np.round(rng.uniform(100, 5000, counts.sum())),
        charge=np.round(rng.uniform(0.5, 3, counts.sum()), 3),
        auxiliary=rng.integers(0, 2, counts.sum()),
        event_no=np.repeat(ids, counts),
    )
    truth = pd.DataFrame(
        {
            "event_no": ids,
            "initial_state_azimuth": rng.uniform(0, 2 * np.pi, n_events),
            "initial_state_zenith": rng.uniform(0, np.pi, n_events),
            "initial_state_energy": rng.uniform(10, 1000, n_events),
            "interaction": rng.integers(1, 3, n_events),
            "initial_state_type": 14,
        }
    )
    return pulses.sample(frac=1, random_state=seed, ignore_index=True), truth


def write_sqlite(path: Path, pulses, truth, names=("merged_photons", "mc_truth")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    pulses.to_sql(names[0], connection, index=False)
    truth.to_sql(names[1], connection, index=False)
    connection.close()
    return path


def write_parts(folder: Path, pulses, truth, n_parts: int = 12) -> Path:
    """GraphNeT's Parquet layout: a folder a table, more than ten parts of each."""
    for name, table in (("merged_photons", pulses), ("mc_truth", truth)):
        (folder / name).mkdir(parents=True)
        for k in range(n_parts):
            table.iloc[k::n_parts].to_parquet(folder / name / f"{name}_{k}.parquet", index=False)
    return folder


def write_nested(path: Path, pulses, truth) -> Path:
    """A row an event, as Prometheus writes it; the event has no number."""
    columns = [name for name in pulses.columns if name != "event_no"]
    rows = []
    for event in truth.itertuples():
        own = pulses[pulses["event_no"] == event.event_no]
        label = {name: getattr(event, name) for name in truth.columns if name != "event_no"}
        rows.append({"photons": {n: own[n].tolist() for n in columns}, "mc_truth": label})
    pd.DataFrame(rows).to_parquet(path)
    return path


def settings(columns=None, units=None, pulses="", truth="", **others) -> ConversionSettings:
    names = GivenNames(pulses=pulses, truth=truth, columns=columns or {}, units=units or {})
    return ConversionSettings(names=names, **others)


def converted(out: Path, *inputs: Path, **chosen):
    """Convert, and give (pulses, meta, notes)."""
    plan = plan_conversion(inputs, settings(**chosen))
    notes = convert(open_store(), plan, out.absolute().as_uri())
    kind = "test" if chosen.get("unlabelled") else "train"
    files = sorted((out / kind).iterdir(), key=lambda path: int(path.stem.split("_")[1]))
    return (
        pd.concat([pd.read_parquet(file) for file in files], ignore_index=True),
        pd.read_parquet(out / f"{kind}_meta.parquet"),
        notes,
    )


def expected(pulses, truth):
    """What a correct conversion gives: (pulses, meta) by event, then by time."""
    raw = pd.DataFrame(
        {
            "event_id": pulses["event_no"],
            "sensor_id": pulses["sensor_id"],
            "time": pulses["t"].astype(np.int64),
            "charge": pulses["charge"],
            "auxiliary": pulses["auxiliary"] == 1,
        }
    ).sort_values(["event_id", "time"], kind="stable", ignore_index=True)
    truth = truth.sort_values("event_no", ignore_index=True)
    counts = raw.groupby("event_id").size().reindex(truth["event_no"], fill_value=0).to_numpy()
    last = np.cumsum(counts) - 1
    meta = pd.DataFrame(
        {
            "batch_id": 1,
            "event_id": truth["event_no"],
            "first_pulse_index": last - counts + 1,
            "last_pulse_index": last,
            "azimuth": truth["initial_state_azimuth"],
            "zenith": truth["initial_state_zenith"],
        }
    )
    return raw, meta
