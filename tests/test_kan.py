"""Kolmogorov-Arnold networks."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch.nn import functional as F
from torch.testing import assert_close

from mixer_bijectors import nets
from mixer_bijectors.nets.kan import cardinal_bspline, uniform_basis


@pytest.mark.parametrize("order", [1, 2, 3])
def test_cardinal_bsplines_are_those_of_the_recursion(order):
    u = torch.linspace(-3, 3, 601, dtype=torch.float64)
    half = (order + 1) / 2
    recursion = BSpline.basis_element(np.arange(order + 2) - half, extrapolate=False)
    want = torch.as_tensor(np.nan_to_num(recursion(u.numpy())))
    assert_close(cardinal_bspline(u, order), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_basis_is_the_same_compiled_and_eager(order):
    u = torch.linspace(-9, 14, 500, dtype=torch.float64).view(50, 10).requires_grad_()
    compiled = torch.compile(uniform_basis, fullgraph=True, backend="aot_eager")
    bases = [basis(u, 5, order) for basis in (uniform_basis, compiled)]
    assert_close(*bases, atol=1e-13, rtol=0)
    weight = torch.randn_like(bases[0])
    gradients = [torch.autograd.grad((weight * basis).sum(), u)[0] for basis in bases]
    assert_close(*gradients, atol=1e-12, rtol=0)


def test_nan_spoils_no_other_feature():
    u = torch.tensor([0.5, torch.nan, 1e30, -torch.inf])
    basis = uniform_basis(u, 5, 3)
    assert basis[:, 1].isnan().any()
    assert basis[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("grid_size", [1, 5])
def test_one_layer_is_the_sum_of_its_edges(order, grid_size):
    net = nets.KAN(2, 3, num_layers=1, grid_size=grid_size, order=order).double()
    (layer,) = net.layers
    torch.nn.init.normal_(layer.base)
    torch.nn.init.normal_(layer.splines)
    # On the grid and beyond it, where the splines fade out.
    x = torch.linspace(-8, 8, 41, dtype=torch.float64)[:, None] * torch.tensor([1.0, -0.7])
    cell = 6 / grid_size
    knots = -3 + cell * np.arange(-order, grid_size + order + 1)
    want = F.silu(x) @ layer.base.T
    for o in range(3):
        for i in range(2):
            edge = BSpline(knots, layer.splines[o, :, i].detach().numpy(), order)
            edge.extrapolate = False
            want[:, o] += torch.as_tensor(np.nan_to_num(edge(x[:, i].numpy())))
    # scipy leaves out what basis functions have beyond the grid: compare those inside alone.
    inside = (x.abs() < 3).all(1)
    assert_close(net(x)[inside], want[inside], atol=1e-12, rtol=0)


def test_splines_fade_out_and_the_base_goes_on():
    net = nets.KAN(1, 1, num_layers=1).double()
    torch.nn.init.normal_(net.layers[0].base)
    torch.nn.init.normal_(net.layers[0].splines)
    far = torch.tensor([[-50.0], [50.0]], dtype=torch.float64)
    assert_close(net(far), F.silu(far) * net.layers[0].base)
    x = torch.linspace(-10, 10, 2001, dtype=torch.float64)[:, None]
    assert net(x).diff(n=2, dim=0).abs().max() < 1e-3  # no jump, no kink


def test_leading_dimensions_and_context():
    net = nets.KAN(3, 4, hidden_features=8, context_features=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x, context = torch.randn(5, 6, 3), torch.randn(5, 6, 2)
    out = net(x, context)
    assert out.shape == (5, 6, 4)
    assert_close(out[2], net(x[2], context[2]))
    assert not torch.allclose(out, net(x, context + 1))


def test_starts_at_zero_and_learns():
    net = nets.KAN(2, 1, hidden_features=8)
    x = 2 * torch.rand(256, 2) - 1
    target = (torch.sin(3 * x[:, :1]) + x[:, 1:] ** 2).detach()
    assert not net(x).any()
    optimizer = torch.optim.Adam(net.parameters(), 3e-2)
    for _ in range(150):
        loss = (net(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * target.var()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "KAN: order must be 1, 2 or 3, got 4"),
        ({"num_layers": 0}, "KAN: num_layers must be a whole number from 1, got 0"),
        ({"grid_size": 0}, "KAN: grid_size must be a whole number from 1, got 0"),
    ],
)
def test_impossible_nets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nets.KAN(2, 2, **options)
