import pytest
import torch

from iceaggr.models.packing import Chunk, pack


def ragged(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


@pytest.mark.parametrize("max_rows", [1, 7, 10_000])
def test_pack_covers_every_row_once(max_rows: int) -> None:
    lengths = [3, 1, 1, 9, 2, 1, 3, 20, 19, 18, 1]
    packing = pack(ragged(lengths), max_rows)
    rows = torch.cat([chunk.rows for chunk in packing.chunks])
    assert sorted(rows.tolist()) == list(range(sum(lengths)))
    assert sum(chunk.n_segments for chunk in packing.chunks) == len(lengths)


def test_pack_bounds_the_rows_of_a_chunk_unless_one_segment_is_longer() -> None:
    packing = pack(ragged([3, 1, 1, 9, 2, 1, 3, 50, 19]), 10)
    for chunk in packing.chunks:
        assert len(chunk.rows) <= 10 or chunk.n_segments == 1


def test_restore_undoes_the_order_of_packing() -> None:
    lengths = [5, 1, 4, 1, 2]
    packing = pack(ragged(lengths), 6)
    found = torch.cat([torch.bincount(chunk.segment) for chunk in packing.chunks])
    assert packing.restore(found).tolist() == lengths


def test_group_unpad_undoes_pad() -> None:
    lengths = [40, 41, 41, 42, 1, 1, 3]
    packing = pack(ragged(lengths), 10_000)
    (chunk,) = packing.chunks
    values = torch.randn(sum(lengths), 4)
    joined = torch.cat([group.unpad(group.pad(values)) for group in chunk.groups])
    torch.testing.assert_close(joined, values)
    assert any(group.is_real is not None for group in chunk.groups), "no group was padded"


def test_pack_pads_little() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 200, (500,), generator=generator).tolist()
    (chunk,) = pack(ragged(lengths), 10**9).chunks
    assert padded_rows(chunk) <= 1.07 * sum(lengths)
    assert len(chunk.groups) < 100


def padded_rows(chunk: Chunk) -> int:
    return sum(group.n * group.length for group in chunk.groups)


def test_pack_splits_calls_with_too_many_pairs() -> None:
    (chunk,) = pack(ragged([2000] * 5), 10**9).chunks
    assert [group.n for group in chunk.groups] == [2, 2, 1]


def test_pack_refuses_empty_segments() -> None:
    with pytest.raises(ValueError, match="segment 1 is empty"):
        pack(torch.tensor([0, 2, 2, 5]), 100)
