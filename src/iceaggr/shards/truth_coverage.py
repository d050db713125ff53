"""Whether the truth has the events that evaluation will ask it for: known before any is sharded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from iceaggr.config import DataConfig
from iceaggr.errors import RawDataError
from iceaggr.events.schema import reading_again
from iceaggr.events.truth import Ids, read_truth_ids
from iceaggr.events.unique_ids import stream_event_ids
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.format import SPLITS
from iceaggr.shards.split import split_idx


def check_truth(
    store: ObjectStore, raw_uri: str, meta_uri: str, batch_ids: Sequence[int], config: DataConfig
) -> None:
    """Check the truth folder, if there is one, as evaluation will: each value, each test event.

    Rows of events that are not among the raw files are nobody's concern.
    Raises: RawDataError naming file, column, row and event of a value that cannot be, or an event
    of the test split that has no truth.
    """
    truth_ids = read_truth_ids(store, raw_uri)
    if truth_ids is None:
        return
    missing, n_missing, n_test = _missing(store, meta_uri, batch_ids, config, truth_ids)
    if n_missing:
        raise RawDataError(
            "truth lacks events",
            where=f"{raw_uri}/truth/",
            found=f"no row of event_id {missing}; {n_missing:,} of {n_test:,} events of the test"
            " split without truth",
            expected="a row for every event of the test split, or no truth at all",
            remedy="Give the truth/ folder that was written with these events, or move it away:"
            " evaluation then goes without it",
        )


@reading_again
def _missing(
    store: ObjectStore, meta_uri: str, batch_ids: Sequence[int], config: DataConfig, truth: Ids
) -> tuple[int | None, int, int]:
    """Find the first test event without truth, and count these and all test events."""
    first, n_missing, n_test = None, 0, 0
    for ids in _test_ids(stream_event_ids(store, meta_uri, batch_ids), config):
        place = np.minimum(np.searchsorted(truth, ids), max(len(truth) - 1, 0))
        known = truth[place] == ids if len(truth) else np.zeros(len(ids), bool)
        n_test += len(ids)
        n_missing += int((~known).sum())
        if first is None and not known.all():
            first = int(ids[~known][0])
    return first, n_missing, n_test


def _test_ids(reads: Iterator[Ids], config: DataConfig) -> Iterator[Ids]:
    for ids in reads:
        split = split_idx(ids, config.split_salt, config.validation_share, config.test_share)
        yield ids[split == SPLITS.index("test")]
