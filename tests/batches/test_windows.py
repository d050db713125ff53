"""Threads that keep the order, stay few, and end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

import pytest

from iceaggr.batches.windows import in_order, workers


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
