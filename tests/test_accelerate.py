"""What `accelerate` changes in models of normflows and nflows, and that the numbers stay."""

import copy
import gc
import pickle
import weakref

import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NflowsFlow
from nflows.nn import nets
from nflows.transforms.base import InputOutsideDomain
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.running import incremental_made
from mixer_bijectors.running.exchange import Faster

MASK = [1, 0, 1, 0]
BOUNDS = torch.tensor([1.0, 2.0, 3.0, 2.5])


def nflows_coupling(context=None, **options):
    def net(inputs, outputs):
        return nets.ResidualNet(inputs, outputs, 8, context_features=context)

    options = {"num_bins": 5, "tails": "linear", "tail_bound": 2.0, **options}
    return nt.PiecewiseRationalQuadraticCouplingTransform(MASK, net, **options)


def nflows_image_coupling():
    def net(inputs, outputs):
        return nets.ConvResidualNet(inputs, outputs, hidden_channels=6)

    return nt.PiecewiseRationalQuadraticCouplingTransform(
        MASK, net, 4, "linear", 2.0, apply_unconditional_transform=True, img_shape=[2, 3]
    )


def nflows_autoregressive(**options):
    options = {"num_bins": 5, "tails": "linear", "tail_bound": 2.0, **options}
    return nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(4, 8, **options)


def nflows_model():
    layers = [nflows_coupling(), nt.LULinear(4), nt.ActNorm(4), nt.RandomPermutation(4)]
    return NflowsFlow(nt.CompositeTransform(layers), StandardNormal([4]))


def normflows_model():
    layers = [
        nf.flows.CoupledRationalQuadraticSpline(4, 1, 8),
        nf.flows.LULinearPermute(4),
        nf.flows.ActNorm((4,)),
    ]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)


def glow():
    levels = [[nf.flows.GlowBlock(c, 4), nf.flows.Squeeze()] for c in (16, 8)]
    bases = [nf.distributions.DiagGaussian(shape) for shape in ((16, 1, 1), (4, 2, 2))]
    return nf.MultiscaleFlow(bases, levels, [nf.flows.Merge()], class_cond=False)


VECTOR, IMAGE, NONE = (4,), (4, 2, 3), None
# The layer, the shape of an event, the size of the context, whether inputs lie in [0, 1].
LAYERS = {
    "nflows coupling": (nflows_coupling, VECTOR, NONE, False),
    "nflows coupling, context": (lambda: nflows_coupling(3), VECTOR, 3, False),
    "nflows coupling, no tails": (lambda: nflows_coupling(tails=None), VECTOR, NONE, True),
    "nflows coupling, unconditional half": (
        lambda: nflows_coupling(apply_unconditional_transform=True),
        VECTOR,
        NONE,
        False,
    ),
    "nflows coupling, other minima": (
        lambda: nflows_coupling(min_bin_width=0.02, min_bin_height=0.05, min_derivative=0.1),
        VECTOR,
        NONE,
        False,
    ),
    "nflows coupling of images": (nflows_image_coupling, IMAGE, NONE, False),
    "nflows autoregressive": (nflows_autoregressive, VECTOR, NONE, False),
    "nflows autoregressive, no tails": (
        lambda: nflows_autoregressive(tails=None),
        VECTOR,
        NONE,
        True,
    ),
    "nflows LULinear": (lambda: nt.LULinear(4, identity_init=False), VECTOR, NONE, False),
    "nflows LULinear of one": (lambda: nt.LULinear(1), (1,), NONE, False),
    "nflows ActNorm": (lambda: nt.ActNorm(4), VECTOR, NONE, False),
    "nflows ActNorm of images": (lambda: nt.ActNorm(4), IMAGE, NONE, False),
    "normflows coupling": (
        lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8),
        VECTOR,
        NONE,
        False,
    ),
    "normflows coupling, context": (
        lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8, num_context_channels=3),
        VECTOR,
        3,
        False,
    ),
    "normflows coupling, circular": (
        lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8, tails="circular"),
        VECTOR,
        NONE,
        False,
    ),
    "normflows coupling, no tails": (
        lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8, tails=None),
        VECTOR,
        NONE,
        True,
    ),
    "normflows coupling, some circular": (
        lambda: nf.flows.CircularCoupledRationalQuadraticSpline(
            4, 1, 8, ind_circ=[0, 1], tail_bound=BOUNDS
        ),
        VECTOR,
        NONE,
        False,
    ),
    "normflows autoregressive": (
        lambda: nf.flows.AutoregressiveRationalQuadraticSpline(4, 1, 8),
        VECTOR,
        NONE,
        False,
    ),
    "normflows autoregressive, some circular": (
        lambda: nf.flows.CircularAutoregressiveRationalQuadraticSpline(
            4, 1, 8, ind_circ=[0, 3], tail_bound=BOUNDS
        ),
        VECTOR,
        NONE,
        False,
    ),
    "normflows LULinearPermute": (lambda: nf.flows.LULinearPermute(4), VECTOR, NONE, False),
    "normflows ActNorm": (lambda: nf.flows.ActNorm((4, 1, 1)), IMAGE, NONE, False),
    "normflows GlowBlock": (lambda: nf.flows.GlowBlock(4, 6), IMAGE, NONE, False),
}
EACH = pytest.mark.parametrize("name", LAYERS)
MODELS = {
    "nflows": (nflows_model, (4,)),
    "normflows": (normflows_model, (4,)),
    "Glow": (glow, (2, 4, 4)),
}
EACH_MODEL = pytest.mark.parametrize("name", MODELS)


def randomised(module, std=0.3, dtype=torch.float64):
    """Random parameters, and a first batch seen."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    for name, buffer in module.named_buffers():
        if name.endswith(("initialized", "data_dep_init_done")):
            buffer.fill_(1)
    return module.to(dtype)


def case(name, dtype=torch.float64, batch=50):
    make, event, context_features, unit = LAYERS[name]
    layer = randomised(make(), dtype=dtype)
    x = torch.rand(batch, *event, dtype=dtype) if unit else torch.randn(batch, *event).to(dtype)
    context = () if context_features is None else (torch.randn(batch, context_features),)
    return layer, x, tuple(c.to(dtype) for c in context)


def results(layer, direction, x, context):
    """Values, log-determinant, and gradients of all that goes in."""
    x, *context = (t.clone().requires_grad_() for t in (x, *context))
    y, log_det = getattr(layer, direction)(x, *context)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    total = (weights * y).sum() + 2 * log_det.sum()
    inputs = (x, *context, *layer.parameters())
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    found = (g for g in gradients if g is not None and g.numel())
    return y.detach(), log_det.detach(), *found


def exchanged(module):
    return [m for m in module.modules() if isinstance(m, Faster)]


@EACH
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)], ids=str
)
def test_values_and_gradients_stay(name, direction, dtype, tolerance):
    layer, x, context = case(name, dtype)
    want = results(layer, direction, x, context)
    faster = mb.accelerate(copy.deepcopy(layer))
    assert exchanged(faster)
    got = results(faster, direction, x, context)
    assert [t.dtype for t in got] == [t.dtype for t in want]
    for one, other in zip(got, want, strict=True):
        scale = max(1.0, float(other.abs().max()))
        assert_close(one / scale, other / scale, atol=tolerance, rtol=0)


@EACH
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_single_precision_is_no_worse(name, direction):
    layer, x, context = case(name)
    exact = getattr(layer, direction)(x, *context)
    layer, inputs = layer.float(), [t.float() for t in (x, *context)]
    theirs = getattr(layer, direction)(*inputs)
    ours = getattr(mb.accelerate(layer), direction)(*inputs)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        scale = max(1.0, float(true.abs().max()))
        error, allowed = (float((t - true).abs().mean()) / scale for t in (one, other))
        assert error <= 1e-6 + 1.5 * allowed


@EACH
def test_restoring_leaves_no_trace(name):
    layer, x, context = case(name)
    before = {id(m): (type(m), set(m.__dict__)) for m in layer.modules()}
    keys, want = list(layer.state_dict()), results(layer, "inverse", x, context)
    mb.accelerate(layer)
    layer.inverse(x, *context)
    assert list(layer.state_dict()) == keys
    assert isinstance(layer, before[id(layer)][0])
    assert mb.restore(layer) is layer
    assert {id(m): (type(m), set(m.__dict__)) for m in layer.modules()} == before
    for one, other in zip(results(layer, "inverse", x, context), want, strict=True):
        assert torch.equal(one, other)


@EACH
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_are_as_fast_and_apart(name, copied):
    layer, x, context = case(name)
    mb.accelerate(layer)
    other = copied(layer)
    assert [type(m) for m in other.modules()] == [type(m) for m in layer.modules()]
    assert_close(other.inverse(x, *context), layer.inverse(x, *context), rtol=0, atol=0)
    if copied is not copy.copy:
        mb.restore(other)
        assert exchanged(layer) and not exchanged(other)


@EACH_MODEL
def test_twice_is_once(name):
    model = randomised(MODELS[name][0]())
    types = [type(m) for m in model.modules()]
    once = [type(m) for m in mb.accelerate(model).modules()]
    assert once != types
    assert [type(m) for m in mb.accelerate(model).modules()] == once
    assert [type(m) for m in mb.restore(model).modules()] == types
    assert [type(m) for m in mb.restore(model).modules()] == types


@pytest.mark.parametrize("first", [mb.accelerate, mb.accelerate_sampling])
@pytest.mark.parametrize("incrementally", [False, True])
@pytest.mark.parametrize("name", ["nflows autoregressive", "normflows autoregressive"])
def test_either_order_with_accelerate_sampling(name, incrementally, first, monkeypatch):
    if incrementally:
        monkeypatch.setattr(incremental_made, "_MIN_PRODUCTS", 0)
    layer, x, _ = case(name)
    (second,) = {mb.accelerate, mb.accelerate_sampling} - {first}
    holder = nn.ModuleList([copy.deepcopy(layer)])
    second(first(holder))
    assert type(holder[0]).__name__.startswith(("ParallelInverse", "ParallelTransform"))
    assert exchanged(holder)
    for direction in ("forward", "inverse"):
        got, want = (getattr(m, direction)(x) for m in (holder[0], layer))
        assert_close(got, want, atol=1e-6, rtol=1e-6)
    assert (holder[0].last_iterations == 1) == incrementally
    assert not exchanged(mb.restore(holder))


class OwnForward(nt.PiecewiseRationalQuadraticCouplingTransform):
    def forward(self, inputs, context=None):
        return super().forward(2 * inputs, context)


class OwnSpline(nt.PiecewiseRationalQuadraticCouplingTransform):
    def _piecewise_cdf(self, inputs, transform_params, inverse=False):
        return super()._piecewise_cdf(inputs, 2 * transform_params, inverse)


class OwnSolve(nt.LULinear):
    def inverse_no_cache(self, inputs):
        return super().inverse_no_cache(2 * inputs)


def patched():
    layer = nt.LULinear(4)
    layer.forward_no_cache = lambda inputs: (inputs, inputs.new_zeros(len(inputs)))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnForward(MASK, lambda a, b: nn.Linear(a, b), tails="linear"),
        lambda: OwnSpline(MASK, lambda a, b: nn.Linear(a, b), tails="linear"),
        lambda: OwnSolve(4),
        patched,
        lambda: nflows_coupling(num_bins=1),
        lambda: nflows_coupling(min_bin_width=0.5),
        lambda: nflows_coupling(tails="circular"),
        lambda: nn.Linear(4, 4),
    ],
)
def test_what_is_not_known_is_left_alone(make):
    layer = make()
    kind, attributes = type(layer), dict(layer.__dict__)
    with pytest.warns(UserWarning, match="holds no layer that can be made faster"):
        assert mb.accelerate(layer) is layer
    assert type(layer) is kind and layer.__dict__ == attributes


class Named(nt.LULinear):
    """A subclass that leaves the methods as they are."""

    name = "named"


def test_a_subclass_keeps_what_it_adds():
    layer = pickle.loads(pickle.dumps(mb.accelerate(Named(4))))
    assert exchanged(layer) and isinstance(layer, Named) and layer.name == "named"
    assert type(mb.restore(layer)) is Named


@pytest.mark.parametrize("function", [mb.accelerate, mb.restore])
def test_only_modules_are_taken(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: expected a module, got list"):
        function([nt.LULinear(4)])


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_inputs_that_splines_without_tails_do_not_take(direction):
    x = torch.full((3, 4), 0.5)
    x[1, 0] = 1.5
    for name, error in (("nflows", InputOutsideDomain), ("normflows", ValueError)):
        layer, *_ = case(f"{name} coupling, no tails", torch.float32)
        with pytest.raises(error, match=r"take inputs from 0 to 1, got 0.5 to 1.5"):
            getattr(mb.accelerate(layer), direction)(x)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["nflows coupling", "normflows autoregressive, some circular"])
def test_half_precision_is_that_of_the_net_alone(name, half):
    layer, x, _ = case(name, torch.float32)
    mb.accelerate(layer.to(half))
    x = x.to(half)
    y, log_det = layer.inverse(x)
    assert y.dtype == log_det.dtype == half
    coupling = name == "nflows coupling"
    inner = layer if coupling else layer.mprqat
    spline = inner._piecewise_cdf if coupling else inner._elementwise
    size = inner._transform_dim_multiplier() if coupling else inner._output_dim_multiplier()
    params = torch.randn(50, 4, size).to(half)
    params = params if coupling else params.flatten(1)
    want, _ = spline(x.float(), params.float().clone())
    assert_close(spline(x, params.clone())[0], want.to(half), atol=0, rtol=0)


def test_a_table_of_samples_maps_under_vmap():
    layer, x, _ = case("nflows coupling")
    mb.accelerate(layer)
    mapped = torch.func.vmap(lambda row: layer.forward(row.unsqueeze(0)))(x)
    y, log_det = layer.forward(x)
    assert_close((mapped[0].squeeze(1), mapped[1].squeeze(1)), (y, log_det))


@pytest.mark.parametrize("name", ["nflows ActNorm", "normflows ActNorm"])
def test_first_batch_is_seen_as_before(name):
    make, event, *_ = LAYERS[name]
    x = 3 + 2 * torch.randn(20, *event)
    layer, faster = make(), mb.accelerate(make())
    blank = copy.deepcopy(faster.state_dict())
    direction = "forward" if name.startswith("nflows") else "inverse"
    first, _ = getattr(layer, direction)(x)
    assert_close(getattr(faster, direction)(x)[0], first)
    assert_close(getattr(faster, direction)(2 * x), getattr(layer, direction)(2 * x))
    assert_close(faster.state_dict(), layer.state_dict())
    # The parameters of a model that has yet to see its first batch.
    faster.load_state_dict(blank)
    assert_close(getattr(faster, direction)(5 * x)[0], first, atol=1e-4, rtol=1e-4)


@EACH_MODEL
def test_a_replica_runs_on_tensors_of_its_own(name):
    """As `DataParallel` makes them: a copy of the attributes, and tensors for parameters."""
    make, event = MODELS[name]
    model = mb.accelerate(randomised(make()))
    x = torch.randn(6, *event, dtype=torch.float64)
    arguments = (x, None) if name == "Glow" else (x,)
    want = model.log_prob(*arguments)
    replica = replicate(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_close(replica.log_prob(*arguments), want)


def replicate(module):
    replica = module._replicate_for_data_parallel()
    replica._buffers = {name: copy.deepcopy(b) for name, b in module._buffers.items()}
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.detach().clone())
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicate(child)
    return replica


@EACH_MODEL
def test_densities_and_samples_are_one_graph(name):
    make, event = MODELS[name]
    model = mb.accelerate(randomised(make(), dtype=torch.float32))
    x = torch.randn(6, *event)
    arguments = (x, None) if name == "Glow" else (x,)
    want = model.log_prob(*arguments)
    graphs = CompileCounterWithBackend("eager")
    options = {"fullgraph": True, "backend": graphs}
    assert_close(torch.compile(model.log_prob, **options)(*arguments), want)
    assert graphs.frame_count == 1
    torch.manual_seed(1)
    want = model.sample(5)
    torch.manual_seed(1)
    assert_close(torch.compile(model.sample, **options)(5), want)
    assert graphs.frame_count == 2


@pytest.mark.slow
@pytest.mark.parametrize("accelerated_first", [True, False])
def test_a_model_that_has_seen_one_batch_compiles_to_one_graph(accelerated_first):
    make, event = MODELS["Glow"]
    model, x = make(), torch.randn(6, *event)
    steps = [mb.accelerate, lambda model: model.log_prob(x, None)]
    for step in steps if accelerated_first else reversed(steps):
        step(model)
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="eager")
    assert_close(compiled(x, None), model.log_prob(x, None))


@pytest.fixture
def compilations(monkeypatch):
    """The functions that are compiled, which then run as they are."""
    functions = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: functions.append(f.__name__) or f)
    return functions


@EACH_MODEL
def test_methods_are_compiled_when_they_are_called(name, compilations):
    make, event = MODELS[name]
    model = randomised(make(), dtype=torch.float32)
    x = torch.randn(6, *event)
    arguments = (x, None) if name == "Glow" else (x,)
    want = model.log_prob(*arguments)
    assert not compilations
    mb.accelerate(model, compile=True)
    for _ in range(3):
        assert_close(model.log_prob(*arguments), want, atol=1e-4, rtol=1e-5)
    density = "_log_prob" if name == "nflows" else "log_prob"
    # The first call looks at the flags of ActNorm.
    assert compilations == [density]
    model.sample(2)
    assert compilations == [density, "_sample" if name == "nflows" else "sample"]
    other = copy.deepcopy(model)
    other.log_prob(*arguments)
    assert compilations[2:] == [density]
    mb.restore(model).log_prob(*arguments)
    assert len(compilations) == 3


def test_a_loop_over_features_is_not_compiled(compilations):
    transform = nt.CompositeTransform([nflows_autoregressive(), nt.LULinear(4)])
    mb.accelerate(transform, compile=True)
    x = torch.randn(5, 4)
    transform(x), transform.inverse(x)
    assert compilations == ["forward"]
    turned = mb.accelerate(
        nt.CompositeTransform([nt.InverseTransform(transform)]), compile=True
    )
    turned(x), turned.inverse(x)
    assert compilations == ["forward", "inverse"]


def test_a_compiled_model_runs_under_torch_func(compilations):
    model = mb.accelerate(randomised(normflows_model(), dtype=torch.float32), compile=True)
    x = torch.randn(3, 4)
    gradient = torch.func.grad(lambda t: model.log_prob(t).sum())(x)
    assert not compilations and gradient.isfinite().all()


def test_where_compiling_fails_the_model_runs_without(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler\nis here")

    monkeypatch.setattr(torch, "compile", lambda f, **_: fail)
    model = randomised(normflows_model(), dtype=torch.float32)
    x = torch.randn(3, 4)
    want = model.log_prob(x)
    mb.accelerate(model, compile=True)
    with pytest.warns(UserWarning, match=r"log_prob runs without a compiler.*: no compiler$"):
        got = model.log_prob(x)
    assert_close(got, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="must match the size"):
        model.forward_kld(torch.randn(3, 7))
    assert_close(model.log_prob(x), want, atol=1e-5, rtol=1e-5)


def test_a_compiled_model_is_freed():
    model = mb.accelerate(normflows_model(), compile=True)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nflows", "normflows"])
def test_compiled_training_has_the_same_gradients(name):
    make, event = MODELS[name]
    model = randomised(make(), dtype=torch.float32)
    compiled = mb.accelerate(copy.deepcopy(model), compile=True)
    x = torch.randn(8, *event)
    for _ in range(2):
        gradients = []
        for side in (model, compiled):
            loss = side.log_prob(x).mean()
            gradients.append((loss, *torch.autograd.grad(loss, side.parameters())))
        assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
