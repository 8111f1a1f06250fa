"""Autoregressive layers of all libraries, and how to run them."""

import nflows.transforms as nt
import normflows as nf
import pytest
import torch

import mixer_bijectors as mb

# Layers of 12 features, hidden 32, with context if asked: the sequential direction of each.
LAYERS = {
    "normflows-maf": ("inverse", lambda c: nf.flows.MaskedAffineAutoregressive(12, 32, c)),
    "normflows-spline": (
        "forward",
        lambda c: nf.flows.AutoregressiveRationalQuadraticSpline(12, 1, 32, c),
    ),
    "normflows-permuted": (
        "forward",
        lambda c: nf.flows.AutoregressiveRationalQuadraticSpline(
            12, 1, 32, c, permute_mask=True
        ),
    ),
    "normflows-circular": (
        "forward",
        lambda c: nf.flows.CircularAutoregressiveRationalQuadraticSpline(
            12, 1, 32, [0, 3, 4], c
        ),
    ),
    "nflows-maf": ("inverse", lambda c: nt.MaskedAffineAutoregressiveTransform(12, 32, c)),
    "nflows-spline": (
        "inverse",
        lambda c: nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            12, 32, c, tails="linear", tail_bound=3.0
        ),
    ),
    "nflows-quadratic": (
        "inverse",
        lambda c: nt.MaskedPiecewiseQuadraticAutoregressiveTransform(
            12, 32, c, tails="linear", tail_bound=3.0
        ),
    ),
    "ours-affine": (
        "forward",
        lambda c: mb.Autoregressive(12, hidden_features=32, context_features=c or 0),
    ),
    "ours-spline-reverse": (
        "forward",
        lambda c: mb.Autoregressive(
            12,
            mb.RationalQuadratic(),
            hidden_features=32,
            context_features=c or 0,
            reverse=True,
        ),
    ),
}
CONTEXT = pytest.mark.parametrize("context_features", [None, 3])
EXACT = pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 2e-5), (torch.float64, 1e-12)]
)


def run(layer, direction, x, context=None):
    return (layer if direction == "forward" else layer.inverse)(x, context)
