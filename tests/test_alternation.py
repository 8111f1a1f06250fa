"""Stacks of couplings that never alternate are told of, and others are not."""

import warnings

import nflows.transforms as nt
import normflows as nf
import pytest
import torch

import mixer_bijectors as mb

BASE = nf.distributions.DiagGaussian(4)


def coupling(reverse=False):
    return mb.Coupling(4, hidden_features=4, reverse=reverse)


def on_matrix(**options):
    return mb.MatrixCoupling(4, 4, **options)


def blocks(reverse=False):
    return mb.Chain([coupling(reverse), mb.LULinear(4)])


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: mb.Chain([coupling(), coupling()]), 2),
        (lambda: mb.Chain(coupling(reverse=True) for _ in range(3)), 3),
        (lambda: mb.Chain([blocks() for _ in range(4)]), 4),
        (lambda: mb.Chain([coupling(), mb.ActNorm(4), mb.Elementwise(4), coupling()]), 2),
        (lambda: mb.Chain([coupling(), mb.KANLayer(4), nf.flows.Reverse(coupling())]), 2),
        (
            lambda: mb.Chain(
                [nf.flows.Permute(4), coupling(), nf.flows.Composite([coupling()])]
            ),
            2,
        ),
        (lambda: mb.Chain([torch.compile(coupling()), coupling()]), 2),
        (lambda: mb.Chain([on_matrix(), on_matrix(net=mb.nets.Mixer)]), 2),
        (lambda: mb.Chain(on_matrix(axis="patches", mask="rows") for _ in range(3)), 3),
        (lambda: nf.NormalizingFlow(BASE, [coupling(), blocks()]), 2),
        (lambda: nt.CompositeTransform([mb.to_nflows(coupling()) for _ in range(2)]), 2),
    ],
)
def test_warns(build, count):
    with pytest.warns(UserWarning, match=f"all {count} couplings transform the same") as caught:
        build()
    assert __file__ in [warning.filename for warning in caught]


@pytest.mark.parametrize(
    "build",
    [
        lambda: mb.Chain([coupling()]),
        lambda: mb.Chain([coupling(), coupling(reverse=True)]),
        lambda: mb.Chain([coupling(), coupling(), coupling(reverse=True)]),
        lambda: mb.Chain([blocks(), blocks(reverse=True)]),
        lambda: [blocks(), blocks()],
        lambda: mb.Chain([coupling(), nf.flows.Permute(4), coupling()]),
        lambda: mb.Chain([coupling(), mb.LULinear(4, identity_init=False), coupling()]),
        lambda: mb.Chain([coupling(), mb.Autoregressive(4), coupling()]),
        lambda: mb.Chain([mb.ChannelMixing(coupling()), mb.PatchMixing(coupling())]),
        lambda: mb.MixerFlow(
            (1, 4, 4), 2, 3, hidden_features=4, channel_flow=lambda n: coupling()
        ),
        lambda: mb.Chain([on_matrix(), on_matrix(reverse=True)]),
        lambda: mb.Chain([on_matrix(), on_matrix(axis="patches")]),
        lambda: mb.Chain([on_matrix(axis="patches"), on_matrix(axis="patches", mask="rows")]),
        lambda: nf.NormalizingFlow(BASE, [coupling(), coupling(reverse=True)]),
        # A compiled layer has a length that raises, so that it cannot be asked for its truth.
        lambda: nf.NormalizingFlow(BASE, [torch.compile(coupling())]),
        lambda: nt.CompositeTransform(
            [mb.to_nflows(coupling()), nt.ReversePermutation(4), mb.to_nflows(coupling())]
        ),
    ],
)
def test_does_not_warn(build):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build()


def test_the_other_half_is_indeed_never_transformed():
    with pytest.warns(UserWarning, match="Give every other Coupling the option reverse=True"):
        stack = mb.Chain([coupling(), coupling()])
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 4)
    assert torch.equal(stack.inverse(x)[0][:, :2], x[:, :2])


def test_the_warning_names_the_layer_and_what_it_halves():
    message = "half of the patches, .* every other MatrixCoupling the option reverse=False"
    with pytest.warns(UserWarning, match=message):
        mb.Chain(on_matrix(axis="patches", reverse=True) for _ in range(2))
