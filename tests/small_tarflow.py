"""A small TarFlow with random parameters."""

import torch

import mixer_bijectors as mb


def small(**options) -> mb.TarFlow:
    torch.manual_seed(0)
    sizes = {"channels": 16, "num_blocks": 3, "layers_per_block": 1, "head_dim": 8}
    model = mb.TarFlow((1, 6, 8), 2, **(sizes | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    return model.eval()
