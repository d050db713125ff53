"""Background threads that end with their iterator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Note = TypeVar("Note")
Result = TypeVar("Result")


class CallerExecutor(Executor):
    """Runs each task at once in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task; its exception is raised by result(), as with threads."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def workers(n_workers: int) -> Iterator[Executor]:
    """Start threads (0 = run tasks in the caller); on leaving, cancel what waits and join them."""
    executor: Executor = (
        ThreadPoolExecutor(n_workers, thread_name_prefix="iceaggr-batches")
        if n_workers
        else CallerExecutor()
    )
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def in_order(
    tasks: Iterator[tuple[Future[Result], Note]], n_ahead: int
) -> Iterator[tuple[Result, Note]]:
    """Yield each result with its note, in the order of submission, up to n_ahead under way."""
    under_way: deque[tuple[Future[Result], Note]] = deque()
    for task in tasks:
        under_way.append(task)
        if len(under_way) > n_ahead:
            future, note = under_way.popleft()
            yield future.result(), note
    while under_way:
        future, note = under_way.popleft()
        yield future.result(), note
