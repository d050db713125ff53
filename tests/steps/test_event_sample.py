"""Labels of another convention: stopped by the statistics step, read as declared, or accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from iceaggr.errors import RawDataError
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.shards.manifest import parse_manifest
from iceaggr.storage import open_store
from tests.bad_input.scene import iceaggr

N_FILES = 3


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "raw"
    config = SimulationConfig(n_events=1500, n_events_per_file=500, cascade_share=0.1)
    simulate(open_store(), folder.as_uri(), config)
    return folder


class Run:
    """A run over the simulated events with labels that were changed."""

    def __init__(self, raw: Path, folder: Path) -> None:
        self.raw, self.folder = raw, folder
        self.n_runs = 0

    def relabel(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        path = self.raw / "train_meta.parquet"
        change(pd.read_parquet(path)).to_parquet(path, index=False)

    def shard_and_count(self, **data: object) -> str:
        """Give `iceaggr shard` and `iceaggr stats` in a folder of their own; gives the card."""
        self.n_runs += 1
        config = self.last.with_suffix(".yaml")
        config.write_text(yaml.safe_dump({"data": {"n_events_per_shard": 200, **data}}))
        work = (self.folder / "work").as_uri()
        places = ["--folder", str(self.last), "--raw-uri", self.raw.as_uri(), "--work-uri", work]
        iceaggr("shard", *places, "--config", str(config))
        iceaggr("stats", "--folder", str(self.last))
        return (self.last / "data_card.html").read_text()

    @property
    def last(self) -> Path:
        return self.folder / f"run-{self.n_runs}"

    def shards(self) -> set[str]:
        """Name the contents of the shards of the last run."""
        unit = self.last / "units" / "00000.json"
        return {entry.blake3 for entry in parse_manifest(unit.read_text(), str(unit)).shards}


@pytest.fixture
def run(simulated: Path, tmp_path: Path) -> Run:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("train", "sensor_geometry.csv"):
        (raw / name).symlink_to(simulated / name)
    (raw / "train_meta.parquet").write_bytes((simulated / "train_meta.parquet").read_bytes())
    return Run(raw, tmp_path)


@pytest.mark.parametrize("n_events", [5, 12])
def test_splits_of_no_event_or_one_are_refused_at_planning(run: Run, n_events: int) -> None:
    with pytest.raises(RawDataError, match="too few events for the split") as caught:
        run.shard_and_count(n_events=n_events, split_salt="few")
    assert f"{n_events} events: train " in str(caught.value.found)
    assert "Give 92 events or more" in caught.value.remedy
    assert not (run.folder / "work" / "shards").exists()


def test_few_train_events_are_told(run: Run) -> None:
    assert "too few to learn from" in run.shard_and_count(n_events=100)


def of_the_particle(meta: pd.DataFrame) -> pd.DataFrame:
    azimuth = np.mod(meta["azimuth"] + np.pi, 2 * np.pi)
    return meta.assign(azimuth=azimuth, zenith=np.pi - meta["zenith"])


def test_particle_labels_stop_the_run_until_they_are_declared(run: Run) -> None:
    sound = run.shard_and_count()
    assert "Labels against the line fit" in sound
    assert "Check: " not in sound
    run.relabel(of_the_particle)
    with pytest.raises(RawDataError) as caught:
        run.shard_and_count()
    assert "of 3 raw files" in caught.value.where
    assert "the direction is where the particle travels to" in str(caught.value.found)
    assert "data.label_reading: [particle]" in caught.value.remedy
    card = run.shard_and_count(label_reading=["particle"])
    assert "Read as <code>data.label_reading: [particle]</code>" in card
    manifest = parse_manifest((run.last / "manifest.json").read_text(), "manifest")
    assert manifest.label_reading == ("particle",)


def test_shards_of_one_reading_are_not_taken_for_another(run: Run) -> None:
    run.shard_and_count()
    plain = run.shards()
    with pytest.raises(RawDataError, match=r"data\.label_reading: \[\] and shard again"):
        run.shard_and_count(label_reading=["mirror_z"])
    assert not plain & run.shards()


def test_accepted_labels_are_told_and_their_shards_are_reused(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.relabel(of_the_particle)
    with pytest.raises(RawDataError, match="do not point the way"):
        run.shard_and_count()
    card = run.shard_and_count(accept_label_reading=True)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert "3 raw files: 3 sharded before" in last_line
    assert "warning: labels were accepted" in last_line
    assert "Check: labels were accepted" in card


def test_one_file_of_other_labels_is_named(run: Run) -> None:
    def change(meta: pd.DataFrame) -> pd.DataFrame:
        return of_the_particle(meta).where(meta["batch_id"] == 2, meta)

    run.relabel(change)
    with pytest.raises(RawDataError) as caught:
        run.shard_and_count()
    assert "train/batch_2.parquet" in caught.value.where
    assert "Write the labels of this file like those of the others" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "example", "words"),
    [
        (
            lambda m: m.assign(
                azimuth=np.where(m["azimuth"] > np.pi, -1, 0) * 2 * np.pi + m.azimuth
            ),
            "such as azimuth -",
            "azimuth_from_minus_pi",
        ),
        (
            lambda m: m.assign(azimuth=np.rad2deg(m.azimuth), zenith=np.rad2deg(m.zenith)),
            "such as azimuth ",
            "degrees",
        ),
    ],
    ids=["signed", "degrees"],
)
def test_labels_out_of_range_are_told_by_value_and_read_as_declared(
    run: Run, change: Callable[[pd.DataFrame], pd.DataFrame], example: str, words: str
) -> None:
    sound = run.shard_and_count()
    run.relabel(change)
    with pytest.raises(RawDataError) as caught:
        run.shard_and_count()
    assert example in str(caught.value.found)
    assert " rad, zenith " in str(caught.value.found)
    assert "azimuth from 0 to 2 pi = 6.2832 rad" in str(caught.value.expected)
    assert f"set data.label_reading: [{words}]" in caught.value.remedy
    declared = run.shard_and_count(label_reading=[words])
    assert table_of(declared)[:40] == table_of(sound)[:40]


def table_of(card: str) -> str:
    """Cut out the figures of the first reading, the one in use."""
    return (
        card.partition("Labels against the line fit")[2]
        .partition("</table>")[0]
        .partition("</td><td>")[2]
    )
