"""Lifting flows of normflows to the mixer matrix."""

import re

import normflows as nf
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import mixer_bijectors as mb

FEATURES = 6


FLOWS = {
    "MaskedAffineAutoregressive": lambda: nf.flows.MaskedAffineAutoregressive(FEATURES, 8),
    "CoupledRationalQuadraticSpline": lambda: nf.flows.CoupledRationalQuadraticSpline(
        FEATURES, 1, 8
    ),
    "AutoregressiveRationalQuadraticSpline": (
        lambda: nf.flows.AutoregressiveRationalQuadraticSpline(
            FEATURES, 1, 8, init_identity=False
        )
    ),
    "LULinearPermute": lambda: nf.flows.LULinearPermute(FEATURES, identity_init=False),
    "Permute": lambda: nf.flows.Permute(FEATURES, "swap"),
    "ActNorm": lambda: nf.flows.ActNorm(FEATURES),
    "AffineCouplingBlock": lambda: nf.flows.AffineCouplingBlock(
        nf.nets.MLP([FEATURES // 2, 8, FEATURES])
    ),
    "Reverse": lambda: nf.flows.Reverse(nf.flows.LULinearPermute(FEATURES)),
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("lift", [mb.ChannelMixing, mb.PatchMixing])
def test_lifts_flows_of_normflows(name, lift):
    flow = FLOWS[name]().double()
    shape = (3, FEATURES) if lift is mb.ChannelMixing else (FEATURES, 3)
    x = torch.randn(4, *shape, dtype=torch.float64)
    flow.inverse(torch.randn(32, FEATURES).double())  # lets a data-dependent one initialise
    mb.check_bijection(lift(flow), x, atol=1e-6)


@pytest.mark.parametrize("lift", [mb.ChannelMixing, mb.PatchMixing])
@pytest.mark.parametrize("reduce_memory", [True, False])
def test_lifts_a_lipschitz_constrained_residual_flow(lift, reduce_memory):
    """Its log-determinant is a random estimate, here of a series that is cut late."""
    net = nf.nets.LipschitzMLP([FEATURES, 16, FEATURES], init_zeros=False, lipschitz_const=0.5)
    residual = nf.flows.Residual(net, n_exact_terms=20, reduce_memory=reduce_memory)
    flow = lift(residual).eval()
    x = torch.randn(4, *((3, FEATURES) if lift is mb.ChannelMixing else (FEATURES, 3)))
    z, _ = flow.inverse(x)
    back, _ = flow(z)
    assert_close(back, x, atol=1e-4, rtol=0)
    estimate = torch.stack([flow.inverse(x)[1] for _ in range(300)])
    jacobian = torch.autograd.functional.jacobian(
        lambda rows: rows + net(rows), x.movedim(flow.axis, -1).reshape(-1, FEATURES)
    )
    rows = torch.arange(12)
    exact = torch.linalg.slogdet(jacobian[rows, :, rows]).logabsdet.view(4, 3).sum(1)
    deviation = estimate.std(0) / 300**0.5
    assert ((estimate.mean(0) - exact).abs() < 5 * deviation + 1e-3).all()
    z, log_det = flow.train().inverse(x)
    (z.square().sum() - log_det.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_weights_are_shared_and_vectors_are_independent():
    flow = mb.Coupling(5, hidden_features=8)
    torch.nn.init.normal_(flow.net.final.weight)
    x = torch.randn(2, 3, 5)
    z, log_det = mb.ChannelMixing(flow).inverse(x)
    one_by_one = [flow.inverse(x[:, patch]) for patch in range(3)]
    assert_close(z, torch.stack([z for z, _ in one_by_one], dim=1))
    assert_close(log_det, sum(log_det for _, log_det in one_by_one))
    transposed, log_det_transposed = mb.PatchMixing(flow).inverse(x.mT)
    assert_close((transposed.mT, log_det_transposed), (z, log_det))


def test_context_is_handed_to_every_patch():
    flow = mb.Coupling(5, hidden_features=8, context_features=2)
    torch.nn.init.normal_(flow.net.final.weight)
    x, context = torch.randn(2, 3, 5), torch.randn(2, 2)
    z, _ = mb.ChannelMixing(flow).inverse(x, context)
    assert_close(z, torch.stack([flow.inverse(x[:, i], context)[0] for i in range(3)], dim=1))


def test_windows_are_mixed_as_images_of_their_size():
    flow = mb.Coupling(4, hidden_features=8)
    torch.nn.init.normal_(flow.net.final.weight)
    image = torch.randn(2, 3, 4, 6)  # the pixels of which are patches of three features
    z, log_det = mb.WindowMixing(flow, (4, 6), window=2).inverse(image.flatten(2).mT)
    windows = [
        mb.PatchMixing(flow).inverse(image[:, :, top : top + 2, left : left + 2].flatten(2).mT)
        for top in (0, 2)
        for left in (0, 2, 4)
    ]
    assert_close(log_det, sum(log_det for _, log_det in windows))
    last = z.mT.unflatten(2, (4, 6))[:, :, 2:, 4:]
    assert_close(last.flatten(2).mT, windows[-1][0])


@pytest.mark.parametrize("context_shape", [(2,), (2, 7), (2, 5, 6), (1, 7)])
@pytest.mark.parametrize("lift", [mb.ChannelMixing, mb.PatchMixing, mb.PixelMixing])
def test_a_context_that_nothing_inside_reads_is_ignored(lift, context_shape):
    """Whatever its shape, as long as it has a row for each sample, or one for all."""
    inside = [mb.Coupling(4, hidden_features=8), nf.flows.LULinearPermute(4)]
    layer = lift(mb.Chain(inside)).eval()
    x = torch.randn(2, 4, 4, 4) if lift is mb.PixelMixing else torch.randn(2, 4, 4)
    context = torch.randn(context_shape)
    for run in (layer, layer.inverse):
        assert_close(run(x, context), run(x), atol=0, rtol=0)


def test_context_of_a_flow_of_normflows():
    flow = nf.flows.MaskedAffineAutoregressive(5, 8, context_features=2)
    x, context = torch.randn(2, 3, 5), torch.randn(2, 2)
    z, _ = mb.ChannelMixing(flow).inverse(x, context)
    want = torch.stack([flow.inverse(x[:, i], context)[0] for i in range(3)], dim=1)
    assert_close(z, want)


def test_class_conditional_flows_of_normflows_get_the_labels():
    model = mb.MixerFlow(
        (3, 4, 4),
        2,
        num_layers=1,
        shift_every=0,
        num_classes=3,
        patch_flow=lambda n: nf.flows.MaskedAffineAutoregressive(n, 8, context_features=3),
        channel_flow=lambda n: nf.flows.CoupledRationalQuadraticSpline(
            n, 1, 8, num_context_channels=3
        ),
    ).train(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.rand(1, 3, 4, 4).expand(3, -1, -1, -1)
    log_prob = model.log_prob(x, torch.arange(3))
    assert len(set(log_prob.tolist())) == 3


def test_pixel_mixing_is_a_1x1_convolution():
    linear = mb.LULinear(3, identity_init=False)
    x = torch.randn(2, 3, 4, 5)
    z, log_det = mb.PixelMixing(linear).inverse(x)
    weight = linear.weight()
    assert_close(z, F.conv2d(x, weight[:, :, None, None]))
    assert_close(log_det, (20 * torch.linalg.slogdet(weight).logabsdet).expand(2))


def test_image_layers_drop_into_a_two_level_glow():
    """Squeeze, GlowBlock and Split of normflows beside matrix layers of this library."""
    patchify = mb.Patchify((12, 4, 4), 2)
    mixer = mb.Chain(
        [
            nf.flows.Reverse(patchify),
            mb.ChannelMixing(mb.Coupling(48, hidden_features=8)),
            mb.PatchMixing(mb.Coupling(4, hidden_features=8)),
            patchify,
        ]
    )
    levels = [
        [nf.flows.GlowBlock(24, 8), nf.flows.Squeeze()],
        [mixer, mb.PixelMixing(mb.LULinear(12)), nf.flows.GlowBlock(12, 8), nf.flows.Squeeze()],
    ]
    bases = [nf.distributions.DiagGaussian(shape) for shape in ((24, 2, 2), (6, 4, 4))]
    model = nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], class_cond=False)
    x = torch.randn(8, 3, 8, 8)
    loss = model.forward_kld(x)
    loss.backward()
    assert loss.isfinite()
    samples, log_prob = model.sample(4)
    assert samples.shape == (4, 3, 8, 8)
    assert_close(model.log_prob(samples, None), log_prob, atol=1e-2, rtol=1e-4)


def coupling(size, **options):
    return mb.Coupling(size, hidden_features=8, **options)


SHIFT = ((3, 32, 32), 4)


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (
            lambda: mb.PatchMixing(coupling(48)),
            (2, 64, 48),
            "PatchMixing: expected 48 patches, got 64 in an input of shape (2, 64, 48)",
        ),
        (
            lambda: mb.PatchMixing(nf.flows.Composite([mb.LULinear(48), coupling(48)])),
            (2, 64, 48),
            "PatchMixing: expected 48 patches, got 64 in an input of shape (2, 64, 48)",
        ),
        (
            lambda: mb.ChannelMixing(nf.flows.Reverse(coupling(64))),
            (2, 64, 48),
            "ChannelMixing: expected 64 features, got 48 in an input of shape (2, 64, 48)",
        ),
        *(
            (
                lambda flow=flow: mb.PatchMixing(flow),
                (2, 64, 48),
                "PatchMixing: expected 48 patches, got 64 in an input of shape (2, 64, 48)",
            )
            for flow in (
                nf.flows.MaskedAffineAutoregressive(48, 64),
                nf.flows.AutoregressiveRationalQuadraticSpline(48, 1, 64),
                nf.flows.CircularAutoregressiveRationalQuadraticSpline(48, 1, 64, [0]),
                nf.flows.CoupledRationalQuadraticSpline(48, 1, 8),
                nf.flows.CircularCoupledRationalQuadraticSpline(48, 1, 8, [0]),
                nf.flows.LULinearPermute(48),
            )
        ),
        (
            lambda: mb.PixelMixing(coupling(4)),
            (2, 3, 8, 8),
            "PixelMixing: expected 4 channels, got 3 in an input of shape (2, 3, 8, 8)",
        ),
        (
            lambda: mb.Shift(mb.PatchMixing(coupling(48)), *SHIFT),
            None,
            "Shift: PatchMixing is for events of shape (48, any), but inside the frame there "
            "are 49 patches of 48 features",
        ),
        (
            lambda: mb.Shift(mb.PatchMixing(coupling(49)), *SHIFT),
            (2, 49, 48),
            "Shift: expected shape (batch, 64, 48), got (2, 49, 48)",
        ),
        (
            lambda: mb.Chain([mb.CyclicShift(*SHIFT), mb.PatchMixing(coupling(48))]),
            None,
            "Chain: flows[1] (PatchMixing) hands latents of shape (48, any) to flows[0] "
            "(CyclicShift), which is for (64, 48)",
        ),
        (
            lambda: mb.Shift(mb.PatchMixing(coupling(49, context_features=3)), *SHIFT),
            (2, 64, 48),
            "Shift: built with context_features=3 but called without context; pass a context "
            "of shape (2, 3)",
        ),
    ],
)
def test_errors_of_lifted_layers_speak_of_the_shapes_that_the_user_sees(build, shape, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build().inverse(torch.randn(shape))


@pytest.mark.parametrize("how", ["trace", pytest.param("export", marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("kind", [mb.ChannelMixing, mb.PatchMixing, mb.PixelMixing])
def test_a_frozen_lift_takes_other_sizes_of_the_axes_that_share_weights(kind, direction, how):
    layer = mb.Chain([kind(mb.Coupling(3, hidden_features=8)), kind(mb.LULinear(3))]).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    shapes = {
        mb.ChannelMixing: ((4, 5, 3), (2, 7, 3)),
        mb.PatchMixing: ((4, 3, 5), (2, 3, 7)),
        mb.PixelMixing: ((4, 3, 5, 6), (2, 3, 9, 7)),
    }
    example, other = (torch.randn(shape) for shape in shapes[kind])
    run = layer if direction == "forward" else nf.flows.Reverse(layer)
    with torch.no_grad():
        if how == "trace":
            frozen = torch.jit.trace(run, (example,), check_trace=False)
        else:
            sizes = {
                axis: torch.export.Dim(f"size{axis}", min=2, max=64)
                for axis in range(example.dim())
                if example.shape[axis] != other.shape[axis]
            }
            frozen = torch.export.export(run, (example,), dynamic_shapes=(sizes,)).module()
        assert_close(frozen(other), run(other), atol=1e-5, rtol=1e-5)
