"""The affine bijection against a peer."""

import math

import pytest
import zuko
from torch.testing import assert_close
from univariates import draw

import mixer_bijectors as mb


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_affine_agrees_with_zuko(scale):
    x, params = draw(mb.Affine(), scale)
    reference = zuko.transforms.MonotonicAffineTransform(
        params[..., 1], params[..., 0], slope=math.exp(-mb.Affine.max_log_scale)
    )
    y, log_derivative = mb.Affine()(x, params)
    assert_close(y, reference(x))
    assert_close(log_derivative, reference.log_abs_det_jacobian(x, y))
    assert_close(mb.Affine()(y, params, inverse=True)[0], reference.inv(y))
