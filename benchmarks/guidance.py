"""Guidance and denoising on the digits of scikit-learn, by the numbers.

For each standard deviation of the noise in training, a class-conditional TarFlow is trained for
the same time and samples ten classes in turn, with and without denoising, at several guidances.
A classifier that saw real digits alone (a support vector machine, trained on the training split
and right on so many of the real test digits) says whether a sample is of the class that was
asked for. The Fréchet distance between the pixels of samples and of real test digits, both
taken as normal distributions, says how far they are off as a whole; between the training and
the test digits it is what the first line says.

    python benchmarks/guidance.py --budget 120 --json guidance.json --picture guidance.png
"""

import argparse
import math
import time
from typing import Any

import torch
from common import print_table, write_json
from sklearn.svm import SVC
from torch import Tensor, nn

import mixer_bijectors as mb
from mixer_bijectors.images import add_noise, dequantize, save_grid
from mixer_bijectors.train import Digits

SIGMAS = (0.0, 0.03, 0.1, 0.2, 0.4)
GUIDANCES = (0.0, 1.0, 2.0, 4.0)
SHOWN_SIGMA = 0.1
BATCH, LABEL_DROPOUT, LEARNING_RATE, WARMUP_STEPS = 64, 0.1, 1e-3, 50


def train(x: Tensor, labels: Tensor, sigma: float, budget: float) -> tuple[mb.TarFlow, int]:
    """A model of digits with Gaussian noise, or dequantised if `sigma` is zero."""
    torch.manual_seed(0)
    model = mb.TarFlow(
        (1, 8, 8), 2, channels=64, num_blocks=4, layers_per_block=2, num_classes=10
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-4
    )
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < budget:
        factor = 0.5 * (1 + math.cos(math.pi * elapsed / budget))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor * min(1.0, (steps + 1) / WARMUP_STEPS)
        chosen = torch.randint(len(x), (BATCH,))
        noisy = add_noise(x[chosen], sigma) if sigma else dequantize(x[chosen])
        given = labels[chosen].masked_fill(torch.rand(BATCH) < LABEL_DROPOUT, -1)
        loss = model.forward_kld(noisy, given) / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return model.eval(), steps


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between normal distributions with the means and covariances of two sets of images."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    covariances = a.T.cov(), b.T.cov()
    # The trace of the root of a product is the sum of its singular values, root by root.
    roots = []
    for covariance in covariances:
        values, vectors = torch.linalg.eigh(covariance)
        roots.append(vectors * values.clamp(min=0).sqrt() @ vectors.T)
    shared = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    spread = sum(covariance.trace() for covariance in covariances) - 2 * shared
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=120, help="seconds of training each")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--picture", help="write samples of each guidance to this file")
    arguments = parser.parse_args()

    splits: Any = Digits.splits()
    train_x, train_labels = splits["train"].images, splits["train"].labels
    test_x, test_labels = splits["test"].images, splits["test"].labels
    as_float = {"train": add_noise(train_x, 0.0), "test": add_noise(test_x, 0.0)}
    classifier = SVC().fit(as_float["train"].flatten(1).numpy(), train_labels.numpy())
    right = classifier.predict(as_float["test"].flatten(1).numpy()) == test_labels.numpy()
    real = frechet_distance(as_float["train"], as_float["test"])
    print(f"the classifier is right on {right.mean():.3f} of the real test digits")
    print(f"Fréchet distance of training digits: {real:.3f}")

    labels = torch.arange(arguments.samples) % 10
    rows: list[dict[str, Any]] = []
    shown: list[Tensor] = []
    for sigma in SIGMAS:
        model, steps = train(train_x, train_labels, sigma, arguments.budget)
        for guidance in GUIDANCES if sigma == SHOWN_SIGMA else GUIDANCES[:2]:
            with torch.no_grad():
                x, _ = model.sample(
                    arguments.samples,
                    labels,
                    guidance=guidance,
                    generator=torch.Generator().manual_seed(1),
                )
            variants = {"no": x} | (
                {"yes": mb.denoise(model, x, sigma, labels)} if sigma else {}
            )
            for denoised, images in variants.items():
                images = images.nan_to_num(0.0).clamp(-1, 1)
                guessed = classifier.predict(images.flatten(1).numpy())
                rows.append(
                    {
                        "noise": sigma or "uniform",
                        "steps": steps,
                        "guidance": guidance,
                        "denoised": denoised,
                        "of the class asked for": f"{(guessed == labels.numpy()).mean():.3f}",
                        "Fréchet distance": f"{frechet_distance(images, as_float['test']):.3f}",
                    }
                )
                print(rows[-1], flush=True)
            if sigma == SHOWN_SIGMA:
                shown.append(images[:20])
    if arguments.picture:
        save_grid(arguments.picture, torch.cat(shown), columns=20, scale=3)
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
