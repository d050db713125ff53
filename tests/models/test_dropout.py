import pytest
import torch

from iceaggr.models.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 999)
    y = Dropout(share)(x)
    assert float((y == 0).float().mean()) == pytest.approx(share, abs=0.003)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    # neighbours are independent: the lanes of one draw must not be linked
    both = ((y[:, 1:] == 0) & (y[:, :-1] == 0)).float().mean()
    assert float(both) == pytest.approx(share**2, abs=0.005)


def test_dropout_gradient_uses_the_same_mask() -> None:
    x = torch.ones(40, 50, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_follows_the_generator_and_rests_in_evaluation() -> None:
    layer, x = Dropout(0.4), torch.randn(30, 7)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x
