"""The residual perceptron."""

import torch

from mixer_bijectors import nets


def test_residual_mlp_reads_context_and_starts_at_zero():
    net = nets.ResidualMLP(4, 6, hidden_features=8, num_blocks=1, context_features=2)
    x, context = torch.randn(7, 4), torch.randn(7, 2)
    assert not net(x, context).any()
    torch.nn.init.normal_(net.final.weight)
    assert not torch.allclose(net(x, context), net(x, context + 1))
