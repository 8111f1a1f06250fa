"""Inputs that both conditioners accept and refuse."""

import pytest
import torch
from conftest import NETS
from torch.testing import assert_close


@pytest.fixture(params=NETS, ids=str)
def build(request):
    def build(**options):
        net = NETS[request.param](4, 6, hidden_features=8, **options)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return net

    return build


def test_context_broadcasts_over_any_leading_shape(build):
    net = build(context_features=2)
    x, context = torch.randn(3, 5, 4), torch.randn(5, 2)
    looped = torch.stack([net(one, context) for one in x])
    assert_close(net(x, context), looped)
    assert_close(net(x, context[:1]), net(x, context[:1].expand(3, 5, 2)))
    assert net(x[:0], context).shape == (0, 5, 6)


@pytest.mark.parametrize(
    ("context_features", "x", "context", "message"),
    [
        (0, (5, 3), None, r"expected shape \(..., 4\), got \(5, 3\)"),
        (
            0,
            (5, 4),
            (5, 2),
            r"context_features=0 and called with .* a context of shape \(5, 2\)",
        ),
        (2, (5, 4), None, "context_features=2 but called without context"),
        (2, (5, 4), (5, 3), r"context_features=2 .* a context of shape \(5, 3\)"),
        (2, (5, 4), (4, 2), r"x of shape \(5, 4\) and a context of shape \(4, 2\)"),
        (2, (5, 4), (1, 5, 2), r"a context of shape \(1, 5, 2\)"),
    ],
)
def test_wrong_inputs_are_one_sentence(build, context_features, x, context, message):
    net = build(context_features=context_features)
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(x), context and torch.zeros(context))
