"""Test events that were no train events of a model with another split."""

import numpy as np
import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.evaluation.held_out import kept_for_testing, split_of
from iceaggr.shards.split import TEST, split_idx


def facts_of(**data):
    return {"experiment": ExperimentConfig(data=data).model_dump(mode="json")}


@pytest.mark.parametrize(
    ("data", "share"),
    [({}, 1.0), ({"split_salt": "other"}, 0.1), ({"test_share": 0.05}, 0.5)],
)
def test_share_of_test_events_that_another_split_kept_too(data, share):
    ids = np.arange(200_000)
    ours = ids[split_idx(ids, "iceaggr-1", 0.1, 0.1) == TEST]
    kept = kept_for_testing(split_of(facts_of(**data)), ours)
    assert kept.mean() == pytest.approx(share, abs=0.02)
    theirs = split_idx(ours, *split_of(facts_of(**data)).values())
    assert (theirs[kept] == TEST).all()
    assert (theirs[~kept] != TEST).all()


@pytest.mark.parametrize("facts", [{}, {"experiment": {}}, {"experiment": {"data": {}}}])
def test_split_is_unknown_when_the_model_does_not_say_all_of_it(facts):
    assert split_of(facts) == {}
    partly = facts_of()
    del partly["experiment"]["data"]["split_salt"]
    assert split_of(partly) == {}
