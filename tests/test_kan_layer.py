"""The invertible Kolmogorov-Arnold layer."""

import torch
from torch.testing import assert_close

import mixer_bijectors as mb


def test_kan_layer_is_a_linear_map_then_splines():
    layer = mb.KANLayer(4, grid_size=6, bound=2.0).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    splines, linear = layer.flows[0].flow, layer.flows[1]
    x = torch.randn(7, 4, dtype=torch.float64)
    z, log_det = layer.inverse(x)
    y, linear_log_det = linear.inverse(x)
    want, log_derivative = splines.univariate(y, splines.params)
    assert_close(z, want)
    assert_close(log_det, linear_log_det + log_derivative.sum(1))
