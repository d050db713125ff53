"""A folder of sound raw events, ways to damage it, and the commands that a user would give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from iceaggr.cli import app
from iceaggr.shards.manifest import ShardManifest, merge_manifests, parse_manifest
from iceaggr.steps.run_folder import RunFolder
from iceaggr.storage import open_store

SETTINGS: dict[str, Any] = {
    "data": {"n_events_per_shard": 16, "validation_share": 0.2, "test_share": 0.2},
    "batches": {"n_events": 16, "n_workers": 0},
    "model": {"d_model": 8, "n_heads": 1, "n_dom_layers": 1, "n_event_layers": 1},
    "training": {"n_epochs": 1, "device": "cpu"},
    "evaluation": {
        "n_bootstrap": 100,
        "likelihood_fit": False,
        "n_displays": 0,
        "refine_events": 0,
    },
}


def iceaggr(*arguments: str) -> None:
    """Run a command of the command line in this process; errors of ours come out as they are."""
    app(list(arguments), standalone_mode=False)


@dataclass
class Scene:
    """Raw events below `raw`, settings, and the folder that the steps of a run share."""

    folder: Path
    experiment_name: str = "iceaggr"

    def __post_init__(self) -> None:
        self.settings = json.loads(json.dumps(SETTINGS))
        self.raw_uri = self.raw.as_uri()

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def batch(self, number: int = 1) -> Path:
        """Name a batch file."""
        return self.raw / "train" / f"batch_{number}.parquet"

    @property
    def meta(self) -> Path:
        return self.raw / "train_meta.parquet"

    @property
    def geometry(self) -> Path:
        return self.raw / "sensor_geometry.csv"

    def write_settings(self) -> Path:
        """Write the settings where the commands read them."""
        path = self.folder / "config.yaml"
        if not path.exists():
            path.write_text(yaml.safe_dump(self.settings))
        return path

    def shard(self) -> None:
        """Give `iceaggr shard`."""
        config = str(self.write_settings())
        options = ["--config", config, "--experiment-name", self.experiment_name]
        iceaggr("shard", "--raw-uri", self.raw_uri, "--folder", str(self.run), *options)

    def shard_and_count(self) -> None:
        """Give `iceaggr shard` and `iceaggr stats`."""
        self.shard()
        self.command("stats")

    def command(self, name: str, *options: str) -> None:
        """Give one of the later commands."""
        iceaggr(name, "--folder", str(self.run), *options)

    def manifest(self) -> ShardManifest:
        """Merge the manifests of all work units, as `iceaggr stats` does."""
        units = RunFolder.open(self.run).unit_manifests()
        return merge_manifests(parse_manifest(path.read_bytes(), path.name) for path in units)

    def quarantine(self) -> pd.DataFrame:
        """Read what was rejected of all files."""
        uris = [file.quarantine_uri for file in self.manifest().source_files if file.quarantine_uri]
        tables = [pq.read_table(open_store().open_input(uri)) for uri in uris]
        return pa.concat_tables(tables).to_pandas()

    # --- damage

    def change_pulses(self, change: Callable[[pd.DataFrame], object], number: int = 1) -> None:
        """Change the pulses of a batch file: `change` edits its frame or returns another."""
        _change(self.batch(number), change)

    def change_meta(self, change: Callable[[pd.DataFrame], object]) -> None:
        """Change the meta file."""
        _change(self.meta, change)

    def set_pulse(self, column: str, value: Any, dtype: Any = None) -> None:
        """Write one value into the third pulse of the first file, without pandas' idea of null."""
        table = pq.read_table(self.batch())
        index = table.column_names.index(column)
        values = table.column(index).to_numpy().copy()
        values = values.astype(dtype) if dtype else values
        values[2] = value
        pq.write_table(table.set_column(index, column, pa.array(values)), self.batch())

    def set_meta(self, column: str, row: int, value: Any) -> None:
        """Write one value into the meta file."""
        self.change_meta(lambda frame: frame.__setitem__(column, _with(frame[column], row, value)))

    def cut(self, path: Path, n_bytes: int = 0) -> None:
        """Cut a file: to half its length, or to so many bytes."""
        data = path.read_bytes()
        path.write_bytes(data[: n_bytes or len(data) // 2])

    def flip(self, path: Path, position: int = -1) -> None:
        """Flip one bit."""
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(bytes(data))

    def edit_geometry(self, change: Callable[[list[str]], object]) -> None:
        """Change the lines of the geometry: `change` edits the list."""
        lines = self.geometry.read_text().splitlines()
        change(lines)
        self.geometry.write_text("\n".join(lines) + "\n")

    def edit_document(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON document of the run's folder."""
        path = self.run / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document, indent=1))

    def copy_batch(self, target: str) -> None:
        """Put the first batch file under another name, beside it."""
        shutil.copyfile(self.batch(), self.batch().with_name(target))


def _change(path: Path, change: Callable[[pd.DataFrame], object]) -> None:
    frame = pq.read_table(path).to_pandas()
    frame = frame.reset_index() if frame.index.name else frame
    changed = change(frame)
    frame = changed if isinstance(changed, pd.DataFrame) else frame
    frame.to_parquet(path, index=False)


def _with(column: pd.Series, row: int, value: Any) -> np.ndarray:
    values = column.to_numpy().copy()
    values[row] = value
    return values
