"""Raw layouts from explicit tables, for tests that need one exact value in one exact place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.events.raw_layout import write_geometry


def pulse_frame(n_pulses: list[int], **columns: object) -> pd.DataFrame:
    """Plain valid pulses of events 100, 101, ...; any column can be replaced."""
    event_id = np.repeat(100 + np.arange(len(n_pulses)), n_pulses)
    n = len(event_id)
    frame = pd.DataFrame(
        {
            "event_id": event_id,
            "sensor_id": np.arange(n, dtype=np.int16) % 5160,
            "time": 10_000 + np.arange(n),
            "charge": np.full(n, 1.025, np.float32),
            "auxiliary": np.arange(n) % 2 == 0,
        }
    )
    return frame.assign(**columns)


def meta_frame(n_pulses: list[int], batch_id: int = 1, **columns: object) -> pd.DataFrame:
    """The meta rows that belong to `pulse_frame`; any column can be replaced."""
    last = np.cumsum(n_pulses) - 1
    frame = pd.DataFrame(
        {
            "batch_id": np.full(len(n_pulses), batch_id),
            "event_id": 100 + np.arange(len(n_pulses)),
            "first_pulse_index": last - np.array(n_pulses) + 1,
            "last_pulse_index": last,
            "azimuth": np.linspace(0.1, 6.0, len(n_pulses)).astype(np.float32),
            "zenith": np.linspace(0.1, 3.0, len(n_pulses)).astype(np.float32),
        }
    )
    return frame.assign(**columns)


def write_raw(
    folder: Path, pulses: pd.DataFrame, meta: pd.DataFrame, **meta_options: object
) -> str:
    """Write one batch file, the meta file and IceCube's geometry; give the URI."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    write_geometry(folder)
    pulses.to_parquet(folder / "train" / "batch_1.parquet", index=False)
    meta.to_parquet(folder / "train_meta.parquet", index=False, **meta_options)
    return folder.absolute().as_uri()
