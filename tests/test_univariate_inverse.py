"""The other direction of a univariate bijection."""

import normflows as nf
import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.univariate.rational_quadratic_form import softplus_of_one


def test_is_the_layer_of_normflows():
    """In an autoregressive layer, the spline from data to latent with softplus slopes."""
    torch.manual_seed(0)
    spline = mb.RationalQuadratic(slopes="softplus")
    layer = mb.Autoregressive(3, mb.Inverse(spline), hidden_features=16)
    theirs = nf.flows.AutoregressiveRationalQuadraticSpline(3, 2, 16)
    torch.nn.init.normal_(layer.net.final_layer.weight)
    theirs.mprqat.autoregressive_net.load_state_dict(layer.net.state_dict())
    with torch.no_grad():
        slopes = theirs.mprqat.autoregressive_net.final_layer.bias.view(3, -1)[:, 16:]
        slopes += softplus_of_one(1e-3)
    x = torch.randn(50, 3)
    assert_close(layer.inverse(x), theirs.inverse(x), atol=1e-4, rtol=1e-4)
    assert_close(layer(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_twice_is_the_bijection_itself():
    spline = mb.RationalQuadratic(num_bins=4)
    x, params = torch.randn(9), torch.randn(9, 11)
    twice = mb.Inverse(mb.Inverse(spline))
    assert_close(twice(x, params), spline(x, params), atol=0, rtol=0)


@pytest.mark.parametrize("wrong", [mb.RationalQuadratic, "spline", None])
def test_refuses_what_is_no_bijection(wrong):
    with pytest.raises(TypeError, match="Inverse: bijection must be a univariate one"):
        mb.Inverse(wrong)
