"""Options of sampling reach the layers that declare them, wherever these are."""

import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb

SHAPE, PATCH = (1, 6, 8), 2
LABELS = torch.tensor([0, 2, -1])


def attention(num_patches=12):
    return mb.TransformerAutoregressive(
        num_patches, 4, channels=16, num_layers=1, head_dim=8, num_classes=3
    )


def mixing():
    return mb.MixingLayer(12, 4, hidden_features=8)


HOLDERS = {
    "first": lambda: [mixing(), attention()],
    "last": lambda: [attention(), mixing()],
    "in a chain": lambda: [mb.Chain([attention(), mixing()])],
    "in chains": lambda: [mixing(), mb.Chain([mb.Chain([attention()])])],
    "in a shift": lambda: [mb.Shift(attention(6), SHAPE, PATCH)],
    "compiled": lambda: [torch.compile(attention(), backend="eager"), mixing()],
}


def hybrid(name):
    torch.manual_seed(0)
    model = mb.ImageFlow.from_layers(SHAPE, PATCH, HOLDERS[name](), num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def transformer(model):
    kinds = (mb.TransformerAutoregressive,)
    return next(module for module in model.modules() if isinstance(module, kinds))


@pytest.mark.parametrize("name", HOLDERS)
def test_guidance_reaches_the_attention_of_any_model(name):
    model = hybrid(name)
    assert model.sampling_options == ("method", "guidance")
    guidance = mb.Guidance(1.5, "shift", attention_temperature=2.0)
    z = torch.randn(3, 12, 4)
    got = model.forward_and_log_det(z, LABELS, guidance=guidance, method="sequential")
    # By hand: the layer itself is told.
    layer, context = transformer(model), torch.eye(4, 3)
    context = torch.stack([context[0], context[2], torch.full((3,), 1 / 3)])
    layer.forward = lambda z, *_, **__: type(layer).forward(
        layer, z, context, guidance=guidance, method="sequential"
    )
    assert_close(model.forward_and_log_det(z, LABELS), got)
    del layer.forward
    assert not torch.allclose(model(z, LABELS), got[0])


@pytest.mark.parametrize("name", ["first", "in a shift"])
def test_sample_and_forward_take_the_same(name):
    model = hybrid(name)
    for written in (mb.Guidance(0.7, annealed=True), 0.7, {"weight": 0.7, "guide": "scale"}):
        torch.manual_seed(1)
        x, log_prob, states = model.sample(3, LABELS, guidance=written, trace=True)
        z = mb.Patchify(SHAPE, PATCH).inverse(states[0])[0]
        back, log_det = model.forward_and_log_det(z, LABELS, guidance=written)
        assert_close(back, x, atol=0, rtol=0)
        assert_close(model(z, LABELS, guidance=written), x, atol=0, rtol=0)
        assert_close(log_prob, model.base_log_prob(z, LABELS) - log_det)
        assert torch.equal(states[-1], x) and len(states) == len(model.flows) + 1


def test_a_method_is_one_of_the_layer():
    model = hybrid("in chains")
    model.sample(3, LABELS, method="sequential")
    assert transformer(model).last_calls == 11
    with pytest.raises(ValueError, match="method must be one of"):
        model.sample(3, LABELS, method="fast")


class Cold(mb.Bijection):
    """Halves the latents where it is told to."""

    sampling_options = ("cold",)

    def transform(self, x, context=None, *, inverse=False, cold=False):
        return (x / 2 if cold else x), x.new_zeros(())


def test_a_layer_of_a_user_declares_its_own():
    layers = [mb.ChannelMixing(mb.Chain([Cold((4,)), mb.LULinear(4)])), Cold((12, 4))]
    model = mb.ImageFlow.from_layers(SHAPE, PATCH, layers)
    z = torch.randn(2, 12, 4)
    assert_close(model(z, cold=True), model(z) / 4)
    assert_close(layers[0](z, cold=True)[0], layers[0](z)[0] / 2)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: mb.MixerFlow(SHAPE, PATCH, 1, shift_every=0).sample(2, guidance=1.0),
            "MixerFlow: sampling has no option guidance here; .* its layers are none",
        ),
        (
            lambda: hybrid("last").sample(2, LABELS[:2], sharpness=1.0),
            "ImageFlow: sampling has no option sharpness here; .* are method, guidance",
        ),
        (
            lambda: mb.Chain([mb.LULinear(4)])(torch.randn(2, 4), guidance=1.0),
            "Chain: sampling has no option guidance here; its options are none",
        ),
        (
            lambda: attention()(torch.randn(2, 12, 4), torch.eye(3)[:2], weight=1.0),
            "TransformerAutoregressive: .* no option weight here; its options are method, g",
        ),
    ],
)
def test_other_options_are_refused(call, told):
    with pytest.raises(TypeError, match=told):
        call()


@pytest.mark.parametrize("options", ["cold", ("cold", "inverse"), ("temperature",)])
def test_names_that_would_reach_another_function_are_refused(options):
    class Layer(Cold):
        sampling_options = options

    for make in (
        lambda layer: mb.ImageFlow.from_layers(SHAPE, PATCH, [layer]),
        lambda layer: mb.Chain([layer]),
        lambda layer: mb.Shift(layer, (1, 8, 10), PATCH),
    ):
        with pytest.raises(TypeError, match=r"Layer declares sampling_options=.*a tuple"):
            make(Layer((12, 4)))
