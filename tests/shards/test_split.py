import numpy as np
import pytest

from iceaggr.errors import RawDataError
from iceaggr.shards.split import (
    TEST,
    TRAIN,
    VALIDATION,
    events_that_fill,
    refuse_small_splits,
    split_idx,
)

IDS = np.concatenate([np.arange(100_000), 24 * np.arange(100_000) + 2**40, -np.arange(1, 1000)])


def test_split_idx_is_the_same_for_every_order_and_grouping():
    whole = split_idx(IDS, "salt", 0.1, 0.1)
    order = np.random.default_rng(0).permutation(len(IDS))
    np.testing.assert_array_equal(split_idx(IDS[order], "salt", 0.1, 0.1), whole[order])
    one_by_one = [split_idx(IDS[i : i + 1], "salt", 0.1, 0.1)[0] for i in range(50)]
    np.testing.assert_array_equal(one_by_one, whole[:50])


def test_split_idx_never_changes_between_versions():
    ids = np.array([0, 1, 24, 41, 2092, 1999013610, 2**63 - 1, -(2**63)])
    assert split_idx(ids, "iceaggr-1", 0.3, 0.3).tolist() == [1, 0, 1, 1, 1, 2, 2, 0]


def test_split_idx_meets_its_shares_on_regular_ids():
    for ids in (IDS[:100_000], IDS[100_000:200_000]):
        split = split_idx(ids, "iceaggr-1", 0.1, 0.2)
        shares = np.bincount(split, minlength=3) / len(ids)
        np.testing.assert_allclose(shares[[TRAIN, VALIDATION, TEST]], [0.7, 0.1, 0.2], atol=0.005)


def test_split_idx_depends_on_the_salt():
    first, second = split_idx(IDS, "a", 0.1, 0.1), split_idx(IDS, "b", 0.1, 0.1)
    both = ((first == TEST) & (second == TEST)).mean()
    np.testing.assert_allclose(both, 0.01, atol=0.002)


def test_split_idx_moves_no_event_between_test_and_validation_when_shares_change():
    small, large = split_idx(IDS, "a", 0.1, 0.1), split_idx(IDS, "a", 0.2, 0.3)
    assert (large[small == TEST] == TEST).all()
    assert (large[small == VALIDATION] == VALIDATION).all()


def test_split_of_one_event_is_refused_with_the_number_that_would_do():
    with pytest.raises(
        RawDataError, match=r"for the splits validation and test \[somewhere\]"
    ) as e:
        refuse_small_splits({"train": 10, "validation": 1}, 0.1, 0.1, "somewhere")
    assert "11 events: train 10, validation 1, test 0" in e.value.found
    n_events = events_that_fill(0.1)
    assert f"Give {n_events} events or more, or raise data.validation_share" in e.value.remedy
    refuse_small_splits({"train": 2, "validation": 2, "test": 2}, 0.1, 0.1, "somewhere")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_number_that_would_do_almost_always_does(share):
    n_events = events_that_fill(share)
    rng = np.random.default_rng(0)
    n_short = sum(
        np.count_nonzero(split_idx(rng.integers(0, 2**40, n_events), "s", share, 0.1) == 1) < 2
        for _ in range(2000)
    )
    assert n_short <= 10
    assert events_that_fill(share / 2) > n_events
