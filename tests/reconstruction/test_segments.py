import numpy as np
import pytest
import torch

from iceaggr.reconstruction.segments import (
    segment_max,
    segment_mean,
    segment_min,
    segment_quantile,
    segment_sum,
    segment_sum_rounded_once,
)

SEGMENT = torch.tensor([2, 0, 2, 0, 2, 4])
VALUES = torch.tensor([3.0, 1.0, -1.0, 5.0, 4.0, 7.0])


def test_reductions_match_a_loop_and_fill_empty_segments() -> None:
    assert segment_sum(VALUES, SEGMENT, 5).tolist() == [6, 0, 6, 0, 7]
    assert segment_mean(VALUES, SEGMENT, 5).tolist() == [3, 0, 2, 0, 7]
    assert segment_min(VALUES, SEGMENT, 5).tolist() == [1, np.inf, -1, np.inf, 7]
    assert segment_max(VALUES, SEGMENT, 5).tolist() == [5, -np.inf, 4, -np.inf, 7]


def test_sum_rounded_once_is_the_same_for_every_order_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3000, 4, generator=generator) * 10 ** torch.rand(
        3000, 4, generator=generator
    ).mul(4)
    segment = torch.randint(0, 20, (3000,), generator=generator)
    order = torch.randperm(3000, generator=generator)
    found = segment_sum_rounded_once(values, segment, 21)
    assert torch.equal(segment_sum_rounded_once(values[order], segment[order], 21), found)
    assert not torch.equal(
        segment_sum(values[order], segment[order], 21), segment_sum(values, segment, 21)
    )
    exact = segment_sum(values.double(), segment, 21)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=6e-8, atol=0)
    assert float(found[20].abs().max()) == 0


def test_weighted_mean_of_vectors_ignores_rows_of_no_weight() -> None:
    values = torch.stack([VALUES, 2 * VALUES], dim=-1)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 2.0])
    found = segment_mean(values, SEGMENT, 5, weight)
    torch.testing.assert_close(found[:, 0], torch.tensor([5.0, 0, 1, 0, 7]))
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_quantile_is_the_first_value_that_reaches_the_share(share: float) -> None:
    rng = np.random.default_rng(0)
    segment = rng.integers(0, 20, 300)
    segment[segment == 7] = 8
    values, weight = rng.normal(size=300), rng.uniform(0.1, 5, 300)
    found = segment_quantile(
        torch.tensor(values), torch.tensor(weight), share, torch.tensor(segment), 20
    )
    for number in range(20):
        mine = segment == number
        expected = 0.0
        if mine.any():
            order = np.argsort(values[mine])
            running = np.cumsum(weight[mine][order])
            reached = running >= share * running[-1] * (1 - 1e-12)
            expected = values[mine][order][np.argmax(reached)]
        assert float(found[number]) == expected
