"""Models that are built of a list of layers."""

import normflows as nf
import pytest
import torch

import mixer_bijectors as mb

SHAPE = (3, 8, 8)


def attention(num_classes: int = 0) -> mb.TransformerAutoregressive:
    return mb.TransformerAutoregressive(
        4, 48, channels=16, num_layers=1, head_dim=8, num_classes=num_classes
    )


def layers(num_classes: int = 0) -> list[nf.flows.Flow]:
    return [
        mb.ChannelMixing(nf.flows.MaskedAffineAutoregressive(48, 16, num_classes or None)),
        attention(num_classes),
        mb.PatchMixing(mb.Coupling(4, hidden_features=8)),
        mb.CyclicShift(SHAPE, 4),
    ]


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_list_of_layers_is_a_model(num_classes: int) -> None:
    torch.manual_seed(0)
    model = mb.ImageFlow.from_layers(SHAPE, 4, layers(num_classes), num_classes=num_classes)
    for parameter in model.double().parameters():
        parameter.data.normal_(std=0.02)
    labels = (torch.tensor([0, 2, -1]),) if num_classes else ()
    x, log_prob = model.sample(3, *labels)
    assert x.shape == (3, *SHAPE)
    torch.testing.assert_close(model.log_prob(x, *labels), log_prob)
    torch.testing.assert_close(model(model.inverse(x, *labels), *labels), x)
    # The density by hand: the flows from data to latent, and a standard normal.
    z, log_det = x, torch.zeros(3, dtype=torch.float64)
    context = None
    if num_classes:
        one_hot = torch.eye(3, dtype=torch.float64)
        context = torch.stack([one_hot[0], one_hot[2], torch.full_like(one_hot[0], 1 / 3)])
    for flow in [mb.Patchify(SHAPE, 4), *[*model.flows][-2::-1]]:
        reads = isinstance(flow, mb.TransformerAutoregressive | mb.ChannelMixing)
        z, change = flow.inverse(z, context) if reads else flow.inverse(z)
        log_det = log_det + change
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(normal + log_det, log_prob)


def test_layers_on_images_come_after_the_patches_that_are_listed() -> None:
    pixels = mb.PixelMixing(mb.LULinear(3, identity_init=False))
    model = mb.ImageFlow.from_layers(SHAPE, 4, [mb.Patchify(SHAPE, 4), pixels]).double()
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    expected = mb.Patchify(SHAPE, 4).inverse(pixels.inverse(x)[0])[0]
    torch.testing.assert_close(model.inverse(x), expected)
    assert len(model.flows) == 2


def test_no_layers_leave_the_mixer_matrix() -> None:
    x = torch.rand(2, *SHAPE)
    model = mb.ImageFlow.from_layers(SHAPE, 4, [])
    assert torch.equal(model.inverse(x), mb.Patchify(SHAPE, 4).inverse(x)[0])


def test_a_subclass_hands_out_plain_models() -> None:
    model = mb.MixerFlow.from_layers(SHAPE, 4, [mb.CyclicShift(SHAPE, 4)])
    assert type(model) is mb.ImageFlow


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: [mb.ChannelMixing(mb.ActNorm(12))], ValueError, "4, 48.*Mixing.*any, 12"),
        (lambda: [mb.CyclicShift(SHAPE, 2)], ValueError, "4, 48.*CyclicShift.*16, 12"),
        (lambda: [mb.MixerFlow(SHAPE, 4, 1)], TypeError, r"ImageFlow: MixerFlow is a model"),
        (lambda: [mb.ActNorm], TypeError, "ImageFlow: expected a flow, got the class ActNorm"),
        (lambda: [torch.nn.Linear(2, 2)], TypeError, "ImageFlow: expected a flow of normflows"),
    ],
)
def test_errors(build, kind, message) -> None:
    with pytest.raises(kind, match=message):
        mb.ImageFlow.from_layers(SHAPE, 4, build())


def test_classes_that_no_layer_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes=3, but none of the flows inside reads"):
        mb.ImageFlow.from_layers(SHAPE, 4, [attention()], num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be a whole number from 0, got -1"):
        mb.ImageFlow.from_layers(SHAPE, 4, [], num_classes=-1)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_layers_that_read_another_context_are_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"of 3 features, but .* num_classes={num_classes}; g"):
        mb.ImageFlow.from_layers(SHAPE, 4, [attention(3)], num_classes=num_classes)


@pytest.mark.parametrize("kind", [mb.MixerFlow, mb.ImageFlow])
def test_a_base_in_double_precision_serves_layers_in_single(kind) -> None:
    base = nf.distributions.DiagGaussian((4, 48)).double()
    options = {"num_layers": 1} if kind is mb.MixerFlow else {"layers": layers()}
    model = kind(SHAPE, 4, base=base, **options).eval()
    x, log_prob = model.sample(3)
    assert (x.dtype, log_prob.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(model.log_prob(x), log_prob)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_no_samples_are_an_empty_batch(num_classes: int) -> None:
    model = mb.ImageFlow.from_layers(SHAPE, 4, layers(num_classes), num_classes=num_classes)
    labels = (torch.arange(0),) if num_classes else ()
    x, log_prob = model.sample(0, *labels)
    assert x.shape == (0, *SHAPE) and log_prob.shape == (0,)


@pytest.mark.parametrize("number", [-1, 2.0, "3", None, True])
def test_a_number_of_samples_is_whole(number) -> None:
    model = mb.ImageFlow.from_layers(SHAPE, 4, [])
    message = f"ImageFlow: num_samples must be a whole number from 0, got {number!r}"
    with pytest.raises(ValueError, match=message):
        model.sample(number)
