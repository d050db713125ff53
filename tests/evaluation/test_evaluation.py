"""The whole evaluation on synthetic tracks: numbers, figures and the page."""

import io
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iceaggr.batches import EventBatch
from iceaggr.batches.collation import collate, iter_batches, join_batches
from iceaggr.config import BatchConfig, EvaluationConfig
from iceaggr.detector import WATER, icecube86
from iceaggr.evaluation.baselines import CLASSICAL_FITS, SALT, TITLES, refine_sample
from iceaggr.evaluation.calibration import probability_inside
from iceaggr.evaluation.evaluation import N_SPARE_SNAPSHOTS, Evaluation, evaluate, score_events
from iceaggr.evaluation.event_table import directions
from iceaggr.evaluation.metrics import muon_parts
from iceaggr.evaluation.plots import draw_calibration
from iceaggr.evaluation.report import CAPTIONS, ReportContext, refined_claim, refined_words
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.simulation.ice import site_of
from iceaggr.reconstruction.refinement import MIN_CHARGE_PE, WHOLE, refine, triggering_charge_pe
from iceaggr.shards.split import mixed_bits
from tests.evaluation.track_events import LineFitModel, track_batch, truth_of
from tests.shards.dom_events_builder import random_dom_events

# One pass over the events: the same table in any batching; displays are the right events.


class ConstantKappaModel(LineFitModel):
    """Gives every event the same kappa, whatever its place in the batch."""

    def forward(self, batch: EventBatch):
        output = super().forward(batch)
        output.kappa[:] = self.kappa
        return output


SCORED = [track_batch(30, seed=seed, first_event_id=100 * seed) for seed in range(4)]
SCORING = EvaluationConfig(n_displays=2)


def test_scores_do_not_depend_on_the_batching():
    one_by_one = score_events(ConstantKappaModel(), SCORED, SCORING).events
    backwards = score_events(ConstantKappaModel(), SCORED[::-1], SCORING).events
    at_once = score_events(ConstantKappaModel(), [join_batches(SCORED)], SCORING).events
    pd.testing.assert_frame_equal(one_by_one, backwards)
    pd.testing.assert_frame_equal(one_by_one, at_once, atol=1e-3)


def test_every_method_is_scored_on_every_event():
    scored = score_events(LineFitModel(), SCORED, SCORING)
    for name in TITLES:
        column = "opening_angle_deg" if name == "model" else f"{name}_angle_deg"
        assert scored.events[column].between(0, 180).all()
    assert set(scored.seconds_per_event) == set(TITLES) - {"random", "constant"}


def test_likelihood_fit_is_left_out_when_configured():
    config = EvaluationConfig(likelihood_fit=False)
    scored = score_events(LineFitModel(), SCORED[:1], config)
    assert "likelihood_fit_angle_deg" not in scored.events
    assert "improved_line_fit_angle_deg" in scored.events


def test_scoring_stops_after_the_batch_that_reaches_the_limit():
    config = EvaluationConfig(max_events=31)
    progress: list[int] = []
    scored = score_events(LineFitModel(), SCORED, config, progress.append)
    assert progress == [30, 60]
    assert len(scored.events) == 60


def test_displays_are_the_best_the_typical_and_the_worst_events():
    scored = score_events(LineFitModel(blur=0.5), SCORED, SCORING)
    by_angle = scored.events.sort_values("opening_angle_deg")["event_id"].tolist()
    shown = [(kind, event.event_id) for kind, event in scored.displays]
    assert shown[:2] == [("Best", by_angle[0]), ("Best", by_angle[1])]
    assert shown[4:] == [("Worst", by_angle[-1]), ("Worst", by_angle[-2])]
    angle = scored.events["opening_angle_deg"]
    for kind, event in scored.displays[2:4]:
        assert kind == "Median"
        assert angle.quantile(0.4) < event.angle_deg < angle.quantile(0.6)


def test_displays_keep_few_events_however_many_pass():
    from iceaggr.evaluation.evaluation import Gallery
    from iceaggr.evaluation.event_table import predict_batch, score_batch

    gallery, model = Gallery(2, seed=0), LineFitModel()
    batch = SCORED[0]
    predictions = predict_batch(model, batch, "cpu")
    for _ in range(30):
        gallery.offer(batch, score_batch(batch, predictions), predictions.direction.numpy())
    assert len(gallery._spare) == N_SPARE_SNAPSHOTS
    assert len(gallery.choose(10.0)) == 6


def test_snapshot_holds_the_hits_of_its_own_event():
    scored = score_events(LineFitModel(), SCORED, SCORING)
    rows = scored.events.set_index("event_id")
    for _, event in scored.displays:
        row = rows.loc[event.event_id]
        assert len(event.charge_pe) == row["n_doms"]
        assert event.charge_pe.sum() == pytest.approx(row["charge_pe"], rel=1e-6)
        assert event.angle_deg == pytest.approx(row["opening_angle_deg"])
        cosine = np.clip(event.true @ event.predicted, -1, 1)
        assert np.rad2deg(np.arccos(cosine)) == pytest.approx(event.angle_deg, abs=1e-4)
        assert event.triggering.sum() <= row["n_non_auxiliary"]


BATCHES = [track_batch(100, seed=seed, first_event_id=1000 * seed) for seed in range(3)]
CONFIG = EvaluationConfig(n_bootstrap=100, min_events_per_bin=50, n_displays=1)
FACTS = {"Data digest": "sha256:12ab", "<script>1</script>": "s3://raw/<img src=x onerror=y>"}
SETTINGS = {"model": {"d_model": 8}, "name": "</pre><script>2</script>"}
CONTEXT = ReportContext("Run <script>", FACTS, SETTINGS)


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(LineFitModel(), BATCHES, truth_of(BATCHES), CONFIG, context=CONTEXT)


def test_metrics_are_the_statistics_of_the_event_table(found):
    angle = found.events["opening_angle_deg"].to_numpy()
    assert found.metrics["test/n_events"] == 300
    assert found.metrics["test/mean_deg"] == pytest.approx(angle.mean())
    assert found.metrics["test/median_deg"] == pytest.approx(np.median(angle))
    assert found.metrics["test/p68_deg"] == pytest.approx(np.quantile(angle, 0.68))
    line_fit = found.events["line_fit_angle_deg"].to_numpy()
    assert found.metrics["test_baselines/line_fit_mean_deg"] == pytest.approx(line_fit.mean())
    gain = found.metrics["test_baselines/gain_over_line_fit_deg"]
    assert gain == pytest.approx((line_fit - angle).mean())
    tracks = found.events[found.events["topology"] == "track"]
    expected = tracks["opening_angle_deg"].median()
    assert found.metrics["test_track/median_deg"] == pytest.approx(expected)


def test_metrics_are_finite_and_have_names_that_trackers_accept(found):
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert all(re.fullmatch(r"test(_[a-z]+)?/[a-z0-9_]+", name) for name in found.metrics)


def test_headline_has_the_model_first_and_every_baseline(found):
    names = [summary.name for summary in found.headline()]
    assert names == list(TITLES)
    assert found.headline()[0].gain is None


def test_figures_are_pictures_with_something_drawn(found):
    assert {*CAPTIONS, "event_best_1", "event_median_1", "event_worst_1"} == set(found.figures)
    for name, png in found.figures.items():
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert picture.shape[1] >= 600, name
        assert 0.002 < (picture < 250).mean() < 0.9, name


def test_report_is_self_contained_small_and_escaped(found):
    page = found.report_html
    assert len(page) < 5_000_000
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "Run &lt;script&gt;" in page
    assert "s3://raw/&lt;img src=x onerror=y&gt;" in page
    assert "&lt;/pre&gt;&lt;script&gt;2" in page
    assert "sha256:12ab" in page
    assert "d_model: 8" in page
    assert page.count("<img ") == len(found.figures)


def test_report_says_the_bias_and_the_median_kappa(found):
    (line,) = re.findall(r'<p id="bias">(.*)</p>', found.report_html)
    figures = re.findall(r"[xyz] (−?[\d.]+) ± [\d.]+", line)
    expected = [found.events[f"bias_{axis}"].mean() for axis in "xyz"]
    assert [float(text.replace("−", "-")) for text in figures] == pytest.approx(expected, abs=2e-3)
    (kappa,) = re.findall(r"Median κ ([\d.]+) ± ", line)
    assert float(kappa) == pytest.approx(found.events["kappa"].median(), rel=0.02)


def test_report_shows_small_bins_as_small(found):
    assert found.slices["small"].any()
    bins = found.report_html.split("<h2>Accuracy in bins</h2>")[1]
    assert bins.count('<tr class="small">') == int(found.slices["small"].sum())


PLAIN = CONFIG.model_copy(update={"n_displays": 0})


def test_two_events_are_scored_with_errors_and_one_of_a_topology_without():
    config = EvaluationConfig(n_bootstrap=100, likelihood_fit=False, n_displays=0)
    two = [track_batch(2, seed=1)]
    truth = truth_of(two).assign(topology=["track", "cascade"])  # one event of each
    scored = evaluate(LineFitModel(), two, truth, config)
    assert all(math.isfinite(value) for value in scored.metrics.values())
    assert scored.headline()[0].estimates["mean"].error > 0
    assert not re.search(r"\bnan\b", scored.report_html, re.IGNORECASE)


@pytest.fixture(scope="module")
def without_truth() -> Evaluation:
    return evaluate(LineFitModel(), BATCHES, None, PLAIN)


def test_metrics_are_reproducible(found, without_truth):
    names = [n for n in without_truth.metrics if n.endswith(("mean_deg", "median_deg"))]
    exact = [name for name in names if not name.startswith("test_error/")]
    assert len(exact) == 2 * (3 + len(CLASSICAL_FITS))
    assert all(without_truth.metrics[name] == found.metrics[name] for name in exact)


def test_evaluation_works_without_truth(without_truth):
    assert "angle_vs_energy" not in without_truth.figures
    assert not any("track/" in name for name in without_truth.metrics)
    assert "Energy of tracks" not in without_truth.report_html


def test_figures_are_reproducible_to_the_byte(without_truth):
    again = draw_calibration(without_truth.events)
    assert again == without_truth.figures["calibration"]


@pytest.mark.parametrize("n_events", [1, 4])
def test_evaluation_survives_a_handful_of_events(n_events):
    batch = track_batch(n_events, seed=3)
    found = evaluate(LineFitModel(), [batch], truth_of([batch]), PLAIN)
    assert len(found.events) == n_events
    assert all(math.isfinite(value) for value in found.metrics.values())
    words = found.report_html.split("<body>")[1].split("base64")[0]
    assert "nan" not in words
    # of one event nothing is judged, which is said in its place
    judged = ["inf" in words, "κ is calibrated" in words, "no figure has an error" in words]
    assert judged == ([False, False, True] if n_events == 1 else [False, True, False])


# Refinement of bright test events, beside the model's own answers.

CHUNKS = [random_dom_events(8, seed=4), random_dom_events(8, seed=5, first_event_id=100)]
REFINING = PLAIN.model_copy(update={"refine_events": 3, "likelihood_fit": False})
OF_DETECTOR = ReportContext("Run", detector=icecube86())


def whole(chunks: list[DomEvents]) -> list[EventBatch]:
    return list(iter_batches(iter(chunks), icecube86(), WHOLE))


def truth_of_chunks() -> pd.DataFrame:
    truth = truth_of(whole(CHUNKS))
    return truth.assign(energy_gev=np.where(truth["event_id"] < 100, 5e3, 5e4))


@pytest.fixture(scope="module")
def refined() -> Evaluation:
    # the model sees few DOMs of each event, the fit all
    few = list(iter_batches(iter(CHUNKS), icecube86(), BatchConfig(max_doms_per_event=12)))
    model = LineFitModel()
    return evaluate(model, few, truth_of_chunks(), REFINING, context=OF_DETECTOR, chunks=CHUNKS)


def test_refined_events_are_bright_and_chosen_by_hash_in_any_order(refined):
    charge = np.concatenate([triggering_charge_pe(batch) for batch in whole(CHUNKS)])
    event_id = np.concatenate([chunk.event_id for chunk in CHUNKS])
    bright = event_id[charge >= MIN_CHARGE_PE["ice"]]
    assert 3 < len(bright) < len(event_id)
    chosen = sorted(bright, key=lambda one: mixed_bits(np.array([one]), SALT)[0])[:3]
    # of events that are refined nothing is known but their id: neither order nor model matter
    events = refined.events.assign(kappa=1e-3)
    sample = refine_sample(CHUNKS[::-1], events, 3, icecube86())
    assert sample.events["event_id"].tolist() == chosen
    assert (sample.n_bright, sample.n_events) == (len(bright), len(event_id))
    assert set(sample.events["refined_as"]) <= {"cascade", "track", "as predicted"}
    whole_batch = join_batches(whole(CHUNKS))
    rows = [whole_batch.event_id.tolist().index(one) for one in chosen]
    assert sample.events["triggering_charge_pe"].to_numpy() == pytest.approx(
        triggering_charge_pe(whole_batch)[rows]
    )


def test_events_are_bright_from_a_lower_charge_on_in_water(refined):
    charge = np.concatenate([triggering_charge_pe(batch) for batch in whole(CHUNKS)])
    # lowered, so that some lie between the two thresholds
    dim = [replace(chunk, charge_pe=0.3 * chunk.charge_pe) for chunk in CHUNKS]
    water = replace(icecube86(), stated_medium=WATER)
    sample = refine_sample(dim, refined.events, 1, water)
    n_in_ice = refine_sample(dim, refined.events, 1, icecube86()).n_bright
    assert n_in_ice == (0.3 * charge >= 30).sum() < sample.n_bright == (0.3 * charge >= 6).sum()
    assert "with at least 6 p.e. that triggered, the default in water" in refined_words(sample)


def test_only_the_chosen_events_become_minibatches(refined, monkeypatch):
    n_collated = []

    def counted(chunk, rows, *settings):
        n_collated.append(len(rows))
        return collate(chunk, rows, *settings)

    monkeypatch.setattr("iceaggr.evaluation.baselines.collate", counted)
    sample = refine_sample(CHUNKS, refined.events, 3, icecube86())
    assert n_collated == [1] * len(sample.events) == [1, 1, 1]


def test_refined_answers_are_those_of_refine_with_the_predictions_as_prior(refined):
    sample = refine_sample(CHUNKS, refined.events, 3, icecube86())
    first = sample.events.iloc[0]
    chunk = next(c for c in CHUNKS if first["event_id"] in c.event_id)
    alone = collate(chunk, np.flatnonzero(chunk.event_id == first["event_id"]), icecube86(), WHOLE)
    row = sample.events.iloc[:1]
    start = directions(row, "azimuth", "zenith").numpy()
    found = refine(alone, site_of(icecube86()), start, row["kappa"].to_numpy())
    assert first["refined_kappa"] == pytest.approx(found.kappa[0], rel=1e-6)
    true = directions(row, "true_azimuth", "true_zenith").numpy()[0]
    angle = np.rad2deg(np.arccos(np.clip(found.direction[0] @ true, -1, 1)))
    assert first["refined_angle_deg"] == pytest.approx(angle, abs=1e-4)


def test_refined_figures_are_paired_and_cut_by_topology_and_energy(refined):
    sample = refine_sample(CHUNKS, refined.events, 3, icecube86())
    table = refined.refined
    rows = table.set_index(["part", "method"])
    assert rows.loc[("all", "refined"), "n_events"] == 3
    before, after = (sample.events[n] for n in ("opening_angle_deg", "refined_angle_deg"))
    assert rows.loc[("all", "model"), "mean_deg"] == pytest.approx(before.mean())
    assert rows.loc[("all", "refined"), "median_deg"] == pytest.approx(after.median())
    assert rows.loc[("all", "refined"), "gain_deg"] == pytest.approx((before - after).mean())
    assert rows.loc[("all", "model"), "gain_deg"] == 0
    pit = probability_inside(np.deg2rad(after), sample.events["refined_kappa"])
    assert rows.loc[("all", "refined"), "coverage_68"] == pytest.approx((pit <= 0.68).mean())
    for topology, part in sample.events.groupby("topology"):
        for suffix, inside in (("low", part["event_id"] < 100), ("high", part["event_id"] >= 100)):
            n_there = table[table["part"] == f"{topology}_{suffix}"]["n_events"].unique().tolist()
            assert n_there == ([int(inside.sum())] if inside.any() else [])
    parts = muon_parts(sample.events)
    counts = {name: int(rows.loc[(name, "refined"), "n_events"]) for name in parts}
    assert counts == {name: len(part) for name, part in parts.items()}
    assert sum(counts.values()) == 3
    assert refined.metrics["test_refined/gain_deg"] == pytest.approx((before - after).mean())
    assert refined.metrics["test_refined/network_mean_deg"] == pytest.approx(before.mean())
    assert refined.metrics["test_refined/n_events"] == 3
    assert refined.metrics["test_refined/milliseconds_per_event"] > 0


def test_report_tells_which_events_were_refined_and_what_it_cost(refined):
    assert 'id="refined"' in refined.report_html
    assert re.search(
        r"3, chosen by a hash of event_id, of the \d+ test events with at least 30 p\.e\. that"
        r" triggered, the default in ice \(16 were looked at\): \d as cascade, \d as track,"
        r" \d+ ms of one core",
        refined.report_html,
    )
    claim = refined_claim(refined.refined)
    assert claim.startswith("In their 68 % region lie ")
    assert claim in refined.report_html


def test_nothing_is_refined_unless_it_is_asked_for():
    config = REFINING.model_copy(update={"refine_events": 0})
    batches, chunks = whole(CHUNKS), iter(CHUNKS)
    without = evaluate(LineFitModel(), batches, None, config, context=OF_DETECTOR, chunks=chunks)
    assert len(list(chunks)) == 2
    assert 'id="refined"' not in without.report_html
    assert not [name for name in without.metrics if name.startswith("test_refined")]
    assert without.refined.empty
