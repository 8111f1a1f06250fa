"""Reversible chains and models: the gradients of plain ones, without their memory."""

import copy
import pickle
import warnings
import weakref
from functools import partial

import nflows.transforms as nt
import normflows as nf
import numpy as np
import pytest
import torch
from conftest import train
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from nflows.nn.nets import ResidualNet
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import mixer_bijectors as mb
from mixer_bijectors import presets

DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4}
IMAGE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _quiet():
    """Which layers keep their inputs is looked at where it matters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*memory grows with")
        yield


def randomised(model, dtype=torch.float64, spread=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model.to(dtype)


def couplings(number, features=6, **options):
    return [
        mb.Coupling(features, hidden_features=8, reverse=i % 2 == 1, **options)
        for i in range(number)
    ]


def gradients(model, loss, *inputs):
    """The loss, and gradients of inputs and parameters."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = loss(model, *inputs)
    value.backward()
    result = [x.grad for x in inputs] + [p.grad for p in model.parameters()]
    model.zero_grad()
    return value.detach(), result


def assert_same_gradients(plain, reversible, loss, *inputs, bound=1e-9):
    for _ in range(2):  # the first batch, and one after
        state, drawn = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        want, wanted = gradients(plain, loss, *inputs)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        np.random.set_state(drawn)  # noqa: NPY002
        value, got = gradients(reversible, loss, *inputs)
        assert torch.equal(torch.get_rng_state(), after)
        assert_close(value, want, rtol=bound, atol=bound)
        assert [g is None for g in got] == [g is None for g in wanted]
        # Gradients that are 0 but for rounding are compared with those that they cancel.
        least = 1e-2 * max(g.norm() for g in wanted if g is not None)
        for one, other in zip(got, wanted):
            if other is not None:
                assert (one - other).norm() <= bound * (least + other.norm())


def chain_loss(chain, x, context=None, *, inverse):
    y, log_det = chain.inverse(x, context) if inverse else chain(x, context)
    return (
        y.square().mul(torch.arange(1, y[0].numel() + 1).view(y[0].shape)).sum()
        + (log_det * torch.arange(1.0, len(x) + 1).to(x)).sum()
    )


@DIRECTIONS
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float64, id="float64"),
        pytest.param(torch.float32, id="float32", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_chains_are_those_of_plain_ones(case, dtype, inverse):
    layers = [case.build(dtype, "cpu", seed=seed) for seed in range(3)]
    for layer in layers:
        if isinstance(layer, mb.ContinuousFlow):
            layer.tol = 1e-9  # both chains take the same steps
    if case.latent_event:
        layers = [layers[0], nf.flows.Reverse(layers[1]), layers[2]]
    plain = mb.Chain(layers)
    reversible = mb.ReversibleChain(copy.deepcopy(layers))
    x = (case.data if inverse else case.latents)(dtype, "cpu")
    context = case.context(dtype, "cpu")
    inputs = (x,) if context is None else (x, context)
    loss = partial(chain_loss, inverse=inverse)
    assert_same_gradients(plain, reversible, loss, *inputs, bound=BOUNDS[dtype])


def glow():
    flows = [
        [nf.flows.GlowBlock(channels, 8) for _ in range(3)] + [nf.flows.Squeeze()]
        for channels in (24, 12)
    ]
    bases = [nf.distributions.DiagGaussian(shape) for shape in ((24, 2, 2), (6, 4, 4))]
    return nf.MultiscaleFlow(bases, flows, [nf.flows.Merge()], class_cond=False)


def of_normflows(layers, features=6):
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(features), layers)


def real_nvp():
    mask = torch.tensor([1.0, 0, 1, 0, 1, 0])
    nets = [nf.nets.MLP([6, 8, 6]) for _ in range(8)]
    masks = [mask if i % 2 else 1 - mask for i in range(4)]
    return of_normflows(
        [
            nf.flows.MaskedAffineFlow(b, nets[2 * i], nets[2 * i + 1])
            for i, b in enumerate(masks)
        ]
    )


def nsf():
    layers = [
        layer
        for _ in range(3)
        for layer in (
            nf.flows.CoupledRationalQuadraticSpline(6, 1, 8),
            nf.flows.LULinearPermute(6),
        )
    ]
    return of_normflows(layers)


def spline_of_nflows(features=6, context_features=None):
    return nt.PiecewiseRationalQuadraticCouplingTransform(
        torch.arange(features) % 2,
        lambda n, m: ResidualNet(n, m, hidden_features=8, context_features=context_features),
        tails="linear",
        tail_bound=3.0,
    )


def of_nflows():
    inner = [nt.CompositeTransform([spline_of_nflows(), nt.LULinear(6)]) for _ in range(3)]
    layers = [*inner, nt.ReversePermutation(6), nt.MaskedAffineAutoregressiveTransform(6, 8)]
    return NflowsFlow(nt.CompositeTransform(layers), StandardNormal([6]))


def multiscale_of_nflows():
    model = nt.MultiscaleCompositeTransform(2)
    shape = (6, 2, 2)
    for _ in range(2):
        convolutions = [nt.OneByOneConvolution(shape[0]), nt.ActNorm(shape[0])]
        shape = model.add_transform(nt.CompositeTransform(convolutions), shape)
    return NflowsFlow(model, StandardNormal([24]))


NET = {"num_layers": 4, "shift_every": 2, "hidden_features": 8}
MODELS = {
    "MixerFlow": lambda: mb.MixerFlow(IMAGE, 2, **NET),
    "maf_hybrid": lambda: presets.maf_hybrid(IMAGE, 2, **NET),
    "residual": lambda: presets.residual(IMAGE, 4, num_layers=1, hidden_features=8),
    "spline": lambda: presets.spline(IMAGE, 2, **NET),
    "TarFlow": lambda: mb.TarFlow(
        IMAGE, 2, channels=16, num_blocks=2, layers_per_block=1, head_dim=8
    ),
    "Glow": glow,
    "RealNVP": real_nvp,
    "NSF": nsf,
    "MAF": lambda: of_normflows([nf.flows.MaskedAffineAutoregressive(6, 8) for _ in range(3)]),
    "Composite": lambda: of_normflows([nf.flows.Composite(list(real_nvp().flows))]),
    "nflows": of_nflows,
    "nflows, multiscale": multiscale_of_nflows,
}
EVENTS = {"nflows, multiscale": (6, 2, 2)}


def data(name, dtype=torch.float64, batch=5):
    vectors = ("RealNVP", "NSF", "MAF", "Composite", "nflows")
    event = EVENTS.get(name, (6,) if name in vectors else IMAGE)
    return (2 * torch.rand(batch, *event, dtype=torch.float64) - 1).to(dtype)


def nll(model, x):
    arguments = (x, None) if isinstance(model, nf.MultiscaleFlow) else (x,)
    return -model.log_prob(*arguments).mean()


def models(name, dtype=torch.float64):
    """A model that has seen its first batch, and the same made reversible."""
    model = randomised(MODELS[name](), dtype)
    with torch.no_grad():
        nll(model, data(name, dtype))
    return model, mb.reversible(copy.deepcopy(model))


@pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_gradients_of_plain_ones(name, dtype):
    if name == "Composite" and dtype is torch.float64:
        pytest.skip("normflows adds up its log-determinants in float32")
    plain, reversible = models(name, dtype)
    assert_same_gradients(plain, reversible, nll, data(name, dtype), bound=BOUNDS[dtype])


@pytest.mark.parametrize("name", ["MixerFlow", "spline", "RealNVP", "NSF", "MAF"])
def test_the_reverse_divergence_has_the_gradients_of_plain_models(name):
    target = nf.distributions.DiagGaussian(IMAGE if name in ("MixerFlow", "spline") else 6)

    def loss(model):
        torch.manual_seed(1)
        model.p = target.double()
        return model.reverse_kld(4)

    assert_same_gradients(*models(name), loss)


@pytest.mark.parametrize("name", MODELS)
def test_names_of_parameters_and_checkpoints_stay(name):
    plain, reversible = models(name)
    assert [n for n, _ in reversible.named_parameters()] == [
        n for n, _ in plain.named_parameters()
    ]
    other = mb.reversible(MODELS[name]().double())
    other.load_state_dict(plain.state_dict())
    plain.load_state_dict(reversible.state_dict())
    x = data(name)
    # Residual flows draw how many terms of a series they take.
    assert_close(nll(other, x), nll(plain, x), rtol=1e-3, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", ["MixerFlow", "Glow", "nflows"])
def test_copies_train_by_themselves(name, copied):
    plain, reversible = models(name)
    x = data(name)
    nll(reversible, x).backward()
    other = copied(reversible)
    other.zero_grad()
    with torch.no_grad():
        for parameter in reversible.parameters():
            parameter.zero_()
    assert_same_gradients(plain, other, nll, x)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("MixerFlow", {}),
        ("Glow", {}),
        ("NSF", {}),
        ("MAF", {}),
        ("nflows", {7}),
        ("TarFlow", {0, 1}),
        ("residual", {0}),
    ],
)
def test_tells_which_layers_keep_their_inputs(name, kept):
    _, model = models(name)
    lists = [m for m in model.modules() if hasattr(m, "kept")]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        nll(model, data(name)).backward()
        nll(model, data(name)).backward()
    assert set().union(*(one.kept for one in lists)) == set(kept)
    assert len([w for w in told if "memory grows with" in str(w.message)]) == bool(kept)


# Memory ------------------------------------------------------------------------------------


class Census(TorchDispatchMode):
    """The most bytes of storages that live at once, beyond those that were there."""

    def __init__(self, *known):
        super().__init__()
        self.live, self.peak = {}, 0
        self.known = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, torch.Tensor):
                self.count(result.untyped_storage())
        return results

    def count(self, storage):
        key = storage._cdata
        if key in self.known or key in self.live:
            return
        self.live[key] = storage.nbytes()
        weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))


def saved_bytes(model, loss, x):
    """Bytes that autograd keeps for backward, beyond the parameters and the batch."""
    known = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(model, x)
    value.backward()
    return sum(storages.values())


def deep(name, number):
    """A model of so many layers."""
    torch.manual_seed(0)
    if name == "MixerFlow":
        return mb.MixerFlow(IMAGE, 2, number, shift_every=2, hidden_features=8)
    if name == "Glow":
        blocks = [nf.flows.GlowBlock(12, 8) for _ in range(number)]
        base = nf.distributions.DiagGaussian((12, 4, 4))
        return nf.NormalizingFlow(base, [*blocks, nf.flows.Squeeze()])
    if name == "NSF":
        splines = nf.flows.CoupledRationalQuadraticSpline
        return of_normflows([splines(6, 1, 8, reverse_mask=i % 2 == 1) for i in range(number)])
    layers = [nt.LULinear(6), *(spline_of_nflows() for _ in range(number))]
    return NflowsFlow(nt.CompositeTransform(layers), StandardNormal([6]))


@pytest.mark.parametrize("name", ["MixerFlow", "Glow", "NSF", "nflows"])
def test_memory_does_not_grow_with_depth(name):
    """Neither what autograd saves, nor the peak of a step beside parameters and gradients."""
    x = data(name, torch.float32, batch=64)
    saved, peak = {}, {}
    for kind in ("plain", "reversible"):
        for number in (4, 16):
            model = deep(name, number)
            if kind == "reversible":
                mb.reversible(model)
            nll(model, x).backward()
            saved[kind, number] = saved_bytes(model, nll, x)
            kept = (
                *model.parameters(),
                *model.buffers(),
                *(p.grad for p in model.parameters()),
            )
            with Census(x, *kept) as census:
                nll(model, x).backward()
            peak[kind, number] = census.peak
    assert saved["reversible", 16] == saved["reversible", 4]
    assert peak["reversible", 16] <= 1.02 * peak["reversible", 4]
    assert saved["plain", 16] > 3 * saved["plain", 4]
    assert peak["plain", 16] > 3 * peak["reversible", 16]


@pytest.mark.parametrize(("keep_every", "states"), [(None, 2), (4, 5), (1, 17)])
def test_keeps_every_so_manieth_input(keep_every, states):
    chain = mb.ReversibleChain(couplings(16), keep_every=keep_every)
    x = torch.randn(8, 6)
    loss = partial(chain_loss, inverse=True)
    loss(chain, x).backward()
    saved = saved_bytes(chain, lambda chain, x: chain.inverse(x)[0].sum(), x)
    assert saved == (states - 1) * x.numel() * 4  # the first of them is the batch


# Layers of all kinds ----------------------------------------------------------------------


class Net(nn.Sequential):
    """A conditioner with a layer of some kind in it."""

    def __init__(self, layer, in_features, out_features, *, hidden_features, context_features):
        last = nn.Linear(hidden_features, out_features)
        super().__init__(nn.Linear(in_features, hidden_features), layer(), nn.Tanh(), last)


KINDS = {
    "batch normalisation": lambda: nn.BatchNorm1d(8),
    "dropout": lambda: nn.Dropout(0.5),
    "spectral normalisation": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    "weight normalisation": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "weight normalisation by hooks": lambda: nn.utils.weight_norm(nn.Linear(8, 8)),
}
PLAIN = ("batch normalisation", "spectral normalisation")


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@DIRECTIONS
@pytest.mark.parametrize("kind", KINDS)
def test_any_net_has_the_gradients_and_buffers_of_the_plain_chain(kind, inverse):
    def layers():
        torch.manual_seed(0)
        mixed = couplings(2, net=partial(Net, KINDS[kind]))
        return [randomised(layer) for layer in (*couplings(2), *mixed, *couplings(2))]

    plain, reversible = mb.Chain(layers()), mb.ReversibleChain(layers())
    x = torch.randn(9, 6, dtype=torch.float64)
    assert_same_gradients(plain, reversible, partial(chain_loss, inverse=inverse), x)
    assert_close(dict(reversible.named_buffers()), dict(plain.named_buffers()))
    assert set(reversible.kept) == ({2, 3} if kind in (*PLAIN, "dropout") else set())


@DIRECTIONS
def test_first_batch_of_actnorm(inverse):
    def layers():
        torch.manual_seed(0)
        first = [nf.flows.ActNorm(6), mb.ActNorm(6)]
        return [layer.double() for layer in (*couplings(2), *first, mb.LULinear(6))]

    plain, reversible = mb.Chain(layers()), mb.ReversibleChain(layers())
    x = 3 + 2 * torch.randn(50, 6, dtype=torch.float64)
    assert_same_gradients(plain, reversible, partial(chain_loss, inverse=inverse), x)
    assert_close(reversible.state_dict(), plain.state_dict())
    assert reversible.kept == {}


def test_a_layer_in_two_places_and_layers_that_are_frozen():
    shared, *layers = [randomised(layer) for layer in couplings(4)]
    layers[1].requires_grad_(False)
    layers = [shared, *layers, shared]
    plain, reversible = mb.Chain(layers), mb.ReversibleChain(copy.deepcopy(layers))
    x = torch.randn(9, 6, dtype=torch.float64)
    assert_same_gradients(plain, reversible, partial(chain_loss, inverse=True), x)


@pytest.mark.parametrize("used", ["result", "log_det", "both"])
def test_gradients_of_one_result(used):
    layers = [*map(randomised, couplings(3)), nf.flows.Permute(6)]
    plain, reversible = mb.Chain(layers), mb.ReversibleChain(copy.deepcopy(layers))

    def loss(chain, x):
        y, log_det = chain(x)
        return (used != "log_det") * y.square().sum() + (used != "result") * log_det.sum()

    def only(chain, x):
        y, log_det = chain(x)
        return {"result": y.square(), "log_det": log_det, "both": y.sum(1) + log_det}[
            used
        ].sum()

    for function in (loss, only):
        assert_same_gradients(plain, reversible, function, torch.randn(4, 6).double())


# What autograd does ------------------------------------------------------------------------


def test_parameters_get_gradients_one_layer_after_the_other():
    """So that hooks, such as those of distributed training, run while others are computed."""
    chain, order = mb.ReversibleChain(couplings(5)), []
    for index, layer in enumerate(chain.flows):
        for parameter in layer.parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, i=index: order.append(i))
    chain_loss(chain, torch.randn(4, 6), inverse=True).backward()
    assert order == sorted(order) and set(order) == set(range(5))


def test_accumulates_and_goes_back_twice():
    plain = mb.Chain([randomised(layer) for layer in couplings(4)])
    reversible = mb.ReversibleChain(copy.deepcopy(list(plain.flows)))
    batches = torch.randn(3, 5, 6, dtype=torch.float64)
    for chain in (plain, reversible):
        losses = [chain_loss(chain, x, inverse=True) for x in batches]
        for loss in losses:
            loss.backward(retain_graph=True)
        losses[1].backward()
    for one, other in zip(reversible.parameters(), plain.parameters()):
        assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="second time"):
        losses[1].backward()


def test_some_gradients_alone():
    plain = mb.Chain([randomised(layer) for layer in couplings(4)])
    x = torch.randn(5, 6, dtype=torch.float64)
    reversible = mb.ReversibleChain(copy.deepcopy(list(plain.flows)))
    for index in (3, 0):
        got, want = (
            torch.autograd.grad(
                chain_loss(chain, x, inverse=True), list(chain.flows[index].parameters())
            )
            for chain in (reversible, plain)
        )
        assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_second_derivatives_are_refused():
    chain = mb.ReversibleChain(couplings(2))
    x = torch.randn(3, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not available"):
        torch.autograd.grad(chain_loss(chain, x, inverse=True), x, create_graph=True)


@pytest.mark.parametrize("change", ["in place", "other parameters"])
def test_parameters_that_change_before_backward_are_refused(change):
    chain = mb.ReversibleChain(couplings(2))
    loss = chain_loss(chain, torch.randn(3, 6), inverse=True)
    linear = next(m for m in chain.modules() if isinstance(m, nn.Linear))
    if change == "in place":
        with torch.no_grad():
            linear.weight.add_(1)
    else:
        linear.weight = nn.Parameter(linear.weight.detach().clone())
    with pytest.raises(RuntimeError, match="Coupling were replaced, or changed in place"):
        loss.backward()


def test_runs_under_torch_func():
    plain = mb.Chain([randomised(layer) for layer in couplings(3)])
    reversible = mb.ReversibleChain(copy.deepcopy(list(plain.flows)))
    x = torch.randn(5, 6, dtype=torch.float64)

    def results(chain):
        def loss(parameters, x):
            y, log_det = torch.func.functional_call(chain, parameters, (x[None],))
            return y.square().sum() + log_det.sum()

        parameters = {name: p.detach() for name, p in chain.named_parameters()}
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)

    assert_close(results(reversible), results(plain))


def test_autocast_is_restored():
    plain = mb.Chain([randomised(layer, torch.float32) for layer in couplings(4)])
    reversible = mb.ReversibleChain(copy.deepcopy(list(plain.flows)))
    x = torch.randn(64, 6)

    def loss(chain, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return chain_loss(chain, x, inverse=True)

    def loss_inside(chain, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = chain_loss(chain, x, inverse=True)
            value.backward(retain_graph=True)
            chain.zero_grad()
            return value

    for function in (loss, loss_inside):
        assert_same_gradients(plain, reversible, function, x, bound=2e-2)
    assert reversible.kept == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_drift_is_measured(dtype):
    chain = mb.ReversibleChain([randomised(layer, dtype, 0.1) for layer in couplings(12)])
    assert chain.last_drift is None
    chain_loss(chain, torch.randn(16, 6, dtype=dtype), inverse=True).backward()
    if dtype is torch.bfloat16:
        assert chain.last_drift == 0 and len(chain.kept) == 12
    else:
        assert 0 < chain.last_drift < 1e-4 and chain.kept == {}


def test_compiled_models_have_the_same_gradients():
    torch._dynamo.reset()
    plain, reversible = models("MixerFlow")
    compiled = torch.compile(nll, backend="aot_eager")

    def loss(model, x):
        return (compiled if model is reversible else nll)(model, x)

    assert_same_gradients(plain, reversible, loss, data("MixerFlow"))


def test_training_goes_on_as_if_it_had_not_been_cut_off():
    def steps(model, optimizer, number):
        for index in range(number):
            torch.manual_seed(index)
            nll(model, data("MixerFlow", torch.float32)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh():
        torch.manual_seed(0)
        model = mb.MixerFlow(IMAGE, 2, reversible=True, **NET)
        return model, torch.optim.Adam(model.parameters(), 1e-3)

    whole, optimizer = fresh()
    steps(whole, optimizer, 3)
    state = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    steps(whole, optimizer, 3)
    other, optimizer = fresh()
    other.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    steps(other, optimizer, 3)
    assert_close(other.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MixerFlow", "spline", "Glow", "nflows"])
def test_gradients_after_training_are_those_of_plain_models(name):
    """Reconstruction goes through trained layers, which are no longer near the identity."""
    _, model = models(name, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nll(model, data(name, torch.float32, 16).mul(0.5)).backward()
        optimizer.step()
    # nflows keeps a constant of its base in double precision, which the model above rounded.
    plain = MODELS[name]().float()
    plain.load_state_dict(model.state_dict())
    for dtype, bound in BOUNDS.items():
        pair = plain.to(dtype), copy.deepcopy(model).to(dtype)
        assert_same_gradients(*pair, nll, data(name, dtype).mul(0.5), bound=bound)


def test_lipschitz_updates_between_steps():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = mb.reversible(MODELS["residual"]().float())
    losses = train(model, data("residual", torch.float32, 16), 3, 1e-3)
    assert losses[-1] < losses[0]


def test_what_holds_no_layers_is_said():
    with pytest.warns(UserWarning, match="Linear holds no series of layers"):
        mb.reversible(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="reversible: expected a module, got list"):
        mb.reversible([])
    with pytest.raises(ValueError, match="keep_every must be a whole number from 1, got 0"):
        mb.ReversibleChain(couplings(2), keep_every=0)


@pytest.mark.parametrize(
    "change", [lambda g: g / 2, lambda g: g.clamp(-0.1, 0.1), lambda g: g + 1]
)
def test_hooks_on_parameters_change_each_gradient_once(change):
    """As users clip gradients."""
    plain = mb.Chain([*couplings(4), mb.LULinear(6), mb.ActNorm(6)]).eval()
    randomised(plain, spread=0.2)
    reversible = mb.ReversibleChain(copy.deepcopy([*plain.flows])).eval()
    for chain in (plain, reversible):
        for parameter in chain.parameters():
            parameter.register_hook(change)
    loss = partial(chain_loss, inverse=True)
    assert_same_gradients(plain, reversible, loss, torch.randn(5, 6, dtype=torch.float64))
