"""Champions of another split: judged only on events that they were not trained with."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import ExperimentConfig, ModelConfig, PromotionConfig
from iceaggr.detector import icecube86
from iceaggr.evaluation.promotion import decide_promotion
from iceaggr.models import build_model
from iceaggr.models.bundle import LoadedModel
from iceaggr.normalization_document import Normalization
from iceaggr.shards.reading import read_shard
from iceaggr.shards.split import TEST, split_idx
from iceaggr.steps.champion import (
    batches_of,
    judge_against,
    kept_for_testing,
    score_champion,
    split_of,
)
from iceaggr.storage import open_store
from tests.batches.shard_builder import write_shards
from tests.steps.conftest import small_model

# Test events that were no train events of a model with another split.


def split_facts_of(**data):
    return {"experiment": ExperimentConfig(data=data).model_dump(mode="json")}


@pytest.mark.parametrize(
    ("data", "share"),
    [({}, 1.0), ({"split_salt": "other"}, 0.1), ({"test_share": 0.05}, 0.5)],
)
def test_share_of_test_events_that_another_split_kept_too(data, share):
    ids = np.arange(200_000)
    ours = ids[split_idx(ids, "iceaggr-1", 0.1, 0.1) == TEST]
    kept = kept_for_testing(split_of(split_facts_of(**data)), ours)
    assert kept.mean() == pytest.approx(share, abs=0.02)
    theirs = split_idx(ours, *split_of(split_facts_of(**data)).values())
    assert (theirs[kept] == TEST).all()
    assert (theirs[~kept] != TEST).all()


@pytest.mark.parametrize("facts", [{}, {"experiment": {}}, {"experiment": {"data": {}}}])
def test_split_is_unknown_when_the_model_does_not_say_all_of_it(facts):
    assert split_of(facts) == {}
    partly = split_facts_of()
    del partly["experiment"]["data"]["split_salt"]
    assert split_of(partly) == {}


N_EVENTS = 600
OTHER = {"split_salt": "other"}


def test_batches_of_a_model_leave_out_the_cache_of_the_machine_that_trained_it() -> None:
    trained_with = {"max_doms_per_event": 7, "cache_folder": "/scratch/of/another/machine"}
    experiment = ExperimentConfig.model_validate({"batches": trained_with})
    model = build_model(ModelConfig(d_model=8, n_heads=1), Normalization.seed())
    facts = {"experiment": experiment.model_dump(mode="json")}
    batches = batches_of(LoadedModel(model, icecube86(), facts))
    assert (batches.max_doms_per_event, batches.cache_folder) == (7, "")


def settings(min_shared_events: int = 30) -> PromotionConfig:
    return PromotionConfig(min_shared_events=min_shared_events, max_calibration_loss=1.0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), [300, 300], split="test")


@pytest.fixture(scope="module")
def champion() -> LoadedModel:
    """A small network with random weights, of the default split."""
    model = small_model(Normalization.seed()).eval()
    return LoadedModel(model, icecube86(), facts_of(model.config))


def facts_of(model: ModelConfig, **data):
    return {"experiment": ExperimentConfig(model=model, data=data).model_dump(mode="json")}


@pytest.fixture(scope="module")
def events(manifest):
    """A challenger that is off by 30 degrees or by 80."""
    shards = [read_shard(open_store(), entry) for entry in manifest.shards]
    ids = np.concatenate([shard.event_id for shard in shards])
    return pd.DataFrame(
        {
            "event_id": ids,
            "true_azimuth": np.concatenate([shard.azimuth for shard in shards]),
            "true_zenith": np.concatenate([shard.zenith for shard in shards]),
            "opening_angle_deg": np.random.default_rng(0).choice([30.0, 80.0], len(ids)),
            "kappa": 1.0,
        }
    )


def judged(champion, manifest, events, config, **data):
    other = replace(champion, facts=facts_of(champion.model.config, **data))
    return judge_against(other, open_store(), manifest, events, config)


def fair_events(events, *split):
    return events[split_idx(events["event_id"].to_numpy(), *split) == TEST]


@pytest.mark.parametrize(
    ("data", "split"),
    [(OTHER, ("other", 0.1, 0.1)), ({"test_share": 0.4}, ("iceaggr-1", 0.1, 0.4))],
)
def test_champion_of_another_split_is_judged_on_the_test_events_of_both(
    champion, manifest, events, data, split
):
    fair = fair_events(events, *split)
    assert 30 < len(fair) < N_EVENTS
    scored = score_champion(champion, open_store(), manifest, events)
    expected = decide_promotion(fair, scored[scored["event_id"].isin(fair["event_id"])], settings())
    verdict = judged(champion, manifest, events, settings(), **data)
    assert verdict.comparison.n_events == len(fair)
    assert verdict.promote
    assert (verdict.comparison.margin_deg, verdict.comparison.error_deg) == (
        expected.comparison.margin_deg,
        expected.comparison.error_deg,
    )
    assert verdict.reason == (
        f"{expected.reason}; left out are {N_EVENTS - len(fair)} that are no test events of the"
        f" champion's split (split_salt {split[0]}, validation_share 0.1, test_share {split[2]})"
    )


def test_challenger_is_refused_when_too_few_test_events_are_shared(champion, manifest, events):
    n_fair = len(fair_events(events, "other", 0.1, 0.1))
    verdict = judged(champion, manifest, events, settings(n_fair + 1), **OTHER)
    assert not verdict.promote
    assert verdict.outcome == "not comparable"
    assert verdict.reason.startswith(
        f"not promoted: only {n_fair} of 600 test events are test events of the champion's split"
        " (split_salt other, validation_share 0.1, test_share 0.1) too, required are "
        f"{n_fair + 1}; train with its split"
    )
    assert judged(champion, manifest, events, settings(n_fair), **OTHER).promote


def test_few_events_suffice_when_the_splits_are_the_same(champion, manifest, events):
    few = fair_events(events.head(256), "iceaggr-1", 0.1, 0.1)  # all in the champion's first batch
    verdict = judge_against(champion, open_store(), manifest, few, settings(N_EVENTS))
    assert 2 < len(few) == verdict.comparison.n_events
    assert "left out" not in verdict.reason


@pytest.mark.parametrize(
    ("damage", "difference"),
    [
        (lambda d: {"xyz_m": d.xyz_m + np.array([0, 0, 3])}, "5160 sensors, 3.00 m apart"),
        (lambda d: {"sensor_id": d.sensor_id + 1}, "5160 sensors, other sensor ids"),
    ],
    ids=["moved", "other ids"],
)
def test_challenger_is_not_compared_with_a_champion_of_another_detector(
    champion, manifest, events, damage, difference
):
    detector = replace(icecube86(), **damage(icecube86()))
    other = replace(champion, detector=detector)
    verdict = judge_against(other, open_store(), manifest, events, settings())
    assert (verdict.promote, verdict.outcome) == (False, "not comparable")
    assert verdict.reason == (
        f"not promoted: the champion was trained with another detector ({difference}) than the"
        " test events'; train it on events of this detector, or begin under another"
        " promotion.model_name"
    )


def test_champion_whose_sensors_stand_within_a_centimetre_is_compared(champion, manifest, events):
    near = replace(icecube86(), xyz_m=icecube86().xyz_m + 0.009)
    other = replace(champion, detector=near)
    verdict = judge_against(other, open_store(), manifest, events, settings())
    assert verdict.comparison.rival == "champion"


def test_challenger_is_refused_when_the_champion_hides_its_split(champion, manifest, events):
    unknown = replace(champion, facts={})
    verdict = judge_against(unknown, open_store(), manifest, events, settings())
    assert not verdict.promote
    assert "champion does not say by which split it was trained" in verdict.reason


def test_models_of_the_official_split_are_judged_on_all_its_test_events(
    champion, manifest, events
) -> None:
    official = manifest.model_copy(update={"official_split": True})
    facts = {**facts_of(champion.model.config, **OTHER), "official_split": True}
    both = judge_against(replace(champion, facts=facts), open_store(), official, events, settings())
    assert both.comparison.n_events == N_EVENTS
    # it was trained with test events of the hash: no event is known to be fair
    mixed = judge_against(
        replace(champion, facts=facts), open_store(), manifest, events, settings()
    )
    assert mixed.outcome == "not comparable"
    assert "the split that its raw events brought" in mixed.reason
    # a champion of the hash has not seen its own test events, whatever is official now
    by_hash = judged(champion, official, events, settings(), **OTHER)
    assert by_hash.comparison.n_events == len(fair_events(events, "other", 0.1, 0.1))
