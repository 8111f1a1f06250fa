"""The affine bijections against a peer and a formula."""

import math

import pytest
import zuko
from torch.testing import assert_close
from univariates import DIRECTIONS, draw

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


@DIRECTIONS
def test_the_scale_of_jet_follows_its_formula(inverse):
    x, params = draw(mb.SigmoidAffine(), 3.0)
    scale = 2 * params[..., 0].sigmoid()
    want = (x + params[..., 1]) * scale if inverse else x / scale - params[..., 1]
    log_scale = scale.log() if inverse else -scale.log()
    assert_close(mb.SigmoidAffine()(x, params, inverse), (want, log_scale))
