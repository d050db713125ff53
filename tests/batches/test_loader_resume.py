"""The loader for any number of ranks: complete, disjoint, resumable anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceaggr.batches import EventLoader
from iceaggr.batches.loader import Position
from iceaggr.config import BatchConfig
from iceaggr.errors import ShardError
from iceaggr.shards.manifest import ShardManifest
from tests.batches.small_loaders import N_EVENTS, ids, loader

configs = st.builds(
    BatchConfig,
    n_events=st.integers(1, 70),
    n_mixed_shards=st.integers(1, 12),
    n_workers=st.integers(0, 3),
    n_batches_ahead=st.integers(1, 5),
    max_doms_per_event=st.just(20),
    max_doms_per_batch=st.sampled_from([0, 20, 100]),
    seed=st.integers(0, 3),
)
shuffles = st.sampled_from([None, False])


def run_ranks(
    one_of: Callable[[int, int], EventLoader], world: int, start: Position, rounds: int
) -> tuple[list[int], Position, list[int]]:
    """Let every rank do some rounds; returns ids, the position after, batches per rank."""
    seen: list[int] = []
    positions, counts = [], []
    for rank in range(world):
        one = one_of(rank, world)
        iterator = one.epoch(2, start)
        batches = list(islice(iterator, rounds))
        del iterator
        seen += ids(batches)
        counts.append(len(batches))
        positions.append(one.position if batches else start)
    assert all(position == positions[0] for position in positions)
    return seen, positions[0], counts


@given(
    config=configs,
    worlds=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    stops=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    shuffle=shuffles,
)
@settings(max_examples=30, deadline=None)
def test_epoch_repeats_and_skips_nothing_when_resumed_by_other_numbers_of_ranks(
    manifest: ShardManifest,
    config: BatchConfig,
    worlds: tuple[int, int, int],
    stops: tuple[int, int],
    shuffle: bool | None,
) -> None:
    def one_of(rank: int, world_size: int) -> EventLoader:
        return loader(manifest, config, rank=rank, world_size=world_size, shuffle=shuffle)

    position: Position = {"epoch": 2, "n_events_done": 0}
    everything: list[int] = []
    for world, rounds in zip(worlds, (*stops, 10**6), strict=True):
        seen, position, counts = run_ranks(one_of, world, position, rounds)
        assert len(set(counts)) == 1
        everything += seen
        position = json.loads(json.dumps(position))
        assert position == {"epoch": 2, "n_events_done": len(everything)}
    assert sorted(everything) == list(range(N_EVENTS))


@given(config=configs, world=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_n_batches_is_what_every_rank_gets(
    manifest: ShardManifest, config: BatchConfig, world: int
) -> None:
    for rank in range(world):
        one = loader(manifest, config, rank=rank, world_size=world)
        assert len(list(one.epoch(2))) == one.n_batches(2)


def test_loader_refuses_a_rank_outside_the_world(manifest: ShardManifest) -> None:
    with pytest.raises(ValueError, match="rank 2 is outside a world of 2"):
        loader(manifest, rank=2, world_size=2)


@pytest.mark.parametrize(
    "position", [{"epoch": 1, "n_events_done": 0}, {"epoch": 0, "n_events_done": N_EVENTS + 1}]
)
def test_epoch_refuses_a_position_of_other_data(
    manifest: ShardManifest, position: Position
) -> None:
    with pytest.raises(ShardError, match="position is not of this epoch and data"):
        loader(manifest).epoch(0, position)


def test_epoch_is_empty_when_resumed_at_its_end(manifest: ShardManifest) -> None:
    assert list(loader(manifest).epoch(0, {"epoch": 0, "n_events_done": N_EVENTS})) == []
