"""Linear maps against closed forms and peers."""

import normflows as nf
import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb


@pytest.mark.parametrize("identity_init", [True, False])
def test_lu_linear_is_its_matrix(identity_init):
    layer = mb.LULinear(6, identity_init=identity_init).double()
    torch.nn.init.normal_(layer.factors, std=0.5)
    x = torch.randn(4, 6, dtype=torch.float64)
    z, log_det = layer.inverse(x)
    assert_close(z, x @ layer.weight().T)
    assert_close(log_det, torch.linalg.slogdet(layer.weight()).logabsdet.expand(4))
    assert_close(layer(x)[0], torch.linalg.solve(layer.weight(), x.T).T)


def test_lu_linear_rotation_is_orthogonal():
    weight = mb.LULinear(16, identity_init=False).weight()
    assert_close(weight @ weight.T, torch.eye(16), atol=1e-5, rtol=0)


def test_lu_linear_agrees_with_normflows():
    reference = nf.flows.LULinearPermute(5, identity_init=False).double()
    torch.nn.init.normal_(reference.linear.lower_entries)
    torch.nn.init.normal_(reference.linear.upper_entries)
    lower, upper = reference.linear._create_lower_upper()
    layer = mb.LULinear(5).double()
    with torch.no_grad():
        layer.factors.copy_(lower.tril(-1) + upper.triu(1) + upper.diagonal().log().diag())
    x = torch.randn(3, 5, dtype=torch.float64)
    permuted, _ = reference.permutation(x)
    assert_close(layer.inverse(permuted), reference.inverse(x))


def test_ill_conditioned_lu_linear_inverts_in_float64():
    layer = mb.LULinear(64).double()
    torch.nn.init.normal_(layer.factors, std=0.2)
    x = torch.randn(100, 64, dtype=torch.float64)
    residual = layer(layer.inverse(x)[0])[0] - x
    assert residual.abs().max() < 1e-13 * torch.linalg.cond(layer.weight())
