"""Bits per dimension by several samples of noise."""

import math

import pytest
import torch
from torch.testing import assert_close

from mixer_bijectors.images import bits_per_dim, dequantize, importance_weighted_bits

SHAPE = (1, 1, 2)


class Logistic:
    """Pixels of a logistic distribution, whose integral over a level is known."""

    scale = 0.004  # a level is 0.0078 wide

    def log_prob(self, x, labels=None):
        shift = 0 if labels is None else 0.01 * labels.view(-1, 1, 1, 1)
        z = (x - shift) / self.scale
        log_density = -z - 2 * torch.nn.functional.softplus(-z) - math.log(self.scale)
        return log_density.flatten(1).sum(1)

    def bits(self, x):
        """The discrete bits per dimension."""
        edges = torch.stack((x.double(), x.double() + 1)) / 128 - 1
        low, high = (edges / self.scale).sigmoid()
        return -(high - low).log2().flatten(1).mean(1)


def integers(batch=6):
    return torch.randint(126, 131, (batch, *SHAPE), dtype=torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_approaches_the_discrete_bits():
    x = integers()
    bits = importance_weighted_bits(Logistic(), x, 1000, generator=generator())
    assert bits.dtype == torch.float64 and bits.shape == (6,)
    assert_close(bits, Logistic().bits(x), atol=0.05, rtol=0)


def test_falls_with_the_number_of_samples():
    x = integers(1).expand(2000, *SHAPE)
    means = [
        importance_weighted_bits(Logistic(), x, k, generator=generator(), chunk_size=2000)
        .mean()
        .item()
        for k in (1, 3, 10)
    ]
    assert means[0] > means[1] > means[2] > Logistic().bits(x[:1]).item() - 1e-3


def test_one_sample_is_the_plain_bound():
    x = integers()
    for noise in ({"generator": generator()}, {"seeds": range(6)}):
        bits = importance_weighted_bits(Logistic(), x, 1, **noise)
        if "generator" in noise:
            noise["generator"].manual_seed(0)
        plain = bits_per_dim(Logistic().log_prob(dequantize(x, **noise)).double(), SHAPE)
        assert_close(bits, plain, atol=0, rtol=0)


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 13, 1000])
def test_chunks_change_nothing(chunk_size):
    x, labels = integers(), torch.arange(6)
    for noise in ("generator", "seeds"):
        whole, parts = (
            importance_weighted_bits(
                Logistic(),
                x,
                7,
                labels=labels,
                chunk_size=size,
                **({"seeds": range(6)} if noise == "seeds" else {"generator": generator()}),
            )
            for size in (42, chunk_size)
        )
        assert_close(parts, whole, atol=1e-12, rtol=0)


def test_weights_that_span_many_magnitudes_stay_finite():
    class Steep(Logistic):
        scale = 1e-4

    bits = importance_weighted_bits(Steep(), integers() + 60, 10)
    assert bits.isfinite().all()


@pytest.mark.parametrize("option", [{"k": 0}, {"k": 2, "chunk_size": 0}])
def test_arguments(option):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        importance_weighted_bits(Logistic(), integers(), **option)
    with pytest.raises(TypeError, match="uint8"):
        importance_weighted_bits(Logistic(), integers().float(), 2)
