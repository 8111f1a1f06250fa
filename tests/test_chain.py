"""Composition of flows."""

import normflows as nf
import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb


def test_chain_runs_in_the_order_of_normflows():
    flows = [mb.Elementwise(4), mb.LULinear(4, identity_init=False)]
    torch.nn.init.normal_(flows[0].params)
    z = torch.randn(3, 4)
    want, log_det = flows[1](flows[0](z)[0])[0], flows[0](z)[1] + flows[1](z)[1]
    assert_close(mb.Chain(flows)(z), (want, log_det))
    assert_close(nf.flows.Composite(flows)(z), (want, log_det))


def test_a_flow_that_drops_features_is_no_bijection():
    message = r"Permute: events of shape \(6,\) became \(5,\)"
    for layer, x in (
        (mb.Chain([nf.flows.Permute(5)]), torch.randn(2, 6)),
        (mb.ChannelMixing(nf.flows.Permute(5)), torch.randn(2, 3, 6)),
    ):
        with pytest.raises(ValueError, match=message):
            layer.inverse(x)
