"""Synthetic raw files in the competition layout, small and quick: tracks plus noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from iceaggr.detector import icecube86

LIGHT_NS_PER_M = 1.35634 / 0.299792
C_M_PER_NS = 0.299792


def write_raw_layout(
    folder: Path,
    n_files: int = 2,
    n_events_per_file: int = 50,
    seed: int = 0,
    labels: bool = True,
    mean_pulses: int = 60,
    page_checksums: bool = False,
) -> str:
    """Write train/ (or test/ without labels), its meta parquet and the geometry; give the URI.

    As in the public set: batches count from 1, event_id is the pandas index of the pulses, the
    meta index is inclusive, the label points to the origin, charge and angles are float32.
    """
    split = "train" if labels else "test"
    (folder / split).mkdir(parents=True, exist_ok=True)
    metas = []
    for batch_id in range(1, n_files + 1):
        rng = np.random.default_rng([seed, batch_id])
        meta = event_table(rng, batch_id, n_events_per_file, mean_pulses)
        pulse_table(rng, meta).to_parquet(
            folder / split / f"batch_{batch_id}.parquet", write_page_checksum=page_checksums
        )
        metas.append(meta)
    meta = pd.concat(metas, ignore_index=True)
    if not labels:
        meta = meta.drop(columns=["azimuth", "zenith"])
    meta.to_parquet(
        folder / f"{split}_meta.parquet",
        index=False,
        row_group_size=120,
        write_page_checksum=page_checksums,
    )
    write_geometry(folder)
    return folder.absolute().as_uri()


def write_geometry(folder: Path) -> None:
    """Write sensor_geometry.csv as the public set has it: positions only."""
    table = icecube86()
    columns = {"sensor_id": table.sensor_id}
    columns |= {axis: table.xyz_m[:, i] for i, axis in enumerate("xyz")}
    pd.DataFrame(columns).to_csv(folder / "sensor_geometry.csv", index=False)


def event_table(
    rng: np.random.Generator, batch_id: int, n_events: int, mean_pulses: int
) -> pd.DataFrame:
    """Draw the meta rows of one file: log-normal pulse counts, isotropic directions."""
    n_pulses = 5 + rng.lognormal(np.log(mean_pulses) - 0.5, 1.0, n_events).astype(np.int64)
    last = np.cumsum(n_pulses) - 1
    return pd.DataFrame(
        {
            "batch_id": np.full(n_events, batch_id, np.int64),
            "event_id": batch_id * 10_000_000 + np.cumsum(rng.integers(1, 40, n_events)),
            "first_pulse_index": last - n_pulses + 1,
            "last_pulse_index": last,
            "azimuth": rng.uniform(0, 2 * np.pi, n_events).astype(np.float32),
            "zenith": np.arccos(rng.uniform(-1, 1, n_events)).astype(np.float32),
        }
    )


def pulse_table(rng: np.random.Generator, meta: pd.DataFrame) -> pd.DataFrame:
    """Draw the pulses of the events: light of a straight track, and noise anywhere."""
    counts = (meta["last_pulse_index"] - meta["first_pulse_index"] + 1).to_numpy()
    event = np.repeat(np.arange(len(meta)), counts)
    azimuth, zenith = meta["azimuth"].to_numpy(float), meta["zenith"].to_numpy(float)
    origin = np.stack(
        [np.cos(azimuth) * np.sin(zenith), np.sin(azimuth) * np.sin(zenith), np.cos(zenith)], -1
    )
    anchor = rng.normal(0, [150, 150, 200], (len(meta), 3))
    along = rng.uniform(-500, 500, len(event))
    on_track = anchor[event] - along[:, None] * origin[event]
    distance, sensor_id = cKDTree(icecube86().xyz_m).query(
        on_track + rng.normal(0, 25, (len(event), 3))
    )
    is_noise = rng.random(len(event)) < 0.4
    time = 10_000 + along / C_M_PER_NS + distance * LIGHT_NS_PER_M + rng.exponential(60, len(event))
    time = np.where(is_noise, rng.uniform(6_000, 18_000, len(event)), time)
    pulses = pd.DataFrame(
        {
            "sensor_id": np.where(is_noise, rng.integers(0, 5160, len(event)), sensor_id).astype(
                np.int16
            ),
            "time": time.astype(np.int64),
            "charge": (0.025 + 0.05 * rng.geometric(0.05, len(event))).astype(np.float32),
            "auxiliary": is_noise | (rng.random(len(event)) < 0.1),
        }
    ).iloc[np.lexsort((time.astype(np.int64), event))]
    pulses.index = pd.Index(meta["event_id"].to_numpy()[event], name="event_id")
    return pulses
