"""The sound raw events that every case damages: two files of 40 events, the same in every run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pandas as pd

from tests.events.raw_layout import write_raw_layout

N_EVENTS_PER_FILE = 40


def write_sound(folder: Path) -> None:
    """Write the raw layout below a folder."""
    write_raw_layout(folder, n_files=2, n_events_per_file=N_EVENTS_PER_FILE)


@cache
def sound_meta() -> pd.DataFrame:
    """Read the meta file of the sound events."""
    with tempfile.TemporaryDirectory() as folder:
        write_sound(Path(folder))
        return pd.read_parquet(Path(folder) / "train_meta.parquet")
