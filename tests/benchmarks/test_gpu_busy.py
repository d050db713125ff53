import numpy as np
import pytest
import torch

from benchmarks.train import busy_share, covered


@pytest.mark.parametrize(
    ("intervals", "length"),
    [
        ([], 0.0),
        ([(2.0, 5.0)], 3.0),
        ([(0.0, 1.0), (2.0, 4.0)], 3.0),
        ([(2.0, 4.0), (0.0, 3.0)], 4.0),
        ([(0.0, 9.0), (1.0, 2.0), (3.0, 4.0)], 9.0),
    ],
)
def test_covered_counts_each_point_once(
    intervals: list[tuple[float, float]], length: float
) -> None:
    assert covered(np.array(intervals).reshape(-1, 2)) == length


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_busy_share_is_high_for_one_long_product_after_the_other() -> None:
    device = torch.device("cuda", 0)
    left = torch.randn(4096, 4096, device=device)
    left @ left
    assert 0.8 < busy_share(lambda: torch.mm(left, left), 50, device) <= 1.0
