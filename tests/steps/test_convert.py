"""The verb as a user meets it: what it says, what it asks, which flag an error names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from iceaggr.cli import app
from iceaggr.config import ExperimentConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError, RawDataError
from iceaggr.shards.planning import load_work_unit
from iceaggr.steps.context import RunContext
from iceaggr.steps.convert import run_convert_events, run_plan_conversion
from iceaggr.steps.plan_shards import raw_uri_of, run_plan_shards
from iceaggr.storage import open_store
from tests.events.conversion.foreign_files import frames, write_sqlite
from tests.events.conversion.nubench_files import nubench_frames, write_nubench
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


# In a run: planned, converted in units, gathered by the plan of the shards.


def context_of(folder: Path, run_id: str = "run", **data: object) -> RunContext:
    config = ExperimentConfig.model_validate({"data": data})
    return RunContext(run_id, "test", (folder / "work").as_uri(), config, tracked=False)


@pytest.mark.parametrize("layout", ["sqlite", "parquet"])
def test_a_run_shards_what_its_units_converted(layout: str, tmp_path: Path) -> None:
    folder = write_nubench(tmp_path / "set", nubench_frames(), layout)
    context = context_of(tmp_path)
    units = run_plan_conversion(context, folder.as_uri())
    with pytest.raises(RawDataError, match="conversion is not finished"):
        run_plan_shards(context, folder.as_uri(), conversion=units)
    assert len(units) == 2  # train and test
    for unit in reversed(units):
        run_convert_events(unit)
    work_units = run_plan_shards(context, folder.as_uri(), conversion=units)
    plan, _ = load_work_unit(open_store(), work_units[0])
    assert plan.raw_uri == units[0].partition("#")[0]
    assert sum(file.n_events for file in plan.files) == 290
    # evaluation looks for the truth where the events are
    assert raw_uri_of(context, folder.as_uri()) == plan.raw_uri
    assert list((tmp_path / "work" / "converted").glob("*/truth/batch_1.parquet"))
    # a retry, and the next run of the same set, find it done
    again = run_plan_conversion(context_of(tmp_path, "next"), f"{folder.as_uri()}/")
    assert again == [f"{plan.raw_uri}#0:0"]
    run_convert_events(again[0])
    assert run_plan_shards(context_of(tmp_path, "next"), folder.as_uri(), conversion=again)


def test_a_run_without_conversion_evaluates_the_events_of_its_form(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    assert raw_uri_of(context, "s3://bucket/raw/") == "s3://bucket/raw"
    raw_uri = write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=100)
    run_plan_shards(context, raw_uri)
    assert raw_uri_of(context, raw_uri) == raw_uri


def test_a_set_that_changed_after_its_plan_is_refused(tmp_path: Path) -> None:
    folder = write_nubench(tmp_path / "set", nubench_frames(), "parquet")
    units = run_plan_conversion(context_of(tmp_path), folder.as_uri())
    part = folder / "merged" / "mc_truth" / "mc_truth_0.parquet"
    pd.read_parquet(part).iloc[:-1].to_parquet(part)
    with pytest.raises(RawDataError, match=r"changed after its conversion was planned.*other fil"):
        run_convert_events(units[0])


def test_layout_of_the_form_must_be_that_of_the_events(tmp_path: Path) -> None:
    raw_uri = write_raw_layout(tmp_path / "raw", n_files=1)
    with pytest.raises(RawDataError, match=r"no NuBench set.*leave raw_layout at competition"):
        run_plan_conversion(context_of(tmp_path), raw_uri)
    folder = write_nubench(tmp_path / "set", nubench_frames(), "parquet")
    with pytest.raises(ConfigError, match=r"finds out by itself.*data.label_reading"):
        run_plan_conversion(context_of(tmp_path, label_reading=["particle"]), folder.as_uri())


@pytest.mark.integration
@pytest.mark.parametrize("layout", ["sqlite", "parquet"])
def test_a_set_in_an_object_store_is_converted_as_on_disk(
    layout: str, tmp_path: Path, object_store_service: object
) -> None:
    folder, store = write_nubench(tmp_path / "set", nubench_frames(), layout), open_store()
    set_uri, work_uri = (f"s3://iceaggr/nubench-{layout}/{name}" for name in ("set", "work"))
    for path in folder.rglob("*.*"):
        store.upload(path, f"{set_uri}/{path.relative_to(folder)}")
    context = RunContext("run", "test", work_uri, ExperimentConfig(), tracked=False)
    units = run_plan_conversion(context, set_uri)
    # a database is copied whole by whoever reads it
    assert len(units) == (1 if layout == "sqlite" else 2)
    for unit in units:
        run_convert_events(unit)
    run_plan_shards(context, set_uri, conversion=units)
    here = context_of(tmp_path)
    for unit in run_plan_conversion(here, folder.as_uri()):
        run_convert_events(unit)
    converted = raw_uri_of(context, set_uri)
    (local,) = (tmp_path / "work" / "converted").iterdir()
    for path in local.glob("t*/batch_*.parquet"):
        uri = f"{converted}/{path.relative_to(local)}"
        assert store.read_bytes(uri) == path.read_bytes()
