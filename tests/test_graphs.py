"""Models are one graph, which one recompilation makes fit for any batch size."""

from functools import partial

import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from nflows.nn.nets import ResidualNet
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors import presets

IMAGE = (3, 16, 8)
SMALL = {"num_layers": 2, "shift_every": 2, "hidden_features": 16}
TAR = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}


def glow():
    levels = [[nf.flows.GlowBlock(c, 16), nf.flows.Squeeze()] for c in (24, 12)]
    bases = [nf.distributions.DiagGaussian(shape) for shape in ((24, 4, 2), (6, 8, 4))]
    model = nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], class_cond=False)
    return mb.accelerate(model)


def spline_flow():
    net = partial(ResidualNet, hidden_features=16)
    parts = []
    for half in range(2):
        mask = (torch.arange(6) + half) % 2
        options = {"tails": "linear", "tail_bound": 3.0}
        parts.append(nt.PiecewiseRationalQuadraticCouplingTransform(mask, net, **options))
        parts.append(nt.LULinear(6))
    return mb.accelerate(NflowsFlow(nt.CompositeTransform(parts), StandardNormal([6])))


MODELS = {
    "MixerFlow": (partial(mb.MixerFlow, IMAGE, 4, num_classes=3, **SMALL), IMAGE),
    "spline": (partial(presets.spline, IMAGE, 4, 1, hidden_features=16), IMAGE),
    "local": (partial(presets.local, IMAGE, 4, num_layers=2, hidden_features=16), IMAGE),
    "TarFlow": (partial(mb.TarFlow, IMAGE, 4, **TAR), IMAGE),
    "hybrid": (partial(presets.attention_hybrid, IMAGE, 4, 2, hidden_features=16), IMAGE),
    "normflows' Glow, accelerated": (glow, IMAGE),
    "nflows' NSF, accelerated": (spline_flow, (6,)),
}
BATCHES = (7, 5, 9, 4)  # none is the size of another axis, which would be the same symbol


def density(model, name):
    """The log-density as a function of the data, with labels where there are classes."""
    if isinstance(model, nf.MultiscaleFlow):
        return lambda x: model.log_prob(x, None)
    if name == "MixerFlow":
        return lambda x: model.log_prob(x, torch.arange(len(x)) % 3)
    return model.log_prob


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_one_graph_for_any_batch(name):
    make, event = MODELS[name]
    model = make()
    log_prob = density(model, name)
    with torch.no_grad():
        log_prob(torch.randn(8, *event))  # the first batch of ActNorm
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(log_prob, fullgraph=True, backend=graphs)
    counts = []
    for batch in BATCHES:
        x = torch.randn(batch, *event)
        found = []
        for function in (compiled, log_prob):
            model.zero_grad()
            value = function(x)
            value.mean().backward()
            found.append((value, [p.grad for p in model.parameters() if p.grad is not None]))
        assert_close(*found, atol=1e-3, rtol=1e-3)
        counts.append(graphs.frame_count)
    assert counts[1] <= counts[0] + 1
    assert counts[1:] == counts[1:2] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MixerFlow", "local"])
def test_sampling_is_one_graph_for_any_batch(name):
    make, _ = MODELS[name]
    model = make().eval()
    classes = model.num_classes
    graphs = CompileCounterWithBackend("aot_eager")

    def sample(latents):
        labels = torch.arange(len(latents)) % classes if classes else None
        return model.forward_and_log_det(latents, labels)

    compiled = torch.compile(sample, fullgraph=True, backend=graphs)
    counts = []
    with torch.no_grad():
        for batch in BATCHES:
            latents = torch.randn(batch, *model.latent_shape)
            assert_close(compiled(latents), sample(latents), atol=1e-4, rtol=1e-4)
            counts.append(graphs.frame_count)
    assert counts[1] <= counts[0] + 1
    assert counts[1:] == counts[1:2] * 3
