"""Files of predictions: ours come back to the last bit, others are read, wrong ones are named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.config import EvaluationConfig
from iceaggr.errors import ConfigError, EvaluationError, RawDataError
from iceaggr.evaluation.evaluation import Evaluation, evaluate
from iceaggr.evaluation.event_table import facts_in, with_facts
from iceaggr.evaluation.prediction_files import (
    DIRECTION,
    NEEDED,
    check_name,
    facts_of,
    is_prediction_file,
    nubench_table,
    read_predictions,
)
from iceaggr.evaluation.published import DataOrigin
from iceaggr.evaluation.report import ReportContext
from iceaggr.events.label_reading import LabelReading
from iceaggr.steps.compare import run_compare, run_evaluate_predictions
from iceaggr.steps.evaluate_model import parquet_of, tables_of
from tests.evaluation.track_events import LineFitModel, track_batch, truth_of

CONFIG = EvaluationConfig(n_bootstrap=150, n_displays=0, min_events_per_bin=20, seed=3)
ORIGIN = DataOrigin("Hexagon", "easy", n_official=240, n_events=1200)


@pytest.fixture(scope="module")
def scored() -> Evaluation:
    batches = [track_batch(80, seed=seed, first_event_id=1000 * (5 - seed)) for seed in range(3)]
    context = ReportContext("Run", origin=ORIGIN)
    return evaluate(LineFitModel(), batches, truth_of(batches), CONFIG, context=context)


@pytest.fixture
def exported(scored: Evaluation, tmp_path: Path) -> Path:
    path = tmp_path / "iceaggr_direction.parquet"
    failed = {summary.name: summary.failed_share for summary in scored.summaries}
    facts = facts_of(ORIGIN, CONFIG.model_dump(mode="json"), failed_share=failed)
    pq.write_table(nubench_table(scored.events, facts), path)
    return path


def changed(path: Path, **columns: object) -> Path:
    """Write the file again with other columns, as another model's; None leaves one out."""
    frame = pq.read_table(path).to_pandas().assign(**columns)
    frame = frame[[name for name in frame if columns.get(name, 0) is not None]]
    other = path.with_name("Other_direction.parquet")
    frame.to_parquet(other, index=False)
    return other


# What is written.


def test_columns_are_those_of_the_benchmarks_tool(scored: Evaluation, exported: Path) -> None:
    table = pd.read_parquet(exported)
    # as the tool finds opening angles, tracks and the muon
    zenith, azimuth = table["initial_state_zenith"], table["initial_state_azimuth"]
    x, y, z = np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)
    cosine = x * table["dir_x_pred"] + y * table["dir_y_pred"] + z * table["dir_z_pred"]
    angle = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    assert angle.to_numpy() == pytest.approx(scored.events["opening_angle_deg"], abs=1e-5)
    is_track = (table["interaction"] == 1) & (table["initial_state_type"].abs() == 14)
    assert is_track.tolist() == (scored.events["topology"] == "track").tolist()
    assert set(table["interaction"]) == {1, 2}
    assert (table.loc[~is_track, ["muon_zenith", "muon_azimuth"]] == -1).all().all()
    assert table["initial_state_energy"].tolist() == scored.events["energy_gev"].tolist()
    assert table["event_no"].tolist() == scored.events["event_id"].tolist()
    assert table[list(DIRECTION)].pow(2).sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", NEEDED)
def test_truth_that_the_tool_needs_must_be_there(scored: Evaluation, name: str) -> None:
    with pytest.raises(EvaluationError, match=f"found no {name}, expected"):
        nubench_table(scored.events.drop(columns=name))


@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        ("iceaggr_direction.parquet", True),
        ("DynEdge_v1.0_hexagon_direction_test.parquet", True),
        ("direction.parquet", False),
        ("iceaggr_energy.parquet", False),
        ("iceaggr_direction.csv", False),
    ],
)
def test_name_is_one_by_which_the_tool_finds_the_file(name: str, is_found: bool) -> None:
    if is_found:
        check_name(Path(name))
    else:
        with pytest.raises(ConfigError, match="the benchmark's tool would not find this file"):
            check_name(Path(name))


# What is read again: every figure to the last bit.


def test_figures_of_an_exported_file_are_those_of_the_run(
    scored: Evaluation, exported: Path
) -> None:
    again = run_evaluate_predictions(exported)
    expected = {n: v for n, v in scored.metrics.items() if not n.startswith("test_speed/")}
    assert "test_baselines/line_fit_failed_share" in expected
    assert again.metrics == expected
    for name, text in tables_of(scored, CONFIG).items():
        assert exported.with_name(f"iceaggr_direction.{name}").read_text() == text
    pd.testing.assert_frame_equal(again.benchmark, scored.benchmark, check_exact=True)
    page = exported.with_suffix(".html").read_text()
    assert "Scored are all 240 events of the official test selection." in page
    assert page.count('<tr class="published">') == 8
    assert "Not fitted" in page
    assert "Time per event" not in page
    assert "A file of predictions does not say how long the methods took." in page


@pytest.mark.parametrize("said", [{"line_fit": 1.5}, {"line_fit": "half"}, ["line_fit"]])
def test_shares_that_cannot_be_are_a_damaged_note(exported: Path, said: object) -> None:
    table = pq.read_table(exported)
    pq.write_table(with_facts(table, facts_in(table.schema) | {"failed_share": said}), exported)
    with pytest.raises(EvaluationError, match=r"note is damaged .*iceaggr_dir.* failed_share"):
        read_predictions(exported)


def test_order_of_rows_changes_nothing(scored: Evaluation, exported: Path, tmp_path: Path) -> None:
    table = pq.read_table(exported)
    rows = np.random.default_rng(0).permutation(table.num_rows)
    shuffled = tmp_path / "a_direction.parquet"
    pq.write_table(table.take(rows), shuffled)
    found = read_predictions(shuffled).events
    assert found["event_id"].is_monotonic_increasing
    exact = [*found.columns[found.columns.str.startswith(("bias_", "opening_"))]]
    pd.testing.assert_frame_equal(found[exact], scored.events[exact], check_exact=True)


def test_event_numbers_may_be_an_index_that_only_counts(exported: Path) -> None:
    frame = pd.read_parquet(exported).drop(columns="event_no")
    numbered = frame.set_axis(pd.RangeIndex(5, 5 + len(frame), name="event_no"))
    path = exported.with_name("Other_direction.parquet")
    numbered.to_parquet(path)
    assert "event_no" not in pq.read_schema(path).names
    assert is_prediction_file(path)
    read = read_predictions(path)
    assert read.has_ids
    assert read.events["event_id"].tolist() == list(range(5, 5 + len(frame)))
    pq.write_table(pq.read_table(path).slice(0, 100), path)
    with pytest.raises(RawDataError, match=r"index event_no counts other rows .*Other_direction"):
        read_predictions(path)


def test_events_of_an_evaluation_say_what_they_are(scored: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    facts = facts_of(ORIGIN, CONFIG.model_dump(mode="json"), LabelReading.of(["particle"]))
    path.write_bytes(parquet_of(scored.events, facts))
    again = run_evaluate_predictions(path)
    assert again.metrics["test_error/median_deg"] == scored.metrics["test_error/median_deg"]
    pd.testing.assert_frame_equal(again.benchmark, scored.benchmark, check_exact=True)
    assert again.events["true_zenith"].tolist() == scored.events["true_zenith"].tolist()


def test_events_of_an_evaluation_are_read_too(scored: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    scored.events.to_parquet(path, index=False)
    found = read_predictions(path).events
    assert found["opening_angle_deg"].tolist() == scored.events["opening_angle_deg"].tolist()
    assert found["kappa"].tolist() == scored.events["kappa"].tolist()


@pytest.mark.parametrize("words", [["particle"], ["mirror_z"], ["particle", "x_y_swapped"]])
def test_file_has_directions_as_the_truth_of_its_set_has(
    scored: Evaluation, tmp_path: Path, words: list[str]
) -> None:
    path = tmp_path / "a_direction.parquet"
    reading = LabelReading.of(words)  # type: ignore[arg-type]
    pq.write_table(nubench_table(scored.events, facts_of(ORIGIN, {}, reading), reading), path)
    table = pd.read_parquet(path)
    if words == ["particle"]:
        z = np.cos(scored.events["zenith"])
        assert table["dir_z_pred"].to_numpy() == pytest.approx(-z, abs=1e-12)
        truth = np.pi - scored.events["true_zenith"]
        assert table["initial_state_zenith"].to_numpy() == pytest.approx(truth, abs=1e-12)
    found = read_predictions(path).events
    for name in ("true_zenith", "zenith", "opening_angle_deg", "muon_zenith"):
        expected = scored.events[name].to_numpy(np.float64)
        assert found[name].to_numpy() == pytest.approx(expected, abs=1e-6, nan_ok=True)


# Files of other models.


def bare(path: Path) -> Path:
    """Write what another model's file has: truth and vectors, without kappa."""
    table = pq.read_table(path).to_pandas()
    keep = [name for name in table if name.startswith(("initial_", "dir_", "muon_", "interaction"))]
    other = path.with_name("DeepIce_direction.parquet")
    table[["event_no", *keep]].drop(columns="dir_kappa_pred").to_parquet(other, index=False)
    return other


def test_file_of_another_model_has_the_same_report_without_what_it_lacks(
    scored: Evaluation, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bare(exported)
    found = run_evaluate_predictions(path, set_name="hexagon")
    # errors are of its own bootstrap, and the muon's angle is found anew from its direction
    same = [
        name
        for name in scored.metrics
        if name.startswith(("test/", "test_bias/", "test_benchmark/", "published/"))
        and "_error" not in name
        and "muon_" not in name
    ]
    assert len(same) > 50
    assert all(found.metrics[name] == scored.metrics[name] for name in same)
    assert not any(name.startswith("test_kappa/") for name in found.metrics)
    assert "and this one not which fits failed" in path.with_suffix(".html").read_text()
    assert "calibration" not in found.figures
    assert "angle_vs_pulses" not in found.figures
    page = path.with_suffix(".html").read_text()
    assert "no κ" in page
    assert "nan" not in page.split("<body>")[1].split("base64")[0]
    assert "DeepIce, published" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["initial_state_energy", "interaction", "initial_state_type"])
def test_truth_without_which_nothing_is_told_by_energy_is_named(exported: Path, name: str) -> None:
    read = read_predictions(changed(bare(exported), **{name: None}))
    assert f"no {name} in the file: nothing is told by energy and current" in read.notes[0]


def test_files_of_two_models_are_compared_on_shared_events(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(bare(exported), dir_z_pred=1.0)
    rows = pd.read_parquet(path)
    rows.head(200).to_parquet(path, index=False)
    found = run_compare([str(exported), str(path)], path.with_suffix(".html"))
    assert found.n_events == 200
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "Only shared events count; events of each: iceaggr_direction 240, Other_direction" in told
    )
    assert "200 vectors are not of unit length" in told
    worse = found.overall.set_index("model").loc["Other_direction"]
    assert worse["difference"] > 5 * worse["error"] > 0


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"dir_y_pred": None}, "no predicted directions .* found no dir_y_pred; columns"),
        ({"initial_state_zenith": None}, "predictions but no truth .* expected initial_state_z"),
        ({"dir_x_pred": np.nan}, r"dir_x_pred or .* is not finite .* found event \d+, 240 of 240"),
        ({"initial_state_azimuth": np.inf}, "true_azimuth or true_zenith is not finite"),
        ({"initial_state_zenith": 90.0}, "truth is not in radians .* zenith 90 to 90"),
        ({"event_no": 7}, r"lists an event twice .* found event 7, 239 repeated rows of 240"),
        ({"event_no": 7.5}, "event number is no whole number .* found np.float64|7.5 in row 0"),
        ({"interaction": 3}, "column interaction holds a value that cannot be .* found .*3"),
        ({"initial_state_energy": -1.0}, "column initial_state_energy holds .* GeV above 0"),
        ({"initial_state_type": 13}, "column initial_state_type holds"),
        ({"dir_kappa_pred": -1.0}, "column dir_kappa_pred holds .* a concentration"),
        ({"dir_x_pred": "east"}, "column dir_x_pred holds no numbers .* found (large_)?string"),
        ({"initial_state_energy": "1e3"}, "column initial_state_energy holds no numbers"),
        ({"interaction": [[1]] * 240}, "column interaction holds no numbers .* found list"),
        ({"muon_zenith": pd.Timestamp(0)}, "column muon_zenith holds no numbers .* timestamp"),
        ({"muon_zenith": 90.0}, "column muon_zenith holds .* without a muon"),
        ({"muon_azimuth": np.inf}, "column muon_azimuth holds .* a finite angle"),
        ({"line_fit_angle_deg": np.nan}, "column line_fit_angle_deg holds .* 0 to 180 degrees"),
        ({"n_pulses": -1}, "column n_pulses holds .* a number from 0 on"),
        ({"contained": np.nan}, "column contained holds .* true or false"),
        ({"dir_x_pred": 0.0, "dir_y_pred": 0.0, "dir_z_pred": 0.0}, "vectors have no length"),
    ],
)
def test_wrong_file_is_refused_and_named(
    exported: Path, columns: dict[str, object], words: str
) -> None:
    with pytest.raises(EvaluationError, match=words) as caught:
        read_predictions(changed(exported, **columns))
    assert "Other_direction.parquet" in str(caught.value.where)


def test_vectors_of_another_length_are_told_and_count_by_their_direction(
    scored: Evaluation, exported: Path
) -> None:
    table = pd.read_parquet(exported)
    longer = {name: 2.0 * table[name] for name in DIRECTION}
    read = read_predictions(changed(exported, **longer))
    assert "240 of 240 vectors are not of unit length (2 to 2)" in read.notes[0]
    angle = scored.events["opening_angle_deg"].to_numpy()
    assert read.events["opening_angle_deg"].to_numpy() == pytest.approx(angle, abs=1e-9)


def test_reversed_vectors_are_told_by_the_numbers(scored: Evaluation, exported: Path) -> None:
    table = pd.read_parquet(exported)
    other = changed(exported, **{name: -table[name] for name in DIRECTION})
    median = float(scored.events["opening_angle_deg"].median())
    words = f"median opening angle {180 - median:.2f} deg; reversed, it is {median:.2f} deg"
    with pytest.raises(EvaluationError, match=words):
        read_predictions(other)
    turned = read_predictions(other, is_reversed=True)
    assert turned.events["opening_angle_deg"].median() == median
    with pytest.raises(EvaluationError, match="Leave --reversed out"):
        read_predictions(exported, is_reversed=True)


def test_a_reversed_file_with_rounded_truth_is_turned_and_equals_the_other(exported: Path) -> None:
    table = pd.read_parquet(exported)
    truth = table["initial_state_zenith"].astype(np.float32).astype(np.float64)
    turned = {name: -table[name] for name in DIRECTION}
    other = changed(exported, initial_state_zenith=truth, **turned)
    names = [str(exported), str(other)]
    assert (truth != table["initial_state_zenith"]).any()
    with pytest.raises(EvaluationError, match=r"of compare, --reversed FILE"):
        run_compare(names, None)
    last = run_compare(names, None, reversed_files=[str(other)]).overall.iloc[1]
    assert (last["difference"], last["error"], last["p_value"]) == (0, 0, 1)
    with pytest.raises(ConfigError, match="not among the files to compare"):
        run_compare(names, None, reversed_files=["absent.parquet"])


def test_directions_that_say_nothing_are_not_called_reversed(exported: Path) -> None:
    vectors = np.random.default_rng(12345).normal(size=(240, 3))
    other = changed(exported, **dict(zip(DIRECTION, vectors.T, strict=True)))
    assert 80 < read_predictions(other).events["opening_angle_deg"].median() < 100


def test_file_without_event_numbers_is_judged_but_not_paired(exported: Path) -> None:
    other = changed(exported, event_no=None)
    read = read_predictions(other)
    assert len(read.events) == 240
    assert "no event numbers" in read.notes[0]
    with pytest.raises(EvaluationError, match="events cannot be paired"):
        run_compare([str(exported), str(other)], None)


def test_what_is_no_file_of_predictions_is_refused(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(EvaluationError, match="no such file of predictions"):
        read_predictions(tmp_path / "absent_direction.parquet")
    with pytest.raises(EvaluationError, match=r"no such file of predictions .* found a folder"):
        read_predictions(tmp_path)
    broken = tmp_path / "broken_direction.parquet"
    broken.write_bytes(exported.read_bytes()[:-200])
    with pytest.raises(EvaluationError, match="file of predictions cannot be read"):
        read_predictions(broken)
    empty = tmp_path / "empty_direction.parquet"
    pq.write_table(pq.read_table(exported).slice(0, 0), empty)
    with pytest.raises(EvaluationError, match="file of predictions has no event"):
        read_predictions(empty)
    assert is_prediction_file(exported)
    pq.write_table(pa.table({"event_no": [1]}), empty)
    assert not is_prediction_file(empty)
    assert not is_prediction_file(broken)


@pytest.mark.parametrize("name", ["hexagon-ice", "Hexagon Ice LE", "hexagon-ice-le"])
def test_a_set_is_known_by_the_name_of_its_detector_too(exported: Path, name: str) -> None:
    path = bare(exported)
    run_evaluate_predictions(path, set_name=name)
    assert "23.84" in path.with_suffix(".html").read_text()  # ParticleNeT's median there


def test_page_never_replaces_another_file(exported: Path) -> None:
    exported.with_suffix(".html").write_text("my notes")
    with pytest.raises(ConfigError, match="a file of something else has this name"):
        run_evaluate_predictions(exported)
    with pytest.raises(ConfigError, match=r"no set of the benchmark .* expected flower-xl"):
        run_evaluate_predictions(bare(exported), set_name="icecube")
    with pytest.raises(ConfigError, match="another set than the file's"):
        run_evaluate_predictions(exported, exported.with_name("r.html"), set_name="triangle")
