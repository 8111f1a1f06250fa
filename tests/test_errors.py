"""What a user reads who passes the wrong thing."""

import normflows as nf
import numpy as np
import pytest
import torch

import mixer_bijectors as mb
from mixer_bijectors import images


def tiny(**options):
    return mb.MixerFlow((3, 4, 4), 2, num_layers=1, hidden_features=4, shift_every=0, **options)


def tarflow(**options):
    sizes = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}
    return mb.TarFlow((3, 4, 4), 2, **(sizes | options))


class OnGPU(torch.Generator):
    device = torch.device("cuda")


def classifier(**options):
    return mb.HybridClassifier(tiny(), **({"num_classes": 3, "weight": 1.0} | options))


def reference(image_shape=(3, 4, 4), drop=None, **extra):
    weights = tarflow().to_reference()
    weights.pop(drop, None)
    return mb.TarFlow.from_reference(weights | extra, image_shape, 2, head_dim=8)


def built(function):
    """What builds a net of given outputs."""

    class Net(torch.nn.Module):
        def forward(self, x, context=None):
            return function(x)

    return lambda *sizes, **options: Net()


MATRIX = torch.randn(3, 4, 2)
X, IMAGES = torch.randn(2, 5), torch.randn(2, 3, 4, 4)
CONDITIONAL = mb.Coupling(5, context_features=3)
ERRORS = {
    "TarFlow label out of range": (
        lambda: tarflow(num_classes=3).log_prob(IMAGES, torch.tensor([0, 3])),
        ValueError,
        "TarFlow: labels must be from 0 to 2, or -1 for the null class, got 3",
    ),
    "TarFlow without labels": (
        lambda: tarflow(num_classes=3).sample(2),
        ValueError,
        "TarFlow: built with num_classes=3 but called without labels; pass integer labels of "
        "shape (2,), -1 for the null class",
    ),
    "guidance by nothing": (
        lambda: tarflow().sample(2, guidance=1.0),
        ValueError,
        "guidance of a model without classes needs an attention_temperature other than 1.0",
    ),
    "negative guidance": (
        lambda: tarflow(num_classes=3).sample(2, torch.tensor([0, 1]), guidance=-1.0),
        ValueError,
        "Guidance: weight must not be negative, got -1.0",
    ),
    "what to guide": (
        lambda: tarflow().sample(2, guidance=mb.Guidance(1.0, "ab")),
        ValueError,
        "Guidance: guide must be one of ('scale+shift', 'scale', 'shift'), got 'ab'",
    ),
    "attention temperature": (
        lambda: tarflow().sample(2, guidance=mb.Guidance(1.0, attention_temperature=0.0)),
        ValueError,
        "Guidance: attention_temperature must be positive, got 0.0",
    ),
    "sampling method": (
        lambda: tarflow().sample(2, method="jacobi"),
        ValueError,
        "method must be one of ('auto', 'parallel', 'sequential'), got 'jacobi'",
    ),
    "number of patches": (
        lambda: mb.TransformerAutoregressive(6, 12, channels=64).inverse(torch.randn(2, 4, 12)),
        ValueError,
        "TransformerAutoregressive: expected shape (batch, 6, 12), got (2, 4, 12)",
    ),
    "a single patch": (
        lambda: mb.TransformerAutoregressive(1, 12),
        ValueError,
        "TransformerAutoregressive: needs at least 2 patches of at least 1 feature",
    ),
    "heads": (
        lambda: mb.TransformerAutoregressive(4, 12, channels=100),
        ValueError,
        "CausalTransformer: channels must be a multiple of head_dim=64, got 100",
    ),
    "no blocks": (
        lambda: tarflow(num_blocks=0),
        ValueError,
        "TarFlow: num_blocks must be a whole number from 1, got 0",
    ),
    "mixer of other images": (
        lambda: tarflow(mixer=mb.MixerFlow((3, 8, 8), 2, 1, shift_every=0)),
        ValueError,
        "TarFlow: the mixer must be of the same image_shape, patch_size and num_classes",
    ),
    "checkpoint of another size": (
        lambda: reference((3, 8, 8)),
        ValueError,
        "TarFlow.from_reference: the weights are for 4 patches of 12 features, but image_shape "
        "(3, 8, 8) and patch_size (2, 2) give 16 of 12",
    ),
    "checkpoint that lacks a key": (
        lambda: reference(drop="blocks.1.proj_in.bias"),
        ValueError,
        "missing: blocks.1.proj_in.bias; unexpected: none",
    ),
    "checkpoint with another key": (
        lambda: reference(**{"blocks.0.rope": torch.zeros(2)}),
        ValueError,
        "missing: none; unexpected: blocks.0.rope",
    ),
    "checkpoint of something else": (
        lambda: mb.TarFlow.from_reference({"fc.weight": torch.zeros(2, 2)}, (3, 4, 4), 2),
        ValueError,
        "these are not the weights of a TarFlow",
    ),
    "checkpoint with others beside": (
        lambda: mb.TarFlow.from_reference({"model": tarflow().to_reference()}, (3, 4, 4), 2),
        TypeError,
        "expected a state_dict, tensors by name, or the path of one; hand over the entry",
    ),
    "checkpoint of two sizes": (
        lambda: reference(**{"blocks.1.proj_in.weight": torch.zeros(24, 12)}),
        ValueError,
        "blocks.1.proj_in.weight should have the shape (16, 12) beside the other weights, got "
        "(24, 12)",
    ),
    "mixer of another kind": (
        lambda: tarflow(mixer=tarflow()),
        TypeError,
        "TarFlow: mixer must be a MixerFlow, got TarFlow",
    ),
    "mixer with a base": (
        lambda: tarflow(mixer=tiny(base=nf.distributions.DiagGaussian((4, 12)))),
        ValueError,
        "TarFlow: the mixer has a base of its own, which would be left out",
    ),
    "a transformer's patches": (
        lambda: mb.nets.CausalTransformer(4, 3, 6)(torch.zeros(2, 5, 3)),
        ValueError,
        "CausalTransformer: expected shape (batch, up to 4, 3), got (2, 5, 3)",
    ),
    "a transformer's context": (
        lambda: mb.nets.CausalTransformer(4, 3, 6, context_features=2)(torch.zeros(2, 4, 3)),
        ValueError,
        "CausalTransformer: built with context_features=2 but called without context",
    ),
    "a transformer's heads": (
        lambda: mb.nets.Transformer(4, 3, 6, channels=100),
        ValueError,
        "Transformer: channels must be a multiple of head_dim=64, got 100",
    ),
    "a convolution on no grid": (
        lambda: mb.nets.PatchConv(6, 3, 6),
        ValueError,
        "PatchConv: num_patches must be the (rows, columns) of the grid of patches, or their "
        "number where that is square, got 6",
    ),
    "an even neighbourhood": (
        lambda: mb.nets.PatchConv(4, 3, 6, neighbourhood=2),
        ValueError,
        "PatchConv: neighbourhood must be odd, got 2",
    ),
    "a convolution's patches": (
        lambda: mb.nets.PatchConv(4, 3, 6)(torch.zeros(2, 5, 3)),
        ValueError,
        "PatchConv: expected shape (batch, 4, 3), got (2, 5, 3)",
    ),
    "a convolution's context": (
        lambda: mb.nets.PatchConv(4, 3, 6, context_features=2)(torch.zeros(2, 4, 3)),
        ValueError,
        "PatchConv: built with context_features=2 but called without context",
    ),
    "a mixer's patches": (
        lambda: mb.nets.Mixer(4, 3, 6)(torch.zeros(2, 4, 2)),
        ValueError,
        "Mixer: expected shape (batch, 4, 3), got (2, 4, 2)",
    ),
    "a mixer without blocks": (
        lambda: mb.nets.Mixer(4, 3, 6, num_blocks=0),
        ValueError,
        "Mixer: num_blocks must be a whole number from 1, got 0",
    ),
    "a coupling over something else": (
        lambda: mb.MatrixCoupling(4, 6, axis="channels"),
        ValueError,
        "MatrixCoupling: axis must be 'features' or 'patches', got 'channels'",
    ),
    "a mask of features": (
        lambda: mb.MatrixCoupling(4, 6, mask="rows"),
        ValueError,
        "MatrixCoupling: mask is for axis='patches', got 'rows' for features",
    ),
    "another mask": (
        lambda: mb.MatrixCoupling(4, 6, axis="patches", mask="odd"),
        ValueError,
        "MatrixCoupling: mask must be one of ('checkerboard', 'columns', 'rows'), got 'odd'",
    ),
    "a grid that no mask halves": (
        lambda: mb.MatrixCoupling((2, 3), 6, axis="patches"),
        ValueError,
        "MatrixCoupling: mask='checkerboard' needs an even number of columns, got a grid of "
        "2 x 3 patches",
    ),
    "one feature of a matrix": (
        lambda: mb.MatrixCoupling(4, 1),
        ValueError,
        "MatrixCoupling: features must be at least 2, one half for the other, got 1",
    ),
    "a net of a matrix that is built": (
        lambda: mb.MatrixCoupling(4, 6, net=mb.nets.Mixer(4, 3, 6)),
        TypeError,
        "MatrixCoupling: net must build a module from its sizes, got a Mixer that is built",
    ),
    "another shift": (
        lambda: mb.MixerFlow((3, 8, 8), 4, 1, shift="roll"),
        ValueError,
        "MixerFlow: shift must be 'frame', 'cyclic' or None, got 'roll'",
    ),
    "a flow over features that cannot see neighbours": (
        lambda: tiny(channel_flow=mb.Coupling, neighbourhood=3),
        ValueError,
        "MixingLayer: a channel_flow sees one patch; leave it out, or neighbourhood=3",
    ),
    "windows that do not fill the grid": (
        lambda: mb.MixerFlow((3, 32, 32), 4, 2, shift_every=2, window=4),
        ValueError,
        "WindowMixing: windows of 4 x 4 patches do not fill the grid of 7 x 7 patches; rows and"
        " columns must be multiples of window",
    ),
    "a flow for other windows": (
        lambda: mb.WindowMixing(mb.Coupling(16), 64, window=2),
        ValueError,
        "WindowMixing: Coupling is for vectors of size 16, but a window holds 4 patches",
    ),
    "an image without windows": (
        lambda: mb.presets.local((3, 44, 32), 4),
        ValueError,
        "presets.local: no windows of 2 to 8 patches fill the grid of 11 x 8 patches; give "
        "another patch_size, or window=None for all patches",
    ),
    "an odd patch for Jet": (
        lambda: mb.Jet((3, 9, 9), 3),
        ValueError,
        "Jet: needs an even number of features in a patch, got 27",
    ),
    "a base of vectors": (
        lambda: tiny(base=nf.distributions.GaussianMixture(2, 48)),
        ValueError,
        "(num_patches, features), got GaussianMixture of shape (48,); take one such as",
    ),
    "a base of torch": (
        lambda: tiny(base=torch.distributions.Normal(0.0, 1.0)).sample(2),
        TypeError,
        "MixerFlow: Normal cannot be called for samples; take a distribution of normflows",
    ),
    "a generator on another device": (
        lambda: tiny().sample(2, generator=OnGPU()),
        ValueError,
        "MixerFlow: the generator is on cuda, but the base on cpu; make one with",
    ),
    "a base of other classes": (
        lambda: tiny(num_classes=2, base=nf.distributions.ClassCondDiagGaussian((4, 12), 3)),
        ValueError,
        "MixerFlow: the base ClassCondDiagGaussian is for 3 classes, but the model for "
        "num_classes=2",
    ),
    "densities of parts of an image": (
        lambda: mb.denoise(torch.distributions.Normal(0.0, 1.0), IMAGES, 0.1),
        ValueError,
        "denoise: Normal gave log-densities of shape (2, 3, 4, 4), expected (2,), one for each",
    ),
    "no target": (
        lambda: tiny().reverse_kld(2),
        ValueError,
        "MixerFlow: the model has no target; set its attribute p",
    ),
    "the shape of a batch for that of an image": (
        lambda: images.bits_per_dim(torch.zeros(2), IMAGES.shape),
        ValueError,
        "bits_per_dim: image_shape must be that of one image, (channels, height, width), got "
        "(2, 3, 4, 4); of a batch x it is x.shape[1:]",
    ),
    "a seed for a generator": (
        lambda: tiny().sample(2, generator=3),
        TypeError,
        "MixerFlow: generator must be a torch.Generator, got 3; make one with "
        "torch.Generator().manual_seed(seed)",
    ),
    "noise": (
        lambda: images.add_noise(torch.zeros(2, dtype=torch.uint8), -1.0),
        ValueError,
        "add_noise: sigma must not be negative, got -1.0",
    ),
    "noise on floating point images": (
        lambda: images.add_noise(torch.zeros(2), 0.1),
        TypeError,
        "add_noise: expected a tensor of dtype torch.uint8, got torch.float32",
    ),
    "sigma": (
        lambda: mb.denoise(tarflow(), IMAGES, -0.1),
        ValueError,
        "denoise: sigma must not be negative, got -0.1",
    ),
    "a classifier of a vector flow": (
        lambda: mb.HybridClassifier(mb.ActNorm(5), 3, weight=1.0),
        TypeError,
        "HybridClassifier: flow must be a model of images such as MixerFlow, got ActNorm",
    ),
    "a classifier of a model that reads labels": (
        lambda: mb.HybridClassifier(tiny(num_classes=3), 3, weight=1.0),
        ValueError,
        "HybridClassifier: the flow is class-conditional, and would read the labels that are "
        "to be told; build it without num_classes",
    ),
    "a classifier of one class": (
        lambda: classifier(num_classes=1),
        ValueError,
        "HybridClassifier: num_classes must be at least 2, got 1",
    ),
    "a negative weight": (
        lambda: classifier(weight=-0.5),
        ValueError,
        "HybridClassifier: weight must be finite and not negative, got -0.5",
    ),
    "a weight that is not a number": (
        lambda: classifier(weight=float("nan")),
        ValueError,
        "HybridClassifier: weight must be finite and not negative, got nan",
    ),
    "labels to learn that are not integers": (
        lambda: classifier().loss(IMAGES, torch.zeros(2)),
        TypeError,
        "HybridClassifier: expected a tensor of integer labels, got torch.float32",
    ),
    "labels to learn that are a list": (
        lambda: classifier().loss(IMAGES, [0, 1]),
        TypeError,
        "HybridClassifier: expected a tensor of integer labels, got list",
    ),
    "labels to learn of another shape": (
        lambda: classifier().loss(IMAGES, torch.tensor([[0], [1]])),
        ValueError,
        "HybridClassifier: expected labels of shape (2,), got (2, 1)",
    ),
    "a label to learn that is no class": (
        lambda: classifier().loss(IMAGES, torch.tensor([0, -1])),
        ValueError,
        "HybridClassifier: labels must be from 0 to 2, got -1",
    ),
    "images of another shape to classify": (
        lambda: classifier()(torch.randn(2, 1, 4, 4)),
        ValueError,
        "MixerFlow: expected shape (batch, 3, 4, 4), got (2, 1, 4, 4)",
    ),
    "height": (
        lambda: mb.Patchify((3, 30, 32), 4),
        ValueError,
        "Patchify: image height 30 is not divisible by patch height 4",
    ),
    "width": (
        lambda: mb.Patchify((3, 32, 30), 4),
        ValueError,
        "Patchify: image width 30 is not divisible by patch width 4",
    ),
    "patch of no pixels": (
        lambda: mb.Patchify((3, 32, 32), 0),
        ValueError,
        "Patchify: image height 32 is not divisible by patch height 0",
    ),
    "model of an image that does not divide": (
        lambda: mb.MixerFlow((3, 28, 30), 4),
        ValueError,
        "Patchify: image width 30 is not divisible by patch width 4",
    ),
    "image shape": (
        lambda: mb.Patchify((3, 4, 4), 2).inverse(torch.randn(2, 3, 6, 4)),
        ValueError,
        r"Patchify: expected shape (batch, 3, 4, 4), got (2, 3, 6, 4)",
    ),
    "channels": (
        lambda: tiny().log_prob(torch.randn(2, 1, 4, 4)),
        ValueError,
        "MixerFlow: expected shape (batch, 3, 4, 4), got (2, 1, 4, 4)",
    ),
    "integer images": (
        lambda: tiny().log_prob(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)),
        TypeError,
        "expected a floating point tensor, got torch.uint8; convert it with x.float(), or "
        "8-bit images with images.dequantize(x)",
    ),
    "matrix shape": (
        lambda: mb.Patchify((3, 4, 4), 2)(torch.randn(2, 4, 11)),
        ValueError,
        "Patchify: expected shape (batch, 4, 12), got (2, 4, 11)",
    ),
    "a vector to a matrix layer": (
        lambda: mb.ChannelMixing(mb.ActNorm(5)).inverse(X),
        ValueError,
        "ChannelMixing: expected shape (batch, patches, 5), got (2, 5)",
    ),
    "features": (
        lambda: mb.LULinear(4).inverse(X),
        ValueError,
        "LULinear: expected shape (batch, 4), got (2, 5)",
    ),
    "features to shift": (
        lambda: mb.CyclicShift((1, 4, 4), 2).inverse(torch.randn(2, 4, 3)),
        ValueError,
        "CyclicShift: expected shape (batch, 4, 4), got (2, 4, 3)",
    ),
    "one feature": (
        lambda: mb.Coupling(1),
        ValueError,
        "Coupling: features must be at least 2, one half for the other, got 1",
    ),
    "no context": (
        lambda: CONDITIONAL.inverse(X),
        ValueError,
        "Coupling: built with context_features=3 but called without context; pass a context "
        "of shape (2, 3)",
    ),
    "context size": (
        lambda: CONDITIONAL(X, torch.randn(2, 4)),
        ValueError,
        "Coupling: expected a context of shape (2, 3), got (2, 4)",
    ),
    "context batch": (
        lambda: mb.ChannelMixing(CONDITIONAL).inverse(torch.randn(2, 4, 5), torch.randn(3, 3)),
        ValueError,
        "ChannelMixing: expected a context of shape (2, 3), got (3, 3)",
    ),
    "shift by nothing": (
        lambda: mb.Shift(mb.Chain([]), (3, 4, 4), 1),
        ValueError,
        "Shift: offset (0, 0) must be positive and smaller than the patch (1, 1); use larger "
        "patches, or shift_every=0 in a MixerFlow",
    ),
    "shift by a patch": (
        lambda: mb.Shift(mb.Chain([]), (3, 8, 8), 2, offset=2),
        ValueError,
        "Shift: offset (2, 2) must be positive and smaller than the patch (2, 2)",
    ),
    "shift of a single patch": (
        lambda: mb.Shift(mb.Chain([]), (3, 4, 4), 4),
        ValueError,
        "Shift: image (4, 4) has no whole patch (4, 4) left inside a frame of (2, 2) pixels",
    ),
    "a model with a single patch in its shifted layers": (
        lambda: mb.MixerFlow((3, 8, 8), 4, num_layers=4),
        ValueError,
        "MixerFlow: couplings cannot mix the 1 x 48 matrix of image (3, 4, 4) and patch (4, 4)"
        "; change patch_size, or leave out shifted layers, which have fewer patches, with "
        "shift_every=0",
    ),
    "a negative number of layers": (
        lambda: mb.MixerFlow((3, 8, 8), 4, num_layers=-1),
        ValueError,
        "MixerFlow: num_layers must be a whole number from 0, got -1",
    ),
    "a number of classes that is none": (
        lambda: tiny(num_classes=3.0),
        ValueError,
        "MixerFlow: num_classes must be a whole number from 0, got 3.0",
    ),
    "half a Transformer": (
        lambda: tarflow(num_blocks=1.5),
        ValueError,
        "TarFlow: num_blocks must be a whole number from 1, got 1.5",
    ),
    "labels to an unconditional model": (
        lambda: tiny().log_prob(IMAGES, torch.tensor([0, 1])),
        ValueError,
        "MixerFlow: got labels, but the model is unconditional; build it with num_classes",
    ),
    "no labels": (
        lambda: tiny(num_classes=2).log_prob(IMAGES),
        ValueError,
        "MixerFlow: built with num_classes=2 but called without labels; pass integer labels "
        "of shape (2,)",
    ),
    "labels for another batch": (
        lambda: tiny(num_classes=2).sample(3, torch.tensor([0, 1])),
        ValueError,
        "MixerFlow: expected labels of shape (3,), got (2,)",
    ),
    "labels that are not integers": (
        lambda: tiny(num_classes=2).log_prob(IMAGES, torch.zeros(2)),
        TypeError,
        "MixerFlow: expected a tensor of integer labels, got torch.float32",
    ),
    "a label that is a number": (
        lambda: tiny(num_classes=2).sample(2, 1),
        TypeError,
        "MixerFlow: expected a tensor of integer labels, got int",
    ),
    "guidance as text": (
        lambda: tarflow().sample(2, guidance="1.0"),
        TypeError,
        "Guidance: weight must be a number, got '1.0'",
    ),
    "temperatures of images": (
        lambda: tiny().sample(2, temperature=torch.ones(2)),
        TypeError,
        "MixerFlow: temperature must be a number, got tensor([1., 1.])",
    ),
    "temperature as text": (
        lambda: tiny().sample(2, temperature="0.5"),
        TypeError,
        "MixerFlow: temperature must be a number, got '0.5'",
    ),
    "negative temperature": (
        lambda: tiny().sample(2, temperature=-1.0),
        ValueError,
        "MixerFlow: temperature must be positive, got -1.0",
    ),
    "a base of another shape": (
        lambda: tiny(base=nf.distributions.DiagGaussian(48)),
        ValueError,
        "MixerFlow: the base must have the shape (4, 12) of the latents, (num_patches, "
        "features), got DiagGaussian of shape (48,)",
    ),
    "a flow instead of its builder": (
        lambda: tiny(channel_flow=mb.Coupling(12)),
        TypeError,
        "MixerFlow: channel_flow must build a module from its sizes, got a Coupling that is "
        "built already; pass a class or a function",
    ),
    "a net instead of its builder": (
        lambda: mb.Coupling(6, net=nf.nets.MLP([3, 8, 6])),
        TypeError,
        "Coupling: net must build a module from its sizes, got a MLP that is built already; "
        "pass a class or a function",
    ),
    "a univariate's class": (
        lambda: mb.Coupling(6, mb.Affine),
        TypeError,
        "Coupling: univariate must be an instance, Affine(), not the class",
    ),
    "a univariate's name": (
        lambda: mb.Elementwise(6, "affine"),
        TypeError,
        "Elementwise: univariate must be a bijection such as Affine(), got 'affine'",
    ),
    "higher precision than elementwise parameters": (
        lambda: mb.Elementwise(5).inverse(X.double()),
        TypeError,
        "Elementwise: the input is torch.float64, the parameters are torch.float32",
    ),
    "image shape without channels": (
        lambda: mb.Patchify((28, 28), 4),
        ValueError,
        "Patchify: image_shape must be (channels, height, width), got (28, 28)",
    ),
    "higher precision than the model": (
        lambda: tiny().log_prob(IMAGES.double()),
        TypeError,
        "LULinear: the input is torch.float64, the parameters are torch.float32; convert one, "
        "with x.float() or model.double()",
    ),
    "an array": (
        lambda: mb.ActNorm(5).inverse(X.numpy()),
        TypeError,
        "ActNorm: expected a tensor, got ndarray",
    ),
    "context without a batch": (
        lambda: mb.ChannelMixing(CONDITIONAL).inverse(torch.randn(2, 4, 5), torch.randn(2)),
        ValueError,
        "ChannelMixing: expected a context of shape (2, 3), got (2,)",
    ),
    "dequantize to half precision": (
        lambda: images.dequantize(torch.zeros(2, dtype=torch.uint8), dtype=torch.bfloat16),
        TypeError,
        "dequantize: dtype must be float32 or float64, got torch.bfloat16",
    ),
    "labels out of range": (
        lambda: tiny(num_classes=2).log_prob(IMAGES, torch.tensor([0, 2])),
        ValueError,
        "MixerFlow: labels must be from 0 to 1, or -1 for the null class, got 2",
    ),
    "temperature": (
        lambda: tiny(base=nf.distributions.BaseDistribution()).sample(2, temperature=0.5),
        ValueError,
        "MixerFlow: BaseDistribution has no temperature; use temperature=1.0",
    ),
    "dequantize": (
        lambda: images.dequantize(torch.rand(2, 3)),
        TypeError,
        "dequantize: expected a tensor of dtype torch.uint8, got torch.float32",
    ),
    "dequantize an array": (
        lambda: images.dequantize(np.zeros((2, 3), np.uint8)),
        TypeError,
        "dequantize: expected a tensor of dtype torch.uint8, got ndarray",
    ),
    "one seed for a batch": (
        lambda: images.dequantize(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), seeds=[5]),
        ValueError,
        "expected a seed for each of 2 images, got 1 seeds",
    ),
    "labels of importance weights": (
        lambda: images.importance_weighted_bits(
            tiny(), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 1, labels=torch.zeros(4)
        ),
        ValueError,
        "importance_weighted_bits: expected labels of shape (2,), got (4,)",
    ),
    "a net with too few outputs": (
        lambda: mb.Coupling(6, net=built(lambda x: x[:, :2])).inverse(torch.randn(2, 6)),
        ValueError,
        "Coupling: the net must return shape (2, 6), got (2, 2)",
    ),
    "a net that loses the batch": (
        lambda: mb.MatrixCoupling(4, 2, net=built(lambda x: x.mean(0).expand(4, 2)))(MATRIX),
        ValueError,
        "MatrixCoupling: the net must return shape (3, 4, 2), got (4, 2)",
    ),
    "a net that returns a pair": (
        lambda: mb.Coupling(6, net=built(lambda x: (x, x)))(torch.randn(2, 6)),
        TypeError,
        "Coupling: the net must return a tensor, got tuple",
    ),
    "quantize": (
        lambda: images.quantize(torch.zeros(2, dtype=torch.uint8)),
        TypeError,
        "quantize: expected floating point images in [-1, 1), got torch.uint8",
    ),
    "grid of nothing": (
        lambda: images.make_grid(torch.rand(0, 3, 4, 4)),
        ValueError,
        "make_grid: expected at least one image of shape (batch, 1 or 3, height, width), got "
        "(0, 3, 4, 4)",
    ),
    "one sample to check": (
        lambda: mb.check_bijection(mb.ActNorm(5), X[:1]),
        ValueError,
        "check_bijection: x must hold at least 2 samples to compare, got 1",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_one_sentence_says_what_to_change(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
