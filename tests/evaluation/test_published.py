"""The benchmark's figures: counted like a loop would, every event once, published rows beside."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import EvaluationConfig
from iceaggr.detector import ICE, WATER, Detector, icecube86
from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.evaluation import Evaluation, evaluate
from iceaggr.evaluation.event_table import derived_truth
from iceaggr.evaluation.published import (
    BOUND,
    DataOrigin,
    benchmark_blocks,
    benchmark_metrics,
    benchmark_table,
    published_sets,
    set_of,
)
from iceaggr.evaluation.report import MARKDOWN_GAP, ReportContext, benchmark_markdown
from iceaggr.steps.promote_model import description
from tests.evaluation.track_events import LineFitModel, track_batch, truth_of

CONFIG = EvaluationConfig(n_bootstrap=200, n_displays=0, likelihood_fit=False)
SUMMARY = {
    "reason": "first",
    "table": [
        {"title": "Model", "mean_deg": 1.0, "mean_error_deg": 0.1}
        | {"median_deg": 1.0, "median_error_deg": 0.1}
    ],
    "n_events_test": 300, "n_source_files": 1, "n_source_files_reused": 0, "started_from": "",
    "pulses_in": 1, "pulses_kept": 1, "pulses_rejected": 0,
}  # fmt: skip
HEXAGON = published_sets()["Hexagon"]


def scored(n_events: int = 4000) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    is_track = rng.random(n_events) < 0.4
    return pd.DataFrame(
        {
            "energy_gev": 10 ** rng.uniform(1, 6, n_events),
            "interaction": np.where(is_track | (rng.random(n_events) < 0.2), "cc", "nc"),
            "topology": np.where(is_track, "track", "cascade"),
            "opening_angle_deg": rng.exponential(4.0, n_events),
            "neutrino_muon_angle": np.where(is_track, rng.exponential(0.01, n_events), np.nan),
        }
    )


def test_figures_are_those_of_a_plain_count() -> None:
    events = scored()
    table = benchmark_table(events, ["model"], CONFIG)
    chosen = events[
        (events["topology"] == "track")
        & (events["energy_gev"] > 1e3)
        & (events["energy_gev"] <= 1e5)
    ]
    (row,) = table.query("method == 'model' and current == 'cc' and band == '100tev'").to_dict(
        "records"
    )
    assert row["n_events"] == len(chosen)
    assert row["median_deg"] == chosen["opening_angle_deg"].median()
    within = (chosen["opening_angle_deg"] <= 5).mean()
    assert row["within_5deg"] == within
    # half the density at the median of an exponential is 1 / (2 tau): error = tau / sqrt(n)
    assert row["median_deg_error"] == pytest.approx(4.0 / math.sqrt(len(chosen)), rel=0.25)
    expected = math.sqrt(within * (1 - within) / len(chosen))
    assert row["within_5deg_error"] == pytest.approx(expected, rel=0.05)
    (bound,) = table.query(f"method == '{BOUND}' and band == '100tev'").to_dict("records")
    muon = np.rad2deg(chosen["neutrino_muon_angle"])
    assert bound["median_deg"] == pytest.approx(muon.median(), rel=1e-12)


def test_every_event_is_in_one_part() -> None:
    events = scored()
    table = benchmark_table(events, ["model"], CONFIG)
    assert table[table["method"] == "model"]["n_events"].sum() == len(events)
    assert set(table["current"]) == {"cc", "nc", "other_cc"}


@pytest.mark.parametrize(
    ("energy_gev", "band"), [(1000.0, "1tev"), (1000.1, "100tev"), (1e5, "100tev"), (2e5, "above")]
)
def test_edges_belong_to_the_band_below(energy_gev: float, band: str) -> None:
    events = scored(20).assign(energy_gev=energy_gev)
    assert set(benchmark_table(events, ["model"], CONFIG)["band"]) == {band}


def test_published_figures_are_those_of_the_paper() -> None:
    assert HEXAGON.rows["DeepIce"]["cc", "100tev"] == pytest.approx((0.89, 0.5446, 0.8823))
    assert HEXAGON.rows["DeepIce"]["nc", "1tev"] == pytest.approx((30.73, 0.0082, 0.1139))
    grit = published_sets()["Triangle"].rows["GRIT"]["nc", "100tev"]
    assert grit[:2] == pytest.approx((5.26, 0.0839))
    assert math.isnan(grit[2])
    assert ("cc", "100tev") not in published_sets()["Flower S"].rows["DeepIce"]
    assert sum(len(one.rows) for one in published_sets().values()) == 25
    assert [len(one.rows) for one in published_sets().values()] == [3, 4, 4, 4, 3, 4, 3]


def test_published_rows_stand_beside_ours_and_are_no_events() -> None:
    table = benchmark_table(scored(), ["model"], CONFIG, HEXAGON)
    published = table[table["published"]]
    assert set(published["method"]) == {"ParticleNeT", "DynEdge", "GRIT", "DeepIce"}
    assert (published["n_events"] == 0).all()
    assert len(published) == 16
    metrics = benchmark_metrics(table)
    assert metrics["published/deepice_cc_100tev_median_deg"] == 0.89
    assert "test_benchmark/cc_100tev_median_deg_error" in metrics
    assert "test_benchmark/muon_cc_1tev_within_1deg" in metrics
    assert all(math.isfinite(value) for value in metrics.values())
    lines = benchmark_blocks(table, [])[0]["lines"]
    assert [line["published"] for line in lines] == [False, False, True, True, True, True]


def detector_at(xyz_m: np.ndarray, stated: object) -> Detector:
    n_sensors = len(xyz_m)
    return Detector(
        sensor_id=np.arange(n_sensors),
        xyz_m=xyz_m,
        string_id=np.full(n_sensors, -1),
        efficiency=np.ones(n_sensors),
        in_use=np.ones(n_sensors, bool),
        stated_medium=stated,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("file", "medium", "name"),
    [
        ("hexagon", WATER, "Hexagon"),
        ("hexagon", ICE, "Hexagon Ice LE"),
        ("flower_s", WATER, "Flower S"),
        ("flower_s", ICE, ""),
        ("triangle", WATER, "Triangle"),
        ("flower_xl", WATER, "Flower XL"),
        ("flower_l", WATER, "Flower L"),
        ("cluster", WATER, "Cluster"),
    ],
)
def test_sets_are_recognised_by_the_places_of_the_sensors(file, medium, name) -> None:
    path = next(
        (
            one / f"shared/data/nubench/{file}.parquet"
            for one in Path(__file__).resolve().parents
            if (one / "shared/data/nubench").exists()
        ),
        None,
    )
    if path is None:
        pytest.skip("no folder shared beside the checkout")
    table = pd.read_parquet(path)
    xyz_m = table[[f"sensor_pos_{axis}" for axis in "xyz"]].to_numpy(np.float64)
    rng = np.random.default_rng(0)
    assert set_of(detector_at(rng.permutation(xyz_m), medium)) == name
    moved = xyz_m + np.array([0.0, 0.0, 1.0])
    assert set_of(detector_at(moved, medium)) == ""


def test_icecube_is_no_set_of_the_benchmark() -> None:
    assert set_of(icecube86()) == ""
    assert set_of(replace(icecube86(), stated_medium=WATER)) == ""


def test_topology_and_muon_angle_follow_from_other_truth() -> None:
    events = pd.DataFrame(
        {
            "interaction": ["cc", "cc", "nc"],
            "flavour": [-14, 12, 14],
            "true_azimuth": [0.0, 0.0, 0.0],
            "true_zenith": [0.3, 0.3, 0.3],
            "muon_azimuth": [0.0, math.nan, math.nan],
            "muon_zenith": [0.4, math.nan, math.nan],
        }
    )
    found = derived_truth(events)
    assert found["topology"].tolist() == ["track", "cascade", "cascade"]
    assert found["neutrino_muon_angle"].iloc[0] == pytest.approx(0.1)
    assert found["neutrino_muon_angle"].iloc[1:].isna().all()
    # what the truth says itself is not changed
    said = events.assign(topology=["cascade"] * 3, neutrino_muon_angle=[1.0, 2.0, 3.0])
    pd.testing.assert_frame_equal(derived_truth(said), said)


@pytest.fixture(scope="module")
def in_hexagon() -> Evaluation:
    batches = [track_batch(100, seed=seed, first_event_id=1000 * seed) for seed in range(3)]
    origin = DataOrigin("Hexagon", "easy", n_official=300)
    context = ReportContext("Run", origin=origin)
    return evaluate(LineFitModel(), batches, truth_of(batches), CONFIG, context=context)


def test_report_marks_published_rows_and_the_easy_preset(in_hexagon: Evaluation) -> None:
    page = in_hexagon.report_html
    assert page.count('<tr class="published">') == 8
    assert "DeepIce, published" in page
    assert "Scored are all 300 events of the official test selection." in page
    assert "simulated, preset easy" in page
    assert "published figures are of other events" in page
    assert in_hexagon.metrics["published/deepice_cc_100tev_median_deg"] == 0.89
    own = in_hexagon.benchmark.query("method == 'model' and current == 'nc' and band == '1tev'")
    found = in_hexagon.metrics["test_benchmark/nc_1tev_median_deg"]
    assert found == own["median_deg"].iloc[0]


def test_headline_of_the_tracker_has_the_published_rows_beside_ours(in_hexagon: Evaluation) -> None:
    origin = DataOrigin("Hexagon", "easy", n_official=300)
    text = benchmark_markdown(in_hexagon.benchmark, origin, 300)
    rows = [[cell.strip(" |") for cell in line.split(" | ")] for line in text.splitlines()]
    of = {row[0].replace(MARKDOWN_GAP, ""): row for row in rows if len(row) > 1}
    # of both currents' rows the later ones, of the neutral current, are read here
    assert of["*DeepIce, published*"][2].startswith("2.53°, 20.08 %, 68.74 %")
    assert text.count("*DeepIce, published*") == 2
    assert text.count("| Direction of the muon itself") == 1
    # MLflow sets a table right above what follows, unless there is a line of nothing
    after = re.findall(r"(.*)\n\n(?:\*\*|Rows in italics)", text)
    assert len(after) >= 3
    assert set(after) == {"&nbsp;"}
    few = in_hexagon.benchmark.assign(n_events=1)
    assert "up to 1 TeV, 1 event&" in benchmark_markdown(few, origin, 300)
    own = in_hexagon.benchmark.query("method == 'model' and current == 'nc' and band == '100tev'")
    assert of[TITLES["model"]][2].startswith(f"{own['median_deg'].iloc[0]:.3g}"[:2])
    assert "all 300 events of the official" in text
    assert "published figures are of other events" in text
    shown = description(SUMMARY, text)
    assert text in shown
    assert shown.index("| mean |") < shown.index("DeepIce")
    assert benchmark_markdown(in_hexagon.benchmark, DataOrigin(), 300) == ""
    assert "italics" not in description(SUMMARY)


def test_what_was_scored_is_told_beside_published_figures() -> None:
    assert DataOrigin().scored_words(10) == ""
    assert "9 of the 10 events of the official" in DataOrigin("Hexagon", "", 10).scored_words(9)
    assert "no official selection" in DataOrigin("Hexagon").scored_words(9)
    (sentence,) = DataOrigin("", "easy").sentences()
    assert "Real events are harder" in sentence
    (sentence,) = DataOrigin("Hexagon", "", 600, 3000).sentences()
    assert "20.5 million events; this set has 3,000" in sentence
    assert DataOrigin("Hexagon", "", 4_000_000, 20_400_000).sentences() == []


def test_accuracy_is_told_with_and_without_an_atmospheric_muon(in_hexagon: Evaluation) -> None:
    events = in_hexagon.events
    angle = events[events["coincident_muon"]]["opening_angle_deg"]
    assert in_hexagon.metrics["test_muon/mean_deg"] == pytest.approx(angle.mean())
    without = events[~events["coincident_muon"]]["line_fit_angle_deg"].median()
    assert in_hexagon.metrics["test_nomuon/line_fit_median_deg"] == pytest.approx(without)
    assert '<table id="muons">' in in_hexagon.report_html
    assert "coincident_muon" in set(in_hexagon.slices["dimension"])
