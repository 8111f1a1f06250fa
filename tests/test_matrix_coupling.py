"""Couplings on the mixer matrix: which entry depends on which, and their conditioners."""

from functools import partial

import pytest
import torch
from conftest import MATRIX_NETS
from torch.testing import assert_close

import mixer_bijectors as mb

GRID = (4, 6)


def randomised(module, spread=0.3):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return module.double().eval()


def influence(function, *shape):
    """How much each output entry depends on each input entry: (*output, *input), one sample."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(function, x)
    return jacobian[0, ..., 0, :, :].abs()


def kept_patches(mask):
    """The patches that stay, by the definition of the masks."""
    row, column = torch.arange(GRID[0]).view(-1, 1), torch.arange(GRID[1])
    index = {
        "checkerboard": row + column,
        "rows": row + 0 * column,
        "columns": 0 * row + column,
    }
    return (index[mask] % 2 == 0).flatten()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("net", MATRIX_NETS)
def test_features_are_transformed_by_the_other_features(net, reverse):
    layer = randomised(mb.MatrixCoupling(GRID, 5, net=MATRIX_NETS[net], reverse=reverse))
    reads = influence(lambda x: layer.inverse(x)[0], 24, 5)
    kept, transformed = (slice(3, 5), slice(3)) if reverse else (slice(3), slice(3, 5))
    identity = torch.eye(24 * 5, dtype=torch.float64).view(24, 5, 24, 5)
    assert_close(reads[:, kept], identity[:, kept])
    own = reads[:, transformed][..., transformed]
    assert ((own > 0) == (identity[:, transformed][..., transformed] > 0)).all()
    other = reads[:, transformed][..., kept].amax((1, 3)) > 0
    near = near_patches(3) if net == "conv" else torch.ones(24, 24, dtype=torch.bool)
    assert torch.equal(other, near)


def near_patches(size):
    """Whether two patches are less than `size` / 2 rows and columns apart."""
    row, column = (
        axis.flatten() for axis in torch.meshgrid(*map(torch.arange, GRID), indexing="ij")
    )
    return torch.stack([(a.view(-1, 1) - a).abs() <= size // 2 for a in (row, column)]).all(0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mask", ["checkerboard", "columns", "rows"])
@pytest.mark.parametrize("net", MATRIX_NETS)
def test_patches_are_transformed_by_the_other_patches(net, mask, reverse):
    layer = randomised(
        mb.MatrixCoupling(
            GRID, 2, axis="patches", mask=mask, net=MATRIX_NETS[net], reverse=reverse
        )
    )
    reads = influence(lambda x: layer.inverse(x)[0], 24, 2).amax((1, 3)) > 0
    kept = kept_patches(mask) ^ reverse
    own = torch.eye(24, dtype=torch.bool)
    if net != "conv":
        assert torch.equal(reads, own | (~kept.view(-1, 1) & kept))
        return
    assert not (reads & ~own)[kept].any()
    assert not (reads & ~own)[:, ~kept].any()
    # Its neighbourhood on the smaller grid holds those kept patches that share an edge.
    row, column = (
        axis.flatten() for axis in torch.meshgrid(*map(torch.arange, GRID), indexing="ij")
    )
    apart = (row.view(-1, 1) - row).abs() + (column.view(-1, 1) - column).abs()
    assert reads[(apart == 1) & ~kept.view(-1, 1) & kept].all()
    assert not reads[apart > 4].any()


def test_without_a_mask_patches_are_on_a_checkerboard():
    x = torch.randn(2, 24, 3, dtype=torch.float64)
    masks = (None, "checkerboard")
    one, other = (mb.MatrixCoupling(GRID, 3, axis="patches", mask=mask) for mask in masks)
    randomised(other).load_state_dict(randomised(one).state_dict())
    assert_close(one.inverse(x), other.inverse(x), atol=0, rtol=0)


def test_is_a_coupling_in_channel_mixing_where_the_net_sees_one_patch():
    inner = mb.Coupling(5, hidden_features=8, num_blocks=1)
    layer = mb.MatrixCoupling(
        GRID,
        5,
        net=partial(mb.nets.PatchConv, hidden_features=8, num_blocks=1, neighbourhood=1),
    )
    randomised(layer), randomised(inner)
    with torch.no_grad():
        layer.net.conv.weight[:] = torch.eye(8, 3).view(8, 3, 1, 1)
        layer.net.conv.bias.zero_()
        initial = torch.zeros(8, 8)
        initial[:, :3] = inner.net.initial.weight
        layer.net.net.load_state_dict(inner.net.state_dict() | {"initial.weight": initial})
    x = torch.randn(3, 24, 5, dtype=torch.float64)
    assert_close(layer.inverse(x), mb.ChannelMixing(inner).inverse(x))


@pytest.mark.parametrize("axis", ["features", "patches"])
def test_additive_preserves_volume(axis):
    layer = randomised(mb.MatrixCoupling(GRID, 4, mb.Additive(), axis=axis))
    x = torch.randn(3, 24, 4, dtype=torch.float64)
    z, log_det = layer.inverse(x)
    assert not torch.allclose(z, x)
    assert torch.equal(log_det, torch.zeros(3, dtype=torch.float64))


def test_holds_no_buffers_that_averages_could_break():
    for options in ({}, {"axis": "patches"}, {"axis": "patches", "mask": "rows"}):
        assert not list(mb.MatrixCoupling(GRID, 4, **options).buffers())


@pytest.mark.parametrize("neighbourhood", [1, 3, 5])
def test_a_far_patch_has_no_influence_on_a_convolution(neighbourhood):
    net = randomised(
        mb.nets.PatchConv(GRID, 2, 3, hidden_features=8, neighbourhood=neighbourhood)
    )
    reads = influence(net, 24, 2).amax((1, 3)) > 0
    assert torch.equal(reads, near_patches(neighbourhood))


def test_a_convolution_of_patches_has_the_same_weights_everywhere():
    net = randomised(mb.nets.PatchConv(GRID, 2, 3, hidden_features=8))
    x = torch.zeros(1, *GRID, 2, dtype=torch.float64)
    x[0, 1, 1] = torch.tensor([1.0, -2.0])
    moved = x.roll((1, 2), (1, 2))
    y, y_moved = (net(one.flatten(1, 2)).unflatten(1, GRID) for one in (x, moved))
    assert_close(y[:, :3, :3], y_moved[:, 1:, 2:5])


def test_a_convolution_takes_other_layers_on_each_patch():
    net = randomised(mb.nets.PatchConv(GRID, 2, 3, hidden_features=8, net=mb.nets.KAN))
    x = torch.randn(2, 24, 2, dtype=torch.float64)
    features = net.conv(x.mT.unflatten(2, GRID)).flatten(2).mT
    assert_close(net(x), net.net(features))
    assert isinstance(net.net, mb.nets.KAN)


def test_a_transformer_without_positions_knows_no_order():
    net = randomised(mb.nets.Transformer(GRID, 3, 5, channels=16, head_dim=8))
    x, order = torch.randn(2, 24, 3, dtype=torch.float64), torch.randperm(24)
    assert not torch.allclose(net(x[:, order]), net(x)[:, order])
    torch.nn.init.zeros_(net.positions)
    assert_close(net(x[:, order]), net(x)[:, order])


def test_a_causal_transformer_is_the_one_of_the_autoregressive_layer():
    options = {"channels": 16, "head_dim": 8}
    net = randomised(mb.nets.Transformer(6, 3, 5, causal=True, **options))
    causal = mb.nets.CausalTransformer(6, 3, 5, **options).double()
    causal.load_state_dict(net.state_dict())
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    assert_close(net(x), causal(x), atol=0, rtol=0)
    reads = influence(net, 6, 3).amax((1, 3)) > 0
    assert torch.equal(reads, torch.ones(6, 6, dtype=torch.bool).tril())


@pytest.mark.parametrize("net", MATRIX_NETS)
class TestNets:
    def test_start_at_zero(self, net):
        y = MATRIX_NETS[net](GRID, 3, 5)(torch.randn(2, 24, 3))
        assert torch.equal(y, torch.zeros(2, 24, 5))

    def test_a_context_reaches_every_patch(self, net):
        module = randomised(MATRIX_NETS[net](GRID, 3, 5, context_features=2))
        x, context = torch.randn(2, 24, 3).double(), torch.randn(2, 2).double()
        change = module(x, context) - module(x, context.flip(0))
        assert (change.abs().amax(2) > 0).all()

    def test_take_any_grid(self, net):
        for grid in (9, (1, 1), (2, 5)):
            module = MATRIX_NETS[net](grid, 3, 5)
            count = 9 if grid == 9 else grid[0] * grid[1]
            assert module(torch.randn(2, count, 3)).shape == (2, count, 5)
