"""Tables of figures: every statistic of every method with its interval."""

import numpy as np
import pytest

from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.evaluation import energy_words
from iceaggr.evaluation.metrics import (
    flat_metrics,
    method_table,
    model_estimates,
    summarize_methods,
)
from iceaggr.evaluation.slices import STATISTICS
from tests.evaluation.track_events import LineFitModel, track_batch, truth_of


@pytest.fixture(scope="module")
def summaries_and_events():
    from iceaggr.evaluation.evaluation import evaluate

    batches = [track_batch(120, seed=0)]
    config = EvaluationConfig(n_bootstrap=200, n_displays=0, likelihood_fit=False)
    found = evaluate(LineFitModel(), batches, truth_of(batches), config)
    return summarize_methods(found.events, config, {}, {}), found.events


def test_method_table_lists_every_statistic_with_its_interval(summaries_and_events):
    summaries, events = summaries_and_events
    table = method_table(summaries)
    parts = {"all", "muon", "nomuon", *events["topology"].unique()}
    n_gains = len(summaries) - 1
    assert len(table) == len(summaries) * len(parts) * len(STATISTICS) + n_gains
    assert set(table["events"]) == parts
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    mean = table.query("method == 'model' and events == 'all' and statistic == 'mean'")
    assert mean["value"].item() == pytest.approx(events["opening_angle_deg"].mean())


def test_method_table_has_gain_and_what_only_the_model_has(summaries_and_events):
    summaries, events = summaries_and_events
    of_model = model_estimates(events, EvaluationConfig(n_bootstrap=200))
    table = method_table(summaries, of_model).query("events == 'all'")
    assert set(table.query("statistic == 'gain'")["method"]) == {s.name for s in summaries[1:]}
    mine = table[table["statistic"].isin(of_model)].set_index("statistic")
    assert set(mine["method"]) == {"model"}
    assert (mine["low"] < mine["high"]).all()
    assert mine.loc["bias_z", "value"] == pytest.approx(events["bias_z"].mean())
    assert mine.loc["kappa_median", "value"] == pytest.approx(events["kappa"].median())
    metrics = flat_metrics(events, summaries)
    nats = mine.loc["negative_log_likelihood"]
    name = "test_kappa/negative_log_likelihood"
    assert [nats["value"], nats["error"]] == pytest.approx(
        [metrics[name], metrics[f"{name}_error"]]
    )
    assert mine.loc["bias_z", "error"] == pytest.approx(metrics["test_bias/z_error"])
    assert mine.loc["coverage_68", "value"] == pytest.approx(metrics["test_kappa/coverage_68"])


def test_worst_tenth_by_kappa_is_tracked(summaries_and_events):
    summaries, events = summaries_and_events
    changed = events.assign(kappa=np.linspace(1, 3, len(events)), opening_angle_deg=70.0)
    surest = changed.index[-len(events) // 10 :]
    changed.loc[surest, "kappa"] = 1e4
    metrics = flat_metrics(changed, summaries)
    assert metrics["test_kappa/worst_width_ratio"] == pytest.approx(81.1, rel=0.01)
    assert metrics["test_kappa/worst_width_ratio_error"] == pytest.approx(0.0, abs=1e-6)


def test_names_differ_within_what_a_tracker_shows(summaries_and_events):
    summaries, events = summaries_and_events
    names = [name for name in flat_metrics(events, summaries) if name.startswith("test/")]
    assert sorted(names)[0] == "test/mean_deg", "charts open with the first name"
    assert len({name[:14] for name in names}) == len(names)


@pytest.mark.parametrize(
    ("energy_gev", "words"),
    [
        (96.4, "96.4 GeV"),
        (999.6, "1 TeV"),
        (12_345.0, "12.3 TeV"),
        (1.96e6, "1.96 PeV"),
        (3e9, "3 EeV"),
    ],
)
def test_energy_is_written_in_the_unit_that_suits_it(energy_gev, words):
    assert energy_words(energy_gev) == words
