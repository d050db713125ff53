"""The verb as a user meets it: what it says, what it asks, which flag an error names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from iceaggr.cli import app
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError, RawDataError
from tests.events.conversion.foreign_files import frames, write_sqlite
from tests.events.raw_layout import write_raw_layout


def run(*arguments: object, answer: str = "") -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def out(tmp_path: Path) -> str:
    return (tmp_path / "raw").as_uri()


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events of straight tracks whose truth names the direction of travel."""
    folder = tmp_path_factory.mktemp("tracks")
    write_raw_layout(folder / "raw", n_files=1, n_events_per_file=300)
    meta = pd.read_parquet(folder / "raw" / "train_meta.parquet")
    pulses = pd.read_parquet(folder / "raw" / "train" / "batch_1.parquet").reset_index()
    for axis, values in zip("xyz", icecube86().xyz_m[pulses["sensor_id"]].T, strict=True):
        pulses[f"sensor_pos_{axis}"] = values
    truth = meta[["event_id"]].assign(
        azimuth=(meta["azimuth"].astype(float) + np.pi) % (2 * np.pi),
        zenith=np.pi - meta["zenith"].astype(float),
    )
    return write_sqlite(folder / "tracks.db", pulses, truth)


def test_dry_run_tells_every_column_and_writes_nothing(tmp_path: Path, out: str) -> None:
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses.drop(columns="charge").assign(width=8), truth)
    said = run(path, "--out", out, "--dry-run")
    for words in ("time_ns [ns]", "width", "ignored", "charge: absent", "nothing was written"):
        assert words in said
    assert not (tmp_path / "raw").exists()


def test_labels_that_point_elsewhere_are_refused_before_anything_is_written(
    tracks: Path, tmp_path: Path, out: str
) -> None:
    with pytest.raises(
        RawDataError, match=r"do not point.*--label-reading particle;.*--accept-lab"
    ):
        run(tracks, "--out", out)
    assert not (tmp_path / "raw").exists()
    run(tracks, "--out", out, "--direction", "particle")
    with pytest.raises(RawDataError, match="with --label-reading particle; if"):
        run(tracks, "--out", f"{out}2", "--direction", "particle", "--label-reading", "mirror_z")
    run(tracks, "--out", f"{out}2", "--accept-labels")


@pytest.mark.parametrize("answer", ["", "n\n", "\n", "what?\n"])
def test_nothing_is_written_without_a_yes(tmp_path: Path, out: str, answer: str) -> None:
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses.drop(columns="charge"), truth)
    with pytest.raises(ConfigError, match=r"not converted.*answer.*--yes"):
        run(path, "--out", out, answer=answer)
    assert not (tmp_path / "raw").exists()
    run(path, "--out", out, answer="y\n")
    run(path, "--out", f"{out}2", "--yes", answer=answer)


def test_labels_that_cannot_be_judged_are_told(tmp_path: Path, out: str, tracks: Path) -> None:
    said = run(write_sqlite(tmp_path / "a.db", *frames()), "--out", out)
    assert "warning: labels could not be judged: a line fit solves" in said
    assert "30 are the least" in said
    assert "could not be judged" not in run(tracks, "--out", f"{out}2", "--direction", "particle")


def test_a_mapping_says_what_the_flags_say(tmp_path: Path, out: str) -> None:
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses.rename(columns={"t": "when"}), truth, ("A", "B"))
    mapping = tmp_path / "names.yaml"
    mapping.write_text("pulses: A\ntruth: B\ncolumns: {time_ns: when}\nlabel_reading: [particle]\n")
    run(path, "--out", out, "--mapping", mapping)
    meta = pd.read_parquet(tmp_path / "raw" / "train_meta.parquet").set_index("event_id")
    zenith = truth.set_index("event_no")["initial_state_zenith"]
    np.testing.assert_allclose(meta["zenith"], np.pi - zenith.sort_index())


@pytest.mark.parametrize(
    "text",
    [
        "colums: {a: b}",
        "columns: [a]",
        "columns: {time_ns: 3}",
        "direction: up",
        "[",
        "just a word",
    ],
)
def test_a_mapping_that_is_none_is_refused_by_its_flag(tmp_path: Path, out: str, text: str) -> None:
    path = write_sqlite(tmp_path / "a.db", *frames())
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"--mapping .*names.yaml"):
        run(path, "--out", out, "--mapping", tmp_path / "names.yaml")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--column", "time_ns"], r"--column time_ns\]"),
        (["--column", "time_ns=t", "--column", "time_ns=q"], "given twice"),
        (["--unit", "time="], r"--unit time="),
        (["--label-reading", "backwards"], "--label-reading backwards"),
        (["--geometry", "none.csv"], r"--geometry none.csv"),
    ],
)
def test_errors_name_the_flag_that_was_given(
    tmp_path: Path, out: str, flags: list[str], words: str
) -> None:
    path = write_sqlite(tmp_path / "a.db", *frames())
    with pytest.raises(Exception, match=words) as caught:
        run(path, "--out", out, *flags)
    assert type(caught.value).__module__ == "iceaggr.errors"
    assert not (tmp_path / "raw").exists()
