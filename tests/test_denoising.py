"""Images without the noise that a model was trained with."""

import math

import torch
from small_tarflow import small
from torch.testing import assert_close

import mixer_bijectors as mb


def test_denoising_takes_gaussian_noise_off_a_gaussian():
    """Where data are normal with variance s, the mean given x is x s / (s + sigma^2)."""

    class Noisy:
        def log_prob(self, x):
            scale = math.sqrt(0.25 + 0.01)
            return torch.distributions.Normal(0.0, scale).log_prob(x).flatten(1).sum(1)

    x = torch.randn(5, 1, 4, 4)
    assert_close(mb.denoise(Noisy(), x, 0.1), x * 0.25 / 0.26)
    model = small(num_classes=3)
    images = torch.rand(2, 1, 6, 8)
    with torch.no_grad():
        result = mb.denoise(model, images, 0.1, torch.tensor([0, 2]))
    assert result.shape == images.shape and not result.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(mb.denoise(model, images, 0.0, torch.tensor([0, 2])), images)
    with torch.inference_mode():  # as trainers evaluate
        again = mb.denoise(model, images * 1.0, 0.1, torch.tensor([0, 2]))
    assert_close(again, result)
