"""Linear and coupling layers against closed forms and peers."""

import normflows as nf
import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors import nets


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


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("features", [2, 5, 6])
def test_coupling_keeps_one_half(features, reverse):
    layer = mb.Coupling(features, hidden_features=8, reverse=reverse)
    torch.nn.init.normal_(layer.net.final.weight)
    x = torch.randn(4, features)
    same = (layer.inverse(x)[0] == x).all(0)
    first = torch.arange(features) < (features + 1) // 2
    assert torch.equal(same, ~first if reverse else first)


def test_coupling_agrees_with_normflows():
    """Same net, with its outputs interleaved as normflows expects them."""
    layer = mb.Coupling(6, mb.Additive(), hidden_features=8)
    torch.nn.init.normal_(layer.net.final.weight)
    reference = nf.flows.AffineCouplingBlock(layer.net, scale=False)
    x = torch.randn(4, 6)
    assert_close(layer.inverse(x), reference.inverse(x))
    assert_close(layer(x), reference(x))


def test_coupling_takes_any_net():
    class Sum(torch.nn.Module):
        def __init__(self, in_features, out_features, *, hidden_features, context_features):
            super().__init__()
            self.out_features = out_features

        def forward(self, x, context=None):
            return x.sum(1, keepdim=True).tanh().expand(-1, self.out_features)

    mb.check_bijection(mb.Coupling(5, net=Sum), torch.randn(3, 5))


def test_residual_mlp_reads_context_and_starts_at_zero():
    net = nets.ResidualMLP(4, 6, hidden_features=8, num_blocks=1, context_features=2)
    x, context = torch.randn(7, 4), torch.randn(7, 2)
    assert not net(x, context).any()
    torch.nn.init.normal_(net.final.weight)
    assert not torch.allclose(net(x, context), net(x, context + 1))
