"""Digests of models."""

import pytest

import mixer_bijectors as mb
from mixer_bijectors.train.tasks.fingerprint import digest_of_model

MODELS = {
    "spline": lambda patch: mb.MixerFlow(
        (1, 8, 8), patch, 1, univariate=mb.RationalQuadratic()
    ),
    "B-spline": lambda patch: mb.MixerFlow(
        (1, 8, 8), patch, 1, univariate=mb.MonotoneBSpline()
    ),
    "TarFlow": lambda patch: mb.TarFlow(
        (1, 8, 8), patch, channels=8, num_blocks=1, layers_per_block=1, head_dim=8
    ),
    "residual": lambda patch: mb.presets.residual((1, 8, 8), patch, 1, hidden_features=8),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_digest_is_that_of_the_model_alone(kind):
    prints = [digest_of_model(MODELS[kind](patch)) for patch in ((4, 4), (4, 4), (2, 8))]
    assert prints[0] == prints[1] != prints[2]
