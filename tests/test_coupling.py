"""Coupling layers against closed forms and peers."""

import normflows as nf
import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("features", [2, 5, 6])
def test_coupling_keeps_one_half(features, reverse):
    layer = mb.Coupling(features, hidden_features=8, reverse=reverse)
    torch.nn.init.normal_(layer.net.final.weight)
    x = torch.randn(4, features)
    same = (layer.inverse(x)[0] == x).all(0)
    first = torch.arange(features) < (features + 1) // 2
    assert torch.equal(same, ~first if reverse else first)


def test_coupling_agrees_with_normflows():
    """Same net, with its outputs interleaved as normflows expects them."""
    layer = mb.Coupling(6, mb.Additive(), hidden_features=8)
    torch.nn.init.normal_(layer.net.final.weight)
    reference = nf.flows.AffineCouplingBlock(layer.net, scale=False)
    x = torch.randn(4, 6)
    assert_close(layer.inverse(x), reference.inverse(x))
    assert_close(layer(x), reference(x))


def test_coupling_takes_any_net():
    class Sum(torch.nn.Module):
        def __init__(self, in_features, out_features, *, hidden_features, context_features):
            super().__init__()
            self.out_features = out_features

        def forward(self, x, context=None):
            return x.sum(1, keepdim=True).tanh().expand(-1, self.out_features)

    mb.check_bijection(mb.Coupling(5, net=Sum), torch.randn(3, 5))
