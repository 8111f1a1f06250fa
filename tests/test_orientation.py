"""Flows among transforms of nflows, and these among flows, are refused."""

import copy
import pickle

import nflows.distributions
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from torch import nn

import mixer_bijectors as mb


class TestBackwards:
    """A flow among transforms of nflows, or one of these among flows, is refused."""

    @pytest.mark.parametrize(
        "make", [lambda: mb.Coupling(6), lambda: nf.flows.LULinearPermute(6)]
    )
    @pytest.mark.parametrize(
        "place",
        [
            lambda layer: nt.CompositeTransform([nt.ReversePermutation(6), layer]),
            lambda layer: nt.InverseTransform(layer),
            lambda layer: nflows.flows.Flow(layer, nflows.distributions.StandardNormal([6])),
            lambda layer: nt.MultiscaleCompositeTransform(1).add_transform(layer, (6,)),
            lambda layer: type("Mine", (nt.CompositeTransform,), {})([layer]),
            lambda layer: nt.InverseTransform(torch.compile(layer)),
        ],
        ids=["Composite", "Inverse", "Flow", "Multiscale", "subclass", "compiled"],
    )
    def test_flows_in_nflows(self, make, place):
        layer = make()
        with pytest.raises(
            TypeError, match=f"of nflows would .* {type(layer).__name__} .*to_nf"
        ):
            place(layer)
        place(mb.to_nflows(layer))

    @pytest.mark.parametrize(
        "place",
        [
            lambda layer: nf.NormalizingFlow(nf.distributions.DiagGaussian(6), [layer]),
            lambda layer: nf.flows.Composite([layer]),
            lambda layer: nf.flows.Reverse(layer),
            lambda layer: nf.NormalizingFlow(nf.distributions.DiagGaussian(6), []).flows.append(
                layer
            ),
        ],
        ids=["NormalizingFlow", "Composite", "Reverse", "append"],
    )
    def test_transforms_of_nflows_in_normflows(self, place):
        transform = nt.LULinear(6)
        with pytest.raises(TypeError, match=r"of normflows would run LULinear .*from_nflows"):
            place(transform)
        place(mb.from_nflows(transform))

    @pytest.mark.parametrize(
        "copied",
        [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_lists_of_copies_are_watched(self, copied):
        composite = nt.CompositeTransform([nt.ReversePermutation(6)])
        multiscale = nt.MultiscaleCompositeTransform(1)
        model = nf.NormalizingFlow(nf.distributions.DiagGaussian(6), [mb.LULinear(6)])
        averaged = torch.optim.swa_utils.AveragedModel(composite).module
        layer, transform = mb.Coupling(6), nt.LULinear(6)
        for place in (
            lambda: copied(composite)._transforms.append(layer),
            lambda: copied(averaged)._transforms.extend([layer]),
            lambda: copied(composite)._transforms.__setitem__(0, layer),
            lambda: copied(copied(multiscale)).add_transform(layer, (6,)),
            lambda: copied(model).flows.append(transform),
            lambda: copied(mb.Chain([layer])).flows.append(transform),
            lambda: setattr(copied(mb.ChannelMixing(layer)), "flow", transform),
        ):
            with pytest.raises(TypeError, match=r"would run (Coupling|LULinear) backwards"):
                place()

    def test_who_has_a_method_of_its_own_may_hold_what_it_likes(self):
        class Mine(nt.Transform):
            def __init__(self, flow):
                super().__init__()
                self.flow, self.flows = flow, nn.ModuleList([flow])

            def forward(self, inputs, context=None):
                return self.flow.inverse(inputs)

        layer, x = mb.Coupling(6), torch.randn(4, 6)
        composite = nt.CompositeTransform([Mine(layer), mb.to_nflows(layer)])
        for other in (
            copy.deepcopy(composite),
            pickle.loads(pickle.dumps(mb.to_nflows(layer))),
        ):
            other(x)

    @pytest.mark.parametrize(
        ("base", "arguments", "method", "child"),
        [
            (nf.flows.Flow, (), "inverse", nt.ReversePermutation(6)),
            (
                nf.NormalizingFlow,
                (nf.distributions.DiagGaussian(6), []),
                "log_prob",
                nt.ReversePermutation(6),
            ),
            (
                nflows.flows.Flow,
                (nt.LULinear(6), nflows.distributions.StandardNormal([6])),
                "log_prob",
                mb.LULinear(6),
            ),
        ],
    )
    def test_one_method_of_its_own_is_enough(self, base, arguments, method, child):
        mine = type("Mine", (base,), {method: lambda self, x: self.child(x)})(*arguments)
        mine.child = child
        assert mine.child is child
