"""Scores that detect images of another kind: their density, and corrections of it.

A density alone fails in a known way: images that are simpler than those it was trained on, such
as smooth ones, often get more of it (Nalisnick et al., 2018, https://arxiv.org/abs/1810.09136).
"""

import io

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

__all__ = ["anomaly_scores", "auroc", "complexity"]


def complexity(images: Tensor) -> Tensor:
    """Bits per dimension of each image when it is compressed without loss.

    Of PNG and lossless WebP the shorter file, its header included. Channels other than one grey
    or three of colour are laid one below the other.

    Args:
        images: uint8 (batch, channels, height, width).

    Returns:
        (batch,), on the device of the images.

    Example:
        >>> noise = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
        >>> both = complexity(torch.cat([noise, torch.zeros_like(noise)]))
        >>> bool(both[0] > 8), bool(both[1] < 1)
        (True, True)
    """
    flat = images if images.shape[1] == 3 else images.flatten(1, 2).unsqueeze(1)
    pixels = flat.permute(0, 2, 3, 1).squeeze(3).cpu().numpy()
    sizes = [min(_sizes(Image.fromarray(image))) for image in pixels]
    bits = 8 * torch.tensor(sizes, dtype=torch.float32, device=images.device)
    return bits / images.shape[1:].numel()


def _sizes(image: Image.Image) -> list[int]:
    sizes = []
    for kind, option in (("PNG", "optimize"), ("WEBP", "lossless")):
        file = io.BytesIO()
        image.save(file, kind, **{option: True})
        sizes.append(file.tell())
    return sizes


def anomaly_scores(bits: Tensor, complexity: Tensor, typical: float) -> dict[str, Tensor]:
    """Scores of images, larger for what is less like the data that a model was trained on.

    Args:
        bits: bits per dimension of each image under the model.
        complexity: bits per dimension of each image when compressed.
        typical: mean bits per dimension of images like those of training, but held out.

    Returns:
        `bits_per_dim` itself; `ratio`, the bits beyond the complexity, which is the
        log-likelihood ratio of a universal compressor and the model; `typicality`, the
        distance of the bits from what is typical.

    References:
        Serra et al., Input complexity and out-of-distribution detection with likelihood-based
        generative models, 2020 (https://arxiv.org/abs/1909.11480)

        Nalisnick et al., Detecting out-of-distribution inputs to deep generative models using
        typicality, 2019 (https://arxiv.org/abs/1906.02994)

    Example:
        >>> scores = anomaly_scores(torch.tensor([3.0, 1.0]), torch.tensor([4.0, 1.5]), 3.5)
        >>> scores["ratio"], scores["typicality"]
        (tensor([-1.0000, -0.5000]), tensor([0.5000, 2.5000]))
    """
    return {
        "bits_per_dim": bits,
        "ratio": bits - complexity,
        "typicality": (bits - typical).abs(),
    }


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that an image from outside scores above one from inside, ties counting half.

    A score that is not a number, which a density may give what is far outside, counts as
    larger than all others.

    Args:
        inside: scores of images like those of training, (images,).
        outside: scores of others, (images,).

    Raises:
        ValueError: one of both is empty.

    Example:
        >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.5]))
        0.75
    """
    if not (len(inside) and len(outside)):
        raise ValueError(
            f"auroc: needs scores from inside and outside, got {len(inside)} and {len(outside)}"
        )
    scores = torch.cat([inside, outside]).double().nan_to_num(torch.inf, torch.inf, -torch.inf)
    # Ranks in place of scores: torchmetrics takes what lies outside of [0, 1] for logits, and
    # loses differences of large ones.
    _, ranks = scores.unique(return_inverse=True)
    target = torch.arange(len(scores), device=scores.device) >= len(inside)
    return float(binary_auroc(ranks.double() / len(scores), target.long()))
