"""Dealing: every rank the same number of rounds, every event once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceaggr.batches.dealing import Span, cut_evenly, deal


def spans_of(n_events_of_spans: list[int], first: int = 0) -> list[Span]:
    spans = []
    for n_events in n_events_of_spans:
        spans.append(Span(first, first + n_events))
        first += n_events
    return spans


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), world_size=st.integers(1, 12))
def test_deal_gives_each_event_to_one_rank_in_equal_rounds(
    sizes: list[int], world_size: int
) -> None:
    hands = [list(deal(spans_of(sizes), rank, world_size)) for rank in range(world_size)]
    assert {len(hand) for hand in hands} == {-(-len(sizes) // world_size)}
    first = 0
    for one_round in zip(*hands, strict=True):
        for dealt in one_round:
            assert dealt.span.first == first
            first = dealt.span.end
        assert {dealt.n_events_done for dealt in one_round} == {first}
    assert first == sum(sizes)


def test_deal_cuts_the_last_round_evenly() -> None:
    sizes = [
        [one.span.n_events for one in deal(spans_of([8, 8, 8, 8, 8]), rank, 4)] for rank in range(4)
    ]
    assert sizes == [[8, 2], [8, 2], [8, 2], [8, 2]]


def test_deal_leaves_the_last_small_batch_whole_for_one_rank() -> None:
    assert [d.span.n_events for d in deal(spans_of([8, 8, 3]), 0, 1)] == [8, 8, 3]


def test_deal_gives_empty_spans_only_when_fewer_events_than_ranks_are_left() -> None:
    last = [list(deal(spans_of([8, 8, 8, 2]), rank, 3))[-1].span.n_events for rank in range(3)]
    assert sorted(last) == [0, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "n_wanted", "expected"),
    [([9], 3, [3, 3, 3]), ([8, 2], 3, [4, 4, 2]), ([6, 6, 1], 5, [3, 3, 3, 3, 1])],
)
def test_cut_evenly_cuts_the_largest_finest(
    sizes: list[int], n_wanted: int, expected: list[int]
) -> None:
    assert [span.n_events for span in cut_evenly(spans_of(sizes), n_wanted)] == expected
