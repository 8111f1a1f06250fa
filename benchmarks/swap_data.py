"""Batches that the examples of normflows, nflows and zuko learn from."""

import math

import normflows as nf
import torch
from sklearn.datasets import load_digits, make_moons
from torch import Tensor

# What a training step or a test is given: samples, and the context or the labels.
Batch = tuple[Tensor, Tensor | None]


def moons(count: int) -> Batch:
    x, label = make_moons(count, noise=0.1, random_state=int(torch.randint(2**31, ())))
    return torch.tensor(x).float(), torch.tensor(label).float().unsqueeze(1)


def unlabelled_moons(count: int) -> Batch:
    return moons(count)[0], None


def latents_only(count: int) -> Batch:
    return torch.empty(count), None


def gaussian_of_context(count: int) -> Batch:
    context = torch.cat((torch.randn(count, 2), 0.5 + 0.5 * torch.rand(count, 2)), dim=1)
    return nf.distributions.target.ConditionalDiagGaussian().sample(count, context), context


def line_and_angle(count: int) -> Batch:
    x = torch.randn(count)
    x = torch.where(torch.rand(count) > 0.6, 0.3 * x - 0.5, x + 1.3)
    angle = torch.acos(2 * torch.rand(count) - 1)
    angle = torch.where(torch.rand(count) > 0.3, -angle, angle) + x
    return torch.stack((x, wrap(angle)), dim=1), None


def torus(count: int) -> Batch:
    first = torch.where(torch.rand(count) > 0.3, 2.0, -1.5) + 0.5 * torch.randn(count)
    second = 2 * first + math.pi + 0.4 * torch.randn(count)
    return wrap(torch.stack((first, second), dim=1)), None


def wrap(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def digits(rows: slice, count: int) -> Batch:
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images)[rows], torch.tensor(labels)[rows]
    chosen = torch.randint(len(images), (count,))
    x = images[chosen].float().reshape(-1, 1, 8, 8)
    return (x + torch.rand_like(x)) / 17, labels[chosen]
