"""The declarations of layers, and the checks of the base class."""

from functools import partial

import normflows as nf
import pytest
import torch
from nflows.transforms import LULinear as NflowsLULinear
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.declarations import context_features, event_shapes

IMAGES, LABELS = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 0])


class HandsOn(nf.flows.Flow):
    """A layer that only accepts a context, as every layer of a conditional model must."""

    def __init__(self, size=4):
        super().__init__()
        self.linear = mb.LULinear(size)

    def forward(self, z, context=None):
        return self.linear(z, context)

    def inverse(self, x, context=None):
        return self.linear.inverse(x, context)


class Drops(nf.flows.Flow):
    """A layer that holds a conditional one and gives it no context."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, z, context=None):
        return self.flow(z)

    def inverse(self, x, context=None):
        return self.flow.inverse(x)


class Scale(mb.Bijection):
    """Scales by a function of the context."""

    def __init__(self, features, size=3):
        super().__init__((features,), context_features=size)
        self.net = nn.Linear(size, features)

    def transform(self, x, context=None, *, inverse=False):
        log_scale = self.net(context)
        log_scale = -log_scale if inverse else log_scale
        return x * log_scale.exp(), log_scale.sum(1)


class MyLU(mb.LULinear):
    pass


def parametrized(size):
    layer = mb.LULinear(size)
    nn.utils.parametrize.register_parametrization(layer, "factors", nn.Identity())
    return layer


def conditional_maf(size):
    return nf.flows.MaskedAffineAutoregressive(size, 8, context_features=3)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: HandsOn(n),
        lambda n: mb.Chain([HandsOn(n), mb.ActNorm(n)]),
        lambda n: nf.flows.MaskedAffineAutoregressive(n, 8),
        lambda n: Drops(conditional_maf(n)),
        lambda n: mb.Coupling(n),
        MyLU,
        parametrized,
    ],
    ids=[
        "hands on",
        "in a chain",
        "maf",
        "drops",
        "coupling",
        "subclass",
        "parametrized",
    ],
)
def test_classes_that_no_layer_reads_are_refused(build):
    with pytest.raises(ValueError, match="none of the flows inside reads a context"):
        mb.MixerFlow(
            (3, 4, 4), 2, 1, shift_every=0, num_classes=3, channel_flow=build, patch_flow=build
        )


@pytest.mark.parametrize("build", [Scale, conditional_maf], ids=["declared", "normflows"])
def test_classes_that_a_layer_reads_change_the_density(build):
    model = mb.MixerFlow(
        (3, 4, 4), 2, 1, shift_every=0, num_classes=3, channel_flow=build, patch_flow=build
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    one, other = (model.log_prob(IMAGES, labels) for labels in (LABELS, 2 - LABELS))
    differ = (one - other).abs() > 1e-3
    assert differ.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: mb.Coupling(4, context_features=3), 3),
        (lambda: mb.LULinear(4), 0),
        (lambda: mb.Chain([mb.LULinear(4), Scale(4)]), 3),
        (lambda: mb.ChannelMixing(conditional_maf(4)), 3),
        (lambda: mb.Shift(mb.ChannelMixing(Scale(12)), (3, 8, 8), 2), 3),
        (lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8, num_context_channels=3), 3),
        (lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8), 0),
        (lambda: nf.flows.LULinearPermute(4), 0),
        (lambda: nf.flows.Permute(4), 0),
        (lambda: nf.flows.Reverse(Scale(4)), 0),
        (lambda: mb.ParallelInverse(conditional_maf(4)), 3),
        (lambda: torch.compile(Scale(4)), 3),
        (lambda: mb.Chain([HandsOn()]), None),
    ],
)
def test_the_size_of_the_context_is_known(make, size):
    assert context_features(make()) == size


def test_a_layer_that_declares_nothing_is_not_known():
    class Undeclared(nf.flows.Flow):
        def inverse(self, x, context=None):
            return x, 0

    assert context_features(Undeclared()) is None


@pytest.mark.parametrize(
    ("make", "latent", "event"),
    [
        (lambda: mb.Coupling(4), (4,), (4,)),
        (lambda: mb.Patchify((3, 8, 8), 2), (16, 12), (3, 8, 8)),
        (lambda: nf.flows.Reverse(mb.Patchify((3, 8, 8), 2)), (3, 8, 8), (16, 12)),
        (lambda: mb.ChannelMixing(mb.LULinear(12)), (None, 12), (None, 12)),
        (lambda: mb.ChannelMixing(nf.flows.Permute(12)), (None, None), (None, None)),
        (
            lambda: mb.Chain([mb.PatchMixing(mb.LULinear(16)), mb.ChannelMixing(Scale(12))]),
            (16, 12),
            (16, 12),
        ),
        (
            lambda: mb.Chain([mb.ChannelMixing(mb.LULinear(12)), mb.Patchify((3, 8, 8), 2)]),
            (16, 12),
            (3, 8, 8),
        ),
        (lambda: mb.Chain([mb.LULinear(4), nf.flows.Permute(4)]), (4,), None),
        (lambda: mb.Chain([nf.flows.Permute(4), mb.LULinear(4)]), None, (4,)),
        (lambda: mb.Chain([]), None, None),
    ],
)
def test_shapes_follow_from_what_a_layer_holds(make, latent, event):
    assert event_shapes(make()) == (latent, event)


class TestContext:
    x = torch.randn(4, 5)

    @pytest.mark.parametrize("context", [torch.randn(4, 99), torch.randn(4, 2, 7)])
    @pytest.mark.parametrize("wrap", [lambda f: f, lambda f: mb.Chain([f])])
    def test_is_ignored_by_a_layer_that_declares_none(self, wrap, context):
        layer = wrap(mb.Coupling(5))
        assert_close(layer.inverse(self.x, context), layer.inverse(self.x), atol=0, rtol=0)
        matrix = torch.randn(4, 3, 5)
        lifted = mb.ChannelMixing(layer)
        assert_close(lifted.inverse(matrix, context), lifted.inverse(matrix), atol=0, rtol=0)

    @pytest.mark.parametrize("make", [lambda: mb.LULinear(5), lambda: mb.Chain([])])
    def test_of_another_batch_is_refused(self, make):
        with pytest.raises(ValueError, match=r"a context of shape \(4, any\), got \(3"):
            make().inverse(self.x, torch.randn(3, 2))
        with pytest.raises(TypeError, match="expected the context to be a tensor, got int"):
            make().inverse(self.x, 3)

    def test_of_two_sizes_in_one_chain_is_refused(self):
        with pytest.raises(ValueError, match="contexts of different sizes, 2 and 3"):
            mb.Chain([Scale(5, 2), mb.LULinear(5), Scale(5, 3)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: mb.PatchMixing(mb.Coupling(48)).inverse(torch.randn(2, 64, 48)),
            ValueError,
            "PatchMixing: expected 48 patches, got 64 in an input of shape (2, 64, 48)",
        ),
        (
            lambda: MyLU(5).inverse(torch.randn(2, 4)),
            ValueError,
            "MyLU: expected shape (batch, 5), got (2, 4)",
        ),
        (
            lambda: MyLU(5)(torch.randn(2, 5).double()),
            TypeError,
            "MyLU: the input is torch.float64, the parameters are torch.float32",
        ),
        (
            lambda: mb.Chain([mb.LULinear(5), NflowsLULinear(5)]),
            TypeError,
            "Chain: LULinear is a transform of nflows, which runs from data to latent; wrap it "
            "in from_nflows(transform)",
        ),
        (
            lambda: mb.ChannelMixing(NflowsLULinear(5)),
            TypeError,
            "ChannelMixing: LULinear is a transform of nflows",
        ),
        (
            lambda: mb.Chain([mb.LULinear]),
            TypeError,
            "Chain: expected a flow, got the class LULinear; build it first",
        ),
        (
            lambda: mb.Chain([nf.NormalizingFlow(nf.distributions.DiagGaussian(5), [])]),
            TypeError,
            "Chain: NormalizingFlow is a model; take its flows",
        ),
        (
            lambda: mb.PatchMixing(nn.Linear(5, 5)),
            TypeError,
            "PatchMixing: expected a flow of normflows, got Linear",
        ),
        (
            lambda: mb.Chain([mb.LULinear(5), mb.ActNorm(4)]),
            ValueError,
            "Chain: flows[1] (ActNorm) hands latents of shape (4,) to flows[0] (LULinear), "
            "which is for (5,)",
        ),
        (
            lambda: mb.ChannelMixing(mb.ChannelMixing(mb.LULinear(5))),
            ValueError,
            "ChannelMixing: needs a flow on vectors, got ChannelMixing for events of 2 axes",
        ),
        (
            lambda: mb.Shift(mb.PatchMixing(mb.LULinear(64)), (3, 32, 32), 4),
            ValueError,
            "Shift: PatchMixing is for events of shape (64, any), but inside the frame there "
            "are 49 patches of 48 features",
        ),
        (
            lambda: mb.Bijection((5,)).inverse(torch.randn(2, 5)),
            NotImplementedError,
            "Bijection does not implement transform",
        ),
    ],
)
def test_one_sentence_says_what_to_change(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_bijection_of_a_user_goes_through_everything():
    layer = Scale(5)
    x, context = torch.randn(4, 5), torch.randn(4, 3)
    mb.check_bijection(mb.Chain([layer, mb.Coupling(5, context_features=3)]), x, context)
    model = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(5), [layer])
    assert model.log_prob(x, context=context).shape == (4,)


def test_log_dets_of_transforms_are_completed_or_refused():
    class Constant(mb.Bijection):
        def __init__(self, log_det):
            super().__init__((5,))
            self.log_det = log_det

        def transform(self, x, context=None, *, inverse=False):
            return x, self.log_det

    x = torch.randn(4, 5)
    for log_det in (torch.tensor(2.0), torch.tensor([2.0]), 2.0, torch.full((4,), 2.0)):
        assert_close(Constant(log_det)(x)[1], torch.full((4,), 2.0))
    with pytest.raises(ValueError, match=r"Constant returned a log_det of shape \(4, 1\)"):
        Constant(torch.zeros(4, 1))(x)


@pytest.mark.parametrize(
    ("reparametrise", "source"),
    [
        (lambda layer: prune.l1_unstructured(layer, "factors", 0.3), "factors_orig"),
        (lambda layer: nn.utils.weight_norm(layer, "factors"), "factors_g"),
    ],
    ids=["pruning", "weight_norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_both_directions_use_parameters_that_hooks_compute(reparametrise, source):
    layer, x = mb.LULinear(4, identity_init=False), torch.randn(3, 4)
    reparametrise(layer)
    for _ in range(2):  # the graph of the first pass is gone in the second
        layer.inverse(x)[0].square().sum().backward()
    with torch.no_grad():
        getattr(layer, source).mul_(2)
    z, log_det = layer.inverse(x)
    assert_close(layer(z), (x, -log_det), atol=1e-5, rtol=1e-5)


SIZED = (
    mb.ActNorm,
    mb.LULinear,
    mb.Elementwise,
    mb.Coupling,
    mb.Autoregressive,
    mb.ContinuousFlow,
)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
@pytest.mark.parametrize("make", SIZED)
def test_sizes_that_are_no_whole_numbers_are_refused(make, size):
    message = f"^{make.__name__}: features must be a whole number from 1, got {size!r}$"
    with pytest.raises(ValueError, match=message):
        make(size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mb.Coupling(4, context_features=-1),
            "Coupling: context_features must be a whole",
        ),
        (
            lambda: mb.Coupling(4, num_blocks=-1),
            "ResidualMLP: num_blocks must be a whole number",
        ),
        (
            lambda: mb.Coupling(4, hidden_features=0),
            "ResidualMLP: hidden_features must be a whole",
        ),
        (
            lambda: mb.Autoregressive(4, hidden_features=[8, 8]),
            r"Autoregressive: hidden_features must be a whole number from 1, got \[8, 8\]",
        ),
        (
            lambda: mb.Autoregressive(4, num_blocks=1.5),
            "Autoregressive: num_blocks must be a whole number from 0, got 1.5",
        ),
        (lambda: mb.ContinuousFlow(4, tol="1e-3"), "positive and finite, got '1e-3'"),
        (
            lambda: mb.Patchify((1, 4, 4.0), 2),
            r"Patchify: image_shape must be \(channels, height, width\), got \(1, 4, 4.0\)",
        ),
        (
            lambda: mb.Shift.inner_shape(16, 2),
            r"Shift: image_shape must be \(channels, height, width\), got 16",
        ),
        (lambda: mb.Patchify((1, 4, 4), 2.0), "must be a whole number or a pair of them"),
        (lambda: mb.Patchify((1, 4, 4), (2, 2, 2)), "must be a whole number or a pair of them"),
        (lambda: mb.CyclicShift((1, 4, 4), 2, offset="1"), "must be a whole number or a pair"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "option"),
    [
        (mb.Coupling, "reverse"),
        (mb.Autoregressive, "reverse"),
        (mb.LULinear, "identity_init"),
        (partial(mb.TransformerAutoregressive, 4), "reverse"),
        (partial(mb.TransformerAutoregressive, 4), "volume_preserving"),
    ],
)
@pytest.mark.parametrize("value", [[False, True], "no", 2, None])
def test_an_option_is_true_or_false(layer, option, value):
    with pytest.raises(TypeError, match=f": {option} must be True or False, got "):
        layer(4, **{option: value})
