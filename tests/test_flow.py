"""How flows are called."""

import normflows as nf
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.flow import apply_flow


class Foreign(nf.flows.Flow):
    """A flow with its own idea of what a log-determinant is."""

    def __init__(self, log_det):
        super().__init__()
        self.log_det = log_det

    def forward(self, z):
        return z, self.log_det

    def inverse(self, x):
        return x, self.log_det


@pytest.mark.parametrize(
    "log_det",
    [2, 2.0, torch.tensor(2.0), torch.tensor([2.0]), torch.full((3,), 2.0)],
    ids=["int", "float", "0-d", "one", "batch"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_det_is_broadcast_to_the_batch(log_det, dtype):
    x = torch.randn(3, 5, dtype=dtype)
    for run in (mb.Chain([Foreign(log_det)]), mb.Chain([Foreign(log_det)]).inverse):
        assert_close(run(x)[1], torch.full((3,), 2.0, dtype=dtype))


def test_context_goes_to_flows_that_take_one():
    class Scaled(nf.flows.Flow):
        def forward(self, z, context):
            return z * context, context.abs().log().sum(1)

        def inverse(self, x, **options):
            return x / options["context"], -options["context"].abs().log().sum(1)

    chain = mb.Chain([Scaled(), nf.flows.ActNorm(4), mb.ActNorm(4)]).eval()
    x, context = torch.randn(3, 4), torch.rand(3, 4) + 1
    z, log_det = chain.inverse(x, context)
    back, log_det_back = chain(z, context)
    assert_close((back, log_det_back), (x, -log_det), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (2,)])
def test_a_log_det_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"Foreign returned a log_det of shape .* of 3; exp"):
        mb.Chain([Foreign(torch.zeros(shape))])(torch.randn(3, 5))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x, "returned Tensor; expected a pair, a tensor and its log_det"),
        (lambda x: (x, 0, x), "returned 3 values; expected a pair"),
        (lambda x: (None, 0), "returned a NoneType and a int; expected a tensor and its log_d"),
        (lambda x: (x, None), "returned a NoneType as log_det; expected a tensor of shape"),
        (lambda x: (x, np.zeros(2)), "returned a ndarray as log_det; expected a tensor of sha"),
        (lambda x: (x[:1], 0), r"returned a result of shape \(1, 2\) for a batch of 2; flow"),
    ],
)
def test_what_is_no_result_of_a_flow_is_refused(result, message):
    """A tensor of two rows would unpack as a pair, and one row would broadcast."""

    class Returns(nf.flows.Flow):
        def forward(self, z):
            return result(z)

        inverse = forward

    class Own(mb.Bijection):
        def transform(self, x, context=None, *, inverse=False):
            return result(x)

    for flow in (mb.Chain([Returns()]), mb.ChannelMixing(Returns()), Own((2,))):
        x = torch.randn(2, *[1] * (not isinstance(flow, mb.Chain | Own)), 2)
        with pytest.raises((TypeError, ValueError), match=message):
            flow.inverse(x)


def test_a_compiled_layer_takes_context():
    layer = mb.Coupling(5, context_features=2)
    torch.nn.init.normal_(layer.net.final.weight)
    x, context = torch.randn(3, 5), torch.randn(3, 2)
    chain = mb.Chain([torch.compile(layer, backend="eager")])
    assert_close(chain(x, context), layer(x, context))
    assert_close(chain.inverse(x, context), layer.inverse(x, context))


def test_flows_of_normflows_without_context_get_none():
    flows = [
        nf.flows.MaskedAffineAutoregressive(4, 8),
        nf.flows.AutoregressiveRationalQuadraticSpline(4, 1, 8),
        nf.flows.CoupledRationalQuadraticSpline(4, 1, 8),
        nf.flows.LULinearPermute(4),
    ]
    x, context = torch.randn(3, 4), torch.randn(3, 2)
    chain = mb.Chain([*flows, mb.Coupling(4, context_features=2)])
    assert_close(chain.inverse(x, context), mb.Chain(flows).inverse(x))


def test_a_method_on_the_instance_says_whether_it_takes_a_context():
    layer, seen = nf.flows.ActNorm(4), []

    def inverse(x, context=None):
        seen.append(context)
        return type(layer).inverse(layer, x)

    layer.inverse = inverse
    context = torch.randn(3, 2)
    apply_flow(layer, torch.randn(3, 4), context, inverse=True)
    assert seen[0] is context


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_a_context_that_is_declared_must_be_taken_both_ways(method):
    class Declares(Foreign):
        context_features = 2

        def forward(self, z, context=None):
            return z, 0

        def inverse(self, x, context=None):
            return x, 0

    layer = Declares(0)
    assert mb.Chain([layer]).context_features == 2
    setattr(Declares, method, lambda self, x, y=None: (x, 0))
    message = f"Declares declares context_features=2, but its {method} has no argument context"
    for use in (
        lambda: mb.Chain([layer]),
        lambda: mb.ChannelMixing(layer),
        lambda: mb.check_bijection(layer, torch.randn(3, 4), torch.randn(3, 2)),
    ):
        with pytest.raises(TypeError, match=message):
            use()


def test_hooks_of_all_kinds_run():
    layer = mb.Coupling(5, hidden_features=8)
    seen = []
    for module in layer.net.modules():
        module.register_full_backward_hook(lambda *_: seen.append("backward"))
        module.register_forward_hook(lambda *_: seen.append("forward"))
    x = torch.randn(3, 5, requires_grad=True)
    layer.inverse(x)[0].sum().backward()
    assert {"forward", "backward"} <= set(seen)


def test_forward_hooks_run():
    seen = []
    layer = mb.ActNorm(4).eval()
    layer.register_forward_hook(lambda *_: seen.append(1))
    apply_flow(layer, torch.randn(3, 4))
    assert seen == [1]


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_autocast_keeps_the_precision_of_the_flow(precision):
    model = mb.MixerFlow((3, 8, 8), 2, num_layers=2, hidden_features=16)
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    model.train().log_prob(x)
    for name, parameter in model.named_parameters():
        if "net.final" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.eval()
    want, want_log_det = model.inverse_and_log_det(x)
    with torch.autocast("cpu", precision):
        z, log_det = model.inverse_and_log_det(x)
        back = model(z)
    assert z.dtype == log_det.dtype == torch.float32
    assert_close(back, x, atol=1e-4, rtol=0)
    assert_close(z, want, atol=5e-2, rtol=5e-2)
    assert_close(log_det, want_log_det, atol=0.5, rtol=1e-2)


@pytest.mark.parametrize(
    "wrap",
    [nf.flows.Reverse, lambda flow: nf.flows.Composite([flow, nf.flows.Permute(4)])],
    ids=["Reverse", "Composite"],
)
@pytest.mark.parametrize(
    "make",
    [nf.flows.MaskedAffineAutoregressive, lambda *sizes, **options: mb.Coupling(4, **options)],
    ids=["normflows", "mixer_bijectors"],
)
def test_a_flow_of_normflows_that_keeps_the_context_from_a_layer_is_refused(wrap, make):
    """A net of normflows would run as if there were none."""
    flow = wrap(make(4, 8, context_features=2))
    conditional = mb.Coupling(4, context_features=2)
    for use in (lambda: mb.Chain([conditional, flow]), lambda: mb.ChannelMixing(flow)):
        with pytest.raises(TypeError, match="of normflows hands on no context, and the "):
            use()
    mb.Chain([conditional, wrap(mb.LULinear(4))])


@pytest.mark.parametrize(
    "use",
    [
        lambda flow, x, context: mb.to_nflows(flow)(x, context),
        lambda flow, x, context: mb.to_torch_transform(flow, context=context).inv(x),
        lambda flow, x, context: apply_flow(flow, x, context),
    ],
    ids=["to_nflows", "to_torch_transform", "apply_flow"],
)
@pytest.mark.parametrize("context", [None, torch.randn(1, 3)], ids=["none", "another size"])
def test_a_context_that_a_flow_of_normflows_reads_is_asked_for(use, context):
    """Its nets would take a missing one for zeros."""
    flow = nf.flows.MaskedAffineAutoregressive(4, 8, context_features=2)
    with pytest.raises(ValueError, match=r"context of shape|called without context"):
        use(flow, torch.randn(3, 4), context)
    use(flow, torch.randn(3, 4), torch.randn(3, 2))


def test_a_flow_that_has_a_context_of_its_own_is_taken():
    class Given(nf.flows.Flow):
        def __init__(self):
            super().__init__()
            self.flow = mb.Coupling(4, context_features=2)

        def forward(self, z):
            return self.flow(z, torch.ones(len(z), 2))

        def inverse(self, x):
            return self.flow.inverse(x, torch.ones(len(x), 2))

    assert mb.Chain([Given()]).context_features == 0
