"""Arguments of univariate bijections, in both directions and precisions."""

import pytest
import torch

DIRECTIONS = pytest.mark.parametrize("inverse", [False, True])


def draw(univariate, scale=1.0, batch=200, dtype=torch.float64):
    x = torch.randn(batch, 3, dtype=dtype)
    return x, scale * torch.randn(batch, 3, univariate.num_params, dtype=dtype)


# In float32 with parameters that make no bin so narrow or steep that rounding is seen.
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "scale", "atol"), [(torch.float32, 0.2, 1e-5), (torch.float64, 1.0, 1e-10)]
)
