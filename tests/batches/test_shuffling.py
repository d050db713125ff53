"""The order of an epoch: pure, complete, well mixed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceaggr.batches.shuffling import (
    N_NEIGHBOURS,
    Span,
    cut_evenly,
    deal,
    grouped_by_length,
    in_order,
    mixed_order,
    permutation,
    random_numbers,
    shuffle_key,
    windows_of,
    workers,
)
from iceaggr.config import BatchConfig


def test_random_numbers_are_those_of_splitmix64() -> None:
    # first outputs for seed 0 of the reference implementation, prng.di.unimi.it/splitmix64.c
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert random_numbers(3, 0).tolist() == [(x >> 11) * 2.0**-53 for x in expected]


def test_random_numbers_are_uniform_and_independent_between_keys() -> None:
    n = 100_000
    first, second = random_numbers(n, shuffle_key("a")), random_numbers(n, shuffle_key("b"))
    counts = np.bincount((first * 100).astype(int), minlength=100)
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)


def test_shuffle_key_depends_on_every_part() -> None:
    assert shuffle_key("m", 0, 1) == shuffle_key("m", 0, 1)
    assert len({shuffle_key("m", 0, 1), shuffle_key("m", 1, 0), shuffle_key("n", 0, 1)}) == 3


@given(n_shards=st.integers(1, 300), n_mixed=st.integers(1, 64), shuffled=st.booleans())
def test_windows_hold_every_shard_once_and_mix_enough(
    n_shards: int, n_mixed: int, shuffled: bool
) -> None:
    windows = windows_of(n_shards, n_mixed, 5 if shuffled else None)
    together = np.concatenate(windows)
    assert sorted(together.tolist()) == list(range(n_shards))
    assert min(len(window) for window in windows) >= min(n_shards, n_mixed)
    if not shuffled:
        assert together.tolist() == list(range(n_shards))


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8), key=st.integers(0, 2**64 - 1))
def test_mixed_order_is_a_permutation_and_pure(sizes: list[int], key: int) -> None:
    order = mixed_order(np.array(sizes), key)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    np.testing.assert_array_equal(order, mixed_order(np.array(sizes), key))


def test_mixed_order_keeps_neighbours_apart() -> None:
    sizes = np.full(32, 2048)
    order = mixed_order(sizes, 11)
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    for distance in range(1, N_NEIGHBOURS + 1):
        gaps = np.abs(
            place.reshape(32, 2048)[:, distance:] - place.reshape(32, 2048)[:, :-distance]
        )
        assert gaps.min() > 900


def test_mixed_order_gives_every_batch_its_share_of_every_shard() -> None:
    sizes = np.full(32, 2048)
    shard = mixed_order(sizes, 12) // 2048
    counts = np.stack([np.bincount(batch, minlength=32) for batch in shard.reshape(-1, 256)])
    assert (counts > 0).sum(axis=1).min() >= 24
    chi_square = ((counts - 8.0) ** 2 / 8).sum() / counts.size
    assert 0.8 < chi_square < 1.05  # 1 = by chance; keeping neighbours apart evens it out a little


def test_grouped_batches_stay_within_the_budget_and_are_of_like_length() -> None:
    rng = np.random.default_rng(0)
    n_doms = np.minimum(rng.lognormal(3.5, 1, 10_000).astype(int) + 1, 512)
    config = BatchConfig(n_events=64, max_doms_per_batch=2000)
    order = permutation(10_000, 3)
    grouped, ends = grouped_by_length(order, n_doms, config, key=4)
    assert sorted(grouped.tolist()) == list(range(10_000))
    batches = np.split(n_doms[grouped], ends[:-1])
    assert max(batch.sum() for batch in batches) <= 2000
    assert max(len(batch) for batch in batches) <= 64
    spread = np.mean([batch.std() for batch in batches])
    assert spread < 0.25 * n_doms.std()
    sizes = [len(batch) for batch in batches]
    assert sizes != sorted(sizes), "batches of a group must not come shortest events first"


def test_grouping_leaves_the_order_alone_when_not_shuffled() -> None:
    n_doms = np.array([5, 500, 7, 9])
    config = BatchConfig(n_events=2, max_doms_per_batch=512)
    order, ends = grouped_by_length(np.arange(4), n_doms, config, key=None)
    assert order.tolist() == [0, 1, 2, 3]
    assert ends.tolist() == [2, 4]


# Dealing: every rank the same number of rounds, every event once.


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


# Threads that keep the order, stay few, and end.


def tasks(executor: Executor, n: int, started: list[int]) -> Iterator[tuple[Future[int], str]]:
    def work(i: int) -> int:
        time.sleep(0.002 * ((i * 7) % 3))
        return i * i

    for i in range(n):
        started.append(i)
        yield executor.submit(work, i), f"note {i}"


@pytest.mark.parametrize("n_workers", [0, 1, 4])
def test_in_order_keeps_results_and_notes_in_order(n_workers: int) -> None:
    with workers(n_workers) as executor:
        results = list(in_order(tasks(executor, 20, []), n_ahead=5))
    assert results == [(i * i, f"note {i}") for i in range(20)]


def test_in_order_starts_only_as_many_tasks_as_asked() -> None:
    started: list[int] = []
    with workers(2) as executor:
        results = in_order(tasks(executor, 100, started), n_ahead=3)
        for n_taken in range(1, 6):
            next(results)
            assert len(started) == n_taken + 3


def test_workers_end_when_left_with_tasks_waiting(
    own_threads: Callable[[], set[threading.Thread]],
) -> None:
    with workers(2) as executor:
        results = in_order(tasks(executor, 100, []), n_ahead=50)
        next(results)
        assert own_threads()
    assert not own_threads()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_in_order_raises_the_exception_of_a_task_in_its_turn(n_workers: int) -> None:
    def work(i: int) -> int:
        if i == 2:
            raise OSError("disk of task 2")
        return i

    with workers(n_workers) as executor:
        results = in_order(((executor.submit(work, i), i) for i in range(5)), n_ahead=2)
        assert [next(results)[0] for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="disk of task 2"):
            next(results)
