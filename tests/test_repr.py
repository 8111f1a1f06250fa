"""Pictures of models and layers as text."""

import copy
import io

import normflows as nf
import pytest
import torch
from torch import nn

import mixer_bijectors as mb

MIXER = """\
MixerFlow(image_shape=(3, 16, 16), patch_size=(4, 4), 50,990 parameters)
  (q0): DiagGaussian(shape=(16, 48))
  (flows): ModuleList(50,990 parameters)
    (0): Shift((16, 48), image_shape=(3, 16, 16), patch_size=(4, 4), offset=(2, 2), 9,765 \
parameters)
      (flow): MixingLayer((9, 48), 9,765 parameters)
        (patch_mixing): PatchMixing((9, any), 2,757 parameters)
          (flow): MixingStep((9,), 2,757 parameters)
            (couplings): Chain((9,), 2,658 parameters)
              (0): Coupling((9,), Affine(max_log_scale=1.0), reverse=True, 1,338 parameters)
                (net): ResidualMLP(4 to 10, width 16, 1,338 parameters)
              (1): Coupling((9,), Affine(max_log_scale=1.0), 1,320 parameters)
                (net): ResidualMLP(5 to 8, width 16, 1,320 parameters)
            (linear): LULinear((9,), 81 parameters)
            (actnorm): ActNorm((9,), 18 parameters)
        (channel_mixing): ChannelMixing((any, 48), 7,008 parameters)
          (flow): MixingStep((48,), 7,008 parameters), parts as above
    (1-4): 4 x MixingLayer((16, 48), 10,304 parameters), parts as above
    (5): Patchify(data (3, 16, 16), latents (16, 48), patch_size=(4, 4))
    (6): PixelMixing((3, any, any), 9 parameters)
      (flow): LULinear((3,), 9 parameters)"""

ATTENTION = """\
TarFlow(image_shape=(1, 4, 4), patch_size=(2, 2), num_classes=3, 6,128 parameters)
  (q0): DiagGaussian(shape=(4, 4))
  (flows): ModuleList(6,128 parameters)
    (0-3): 2 times
      (0): TransformerAutoregressive((4, 4), reverse=True, context_features=3, 1,532 parameters)
        (net): CausalTransformer(4 to 8, width 12, head_dim=6, 1,532 parameters)
      (1): TransformerAutoregressive((4, 4), context_features=3, 1,532 parameters)
        (net): CausalTransformer(4 to 8, width 12, head_dim=6, 1,532 parameters)
    (4): Patchify(data (1, 4, 4), latents (4, 4), patch_size=(2, 2))"""

NORMFLOWS = """\
Chain((6,), 2,176 parameters)
  (0): AutoregressiveRationalQuadraticSpline(1,442 parameters)
    (mprqat): MaskedPiecewiseRationalQuadraticAutoregressive(num_bins=8, tails='linear', \
tail_bound=3, 1,442 parameters)
      (autoregressive_net): MADE(6 to 138, width 8, 1,442 parameters)
  (1): AffineCouplingBlock(86 parameters)
    (0): Split
    (1): AffineCoupling(86 parameters)
      (param_map): MLP(3 to 6, width 8, 86 parameters)
    (2): Merge
  (2): Reverse(648 parameters)
    (flow): Coupling((6,), Affine(max_log_scale=3.0), 648 parameters)
      (net): KAN(3 to 6, width 8, 648 parameters)"""


def normflows_inside():
    return mb.Chain(
        [
            nf.flows.AutoregressiveRationalQuadraticSpline(6, 1, 8),
            nf.flows.AffineCouplingBlock(nf.nets.MLP([3, 8, 6])),
            nf.flows.Reverse(mb.Coupling(6, net=mb.nets.KAN, hidden_features=8)),
        ]
    )


@pytest.mark.parametrize(
    ("build", "want"),
    [
        (lambda: mb.MixerFlow((3, 16, 16), 4, 5, shift_every=5, hidden_features=16), MIXER),
        (
            lambda: mb.TarFlow(
                (1, 4, 4), 2, channels=12, head_dim=6, num_blocks=4, layers_per_block=1,
                expansion=2, num_classes=3,
            ),
            ATTENTION,
        ),
        (normflows_inside, NORMFLOWS),
        (lambda: mb.ActNorm(3), "ActNorm((3,), 6 parameters)"),
        (lambda: mb.LULinear(3), "LULinear((3,), 9 parameters)"),
        (
            lambda: mb.LULinear(3, identity_init=False),
            "LULinear((3,), identity_init=False, 9 parameters)",
        ),
        (
            lambda: mb.CyclicShift((3, 8, 8), 4, offset=1),
            "CyclicShift((4, 48), image_shape=(3, 8, 8), patch_size=(4, 4), offset=(1, 1))",
        ),
        (
            lambda: mb.Elementwise(2, mb.RationalQuadratic(num_bins=4)),
            "Elementwise((2,), RationalQuadratic(num_bins=4, bound=3.0, circular=False, "
            "slopes='bounded'), 22 parameters)",
        ),
    ],
    ids=[
        "mixer", "tarflow", "normflows", "actnorm", "lu", "rotation", "shift", "elementwise",
    ],
)  # fmt: skip
def test_layers_and_models_as_text(build, want):
    layer = build()
    assert repr(layer) == want
    assert repr(layer.to("meta")) == want


def test_the_default_model_fits_on_a_screen_and_counts_parameters():
    model = mb.MixerFlow()
    lines = repr(model).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in lines[0]


def test_repeated_layers_are_shown_once():
    pair = [mb.Coupling(4, hidden_features=8), mb.Coupling(4, hidden_features=8, reverse=True)]
    text = repr(mb.Chain(copy.deepcopy(layer) for _ in range(9) for layer in pair))
    assert "(0-17): 9 times" in text
    assert len(text.splitlines()) == 6


class Untold(mb.Bijection):
    """Neither a univariate with a text of its own, nor a keyword that is kept."""

    def __init__(self, size, univariate):
        super().__init__(None)
        self.univariate = univariate
        self.scale = nn.Parameter(torch.zeros(size))


class Doubled(mb.Bijection):
    def __init__(self):
        super().__init__((2,))

    def extra_repr(self):
        return "factor=2"


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (mb.Coupling.__new__(mb.Coupling), "Coupling"),
        (mb.Chain([]), "Chain"),
        (Untold(5, object()), "Untold(object, 5 parameters)"),
        (Doubled(), "Doubled((2,), factor=2)"),
        (mb.Chain([torch.compile(mb.ActNorm(2))]), "Chain((2,), 4 parameters)\n  (0): ActNorm"),
    ],
    ids=["half-built", "empty", "no text", "extra_repr", "compiled"],
)
def test_whatever_a_layer_holds_it_has_a_text(layer, want):
    assert repr(layer).startswith(want)
    assert " at 0x" not in repr(layer)


def test_an_unpickled_layer_without_declared_shapes_has_a_text():
    file = io.BytesIO()
    layer = mb.Coupling(4, hidden_features=8, num_blocks=1)
    del layer.event_shape, layer.latent_shape, layer.context_features
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert repr(loaded).startswith("Coupling(features=4, Affine(max_log_scale=3.0), 204 param")
