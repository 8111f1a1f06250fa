"""What `accelerate_sampling` wraps and what it leaves alone, and the wrapper as a module."""

import copy
import functools
import pickle
import warnings
from typing import get_type_hints

import nflows.transforms as nt
import normflows as nf
import pytest
import torch
import zuko
from nflows.transforms.autoregressive import AutoregressiveTransform
from normflows.flows.affine.autoregressive import Autoregressive
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import swa_utils
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.running import incremental_made

SCALES = torch.arange(1.0, 7.0)
LOG_SCALE = SCALES.log().sum()


def randomised(layer, std=0.2):
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=std)
    return layer.eval()


def scaled(base):
    """A subclass that scales in one direction and undoes it in the other."""

    class Scaled(base):
        def inverse(self, x, context=None):
            z, log_det = super().inverse(SCALES * x, context)
            return z, log_det + LOG_SCALE

        def forward(self, z, context=None):
            x, log_det = super().forward(z, context)
            return x / SCALES, log_det - LOG_SCALE

    return Scaled


def with_steps_scaled(base):
    class Scaled(base):
        def _elementwise_inverse(self, inputs, params):
            x, log_det = super()._elementwise_inverse(inputs, params)
            return SCALES * x, log_det + LOG_SCALE

        def _elementwise_forward(self, inputs, params):
            y, log_det = super()._elementwise_forward(inputs / SCALES, params)
            return y, log_det - LOG_SCALE

    return Scaled


class OwnParams(mb.Autoregressive):
    def _params(self, x, context):
        return super()._params(x, context) + 0.5


class OwnStep(mb.Autoregressive):
    def jacobi_step(self, z, x, context=None):
        raise AssertionError("not what forward does")


def ours(layer=mb.Autoregressive):
    return layer(6, hidden_features=16)


def hooked(register):
    layer = ours()
    if register == "register_forward_hook":
        layer.register_forward_hook(lambda module, args, output: (2 * output[0], output[1]))
    else:
        layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return layer


def spline():
    return nf.flows.AutoregressiveRationalQuadraticSpline(6, 1, 16)


def maf():
    return nf.flows.MaskedAffineAutoregressive(6, 16)


def spline_with_an_own_loop():
    layer = spline()
    layer.mprqat.__class__ = scaled(type(layer.mprqat))
    return layer


def replaced(layer, name, change, *parts):
    """A method that is replaced on the instance, or on a part of it."""
    part = layer.get_submodule(".".join(parts))
    method = getattr(part, name)
    setattr(part, name, lambda *args, **kwargs: change(method(*args, **kwargs)))
    return layer


def double_first(results):
    return 2 * results[0], results[1]


# Layers of 6 features that are not what they were built on, and whether they are wrapped.
CHANGED = {
    "normflows, own directions": (
        lambda: scaled(nf.flows.MaskedAffineAutoregressive)(6, 16),
        False,
    ),
    "normflows, own steps": (
        lambda: with_steps_scaled(nf.flows.MaskedAffineAutoregressive)(6, 16),
        True,
    ),
    "nflows, own directions": (
        lambda: scaled(nt.MaskedAffineAutoregressiveTransform)(6, 16),
        False,
    ),
    "nflows, own steps": (
        lambda: with_steps_scaled(nt.MaskedAffineAutoregressiveTransform)(6, 16),
        True,
    ),
    "nflows, turned round": (
        lambda: mb.from_nflows(scaled(nt.MaskedAffineAutoregressiveTransform)(6, 16)),
        False,
    ),
    "spline, own directions": (
        lambda: scaled(nf.flows.AutoregressiveRationalQuadraticSpline)(6, 1, 16),
        True,  # what it holds is
    ),
    "spline, own loop inside": (spline_with_an_own_loop, False),
    "own directions": (lambda: ours(scaled(mb.Autoregressive)), False),
    "own parameters": (lambda: ours(OwnParams), True),
    "own step": (lambda: ours(OwnStep), False),
    "hook": (lambda: hooked("register_forward_hook"), False),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), False),
    "replaced inverse": (lambda: replaced(maf(), "inverse", double_first), False),
    "replaced forward": (lambda: replaced(ours(), "forward", double_first), False),
    "replaced step": (lambda: replaced(maf(), "_elementwise_inverse", double_first), True),
    "replaced parameters": (lambda: replaced(ours(), "_params", lambda p: p + 0.5), True),
    "replaced net": (lambda: replaced(ours(), "forward", lambda p: p / 2, "net"), True),
    "replaced linear layer": (
        lambda: replaced(
            maf(), "forward", lambda p: p / 2, "autoregressive_net", "final_layer"
        ),
        True,
    ),
}


@pytest.mark.parametrize("threshold", [0, 1 << 40], ids=["incremental", "iterated"])
@pytest.mark.parametrize("name", CHANGED)
def test_what_is_changed_keeps_its_numbers(name, threshold, monkeypatch):
    monkeypatch.setattr(incremental_made, "_MIN_PRODUCTS", threshold)
    make, wrapped = CHANGED[name]
    layer = randomised(make())
    y = torch.randn(7, 6)
    want = [run(y) for run in (layer, layer.inverse)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = mb.accelerate_sampling(layer)
    assert (
        any(type(m).__name__.startswith(("Parallel", "_P")) for m in fast.modules()) == wrapped
    )
    for got, expected in zip([run(y) for run in (fast, fast.inverse)], want):
        assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("threshold", [0, 1 << 40], ids=["incremental", "iterated"])
@pytest.mark.parametrize("where", ["class", "hook"])
def test_what_is_changed_after_it_was_wrapped_keeps_its_numbers(where, threshold, monkeypatch):
    monkeypatch.setattr(incremental_made, "_MIN_PRODUCTS", threshold)
    if where == "class":
        base, layer = nf.flows.MaskedAffineAutoregressive, randomised(maf())
        fast, direction = mb.ParallelInverse(layer), "inverse"
        step = base._elementwise_inverse
        monkeypatch.setattr(
            base,
            "_elementwise_inverse",
            lambda self, y, params: (
                SCALES * step(self, y, params)[0],
                step(self, y, params)[1],
            ),
        )
    else:
        layer = randomised(ours())
        fast, direction = mb.ParallelInverse(layer), "__call__"
        layer.register_forward_hook(lambda module, args, output: double_first(output))
    y = torch.randn(5, 6)
    got, want = (getattr(flow, direction)(y) for flow in (fast, layer))
    assert_close(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("base", "layer"),
    [
        (Autoregressive, nf.flows.MaskedAffineAutoregressive),
        (AutoregressiveTransform, nt.MaskedAffineAutoregressiveTransform),
    ],
    ids=["normflows", "nflows"],
)
def test_a_loop_that_was_replaced_in_its_class_is_left_as_it_is(base, layer, monkeypatch):
    loop = base.inverse
    replacement = functools.wraps(loop)(lambda *args, **kwargs: loop(*args, **kwargs))
    monkeypatch.setattr(base, "inverse", replacement)
    with pytest.warns(UserWarning, match="holds no layer to wrap"):
        mb.accelerate_sampling(layer(6, 16))


@pytest.mark.parametrize("max_iter", [None, 2])
def test_a_net_that_reads_in_an_order_of_its_own(max_iter):
    class Backwards(nn.Module):
        def forward(self, x, context=None):
            after = x @ torch.ones(6, 6, dtype=x.dtype).tril(-1)
            return torch.stack((after.sin(), after), dim=2).flatten(1)

    layer = nt.MaskedAffineAutoregressiveTransform(6, 16)
    layer.autoregressive_net = Backwards()
    y = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for flow in (layer, mb.accelerate_sampling(layer, max_iter=max_iter)):
        x, log_det = flow.inverse(y)
        results.append((x, log_det, *torch.autograd.grad(x.sum() + log_det.sum(), y)))
    assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


class Swapped(mb.Autoregressive):
    """Reads features 0 and 5 in each other's place."""

    def _order(self, x):
        return x[:, [5, 1, 2, 3, 4, 0]]


@pytest.mark.parametrize("max_iter", [None, 2])
def test_a_layer_with_an_order_of_its_own(max_iter):
    layer = randomised(ours(Swapped), 0.3)
    y = torch.randn(5, 6)
    fast = mb.ParallelInverse(layer, max_iter=max_iter)
    assert_close(fast(y), layer(y), atol=1e-5, rtol=1e-5)


def test_events_of_more_dimensions_are_left_to_the_layer():
    class Before(nn.Module):
        def forward(self, x, context=None):
            before = x.flatten(1).cumsum(1) - x.flatten(1)
            return torch.stack((before.sin(), before.cos()), dim=2).view(*x.shape, 2)

    class OfImages(nt.MaskedAffineAutoregressiveTransform):
        def _unconstrained_scale_and_shift(self, params):
            return params.unbind(-1)

    layer = OfImages(4, 8)
    layer.autoregressive_net = Before()
    x = torch.randn(3, 1, 2, 2)
    fast = mb.accelerate_sampling(layer)
    assert_close(fast.inverse(fast(x)[0])[0], x, atol=1e-4, rtol=1e-4)
    assert_close(fast.inverse(x), layer.inverse(x))


def replicate(module, change):
    """What `nn.DataParallel` does for one device, with changed parameters."""
    replicas = {part: part._replicate_for_data_parallel() for part in module.modules()}
    for part, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in part._modules.items():
            setattr(replica, name, child and replicas[child])
        for name, parameter in part._parameters.items():
            setattr(replica, name, None if parameter is None else change(parameter))
    return replicas[module]


class TestAsAModule:
    @pytest.fixture
    def layer(self):
        return randomised(mb.Autoregressive(6, hidden_features=16, context_features=2))

    @pytest.fixture
    def inputs(self):
        return torch.randn(5, 6), torch.randn(5, 2)

    def test_replicas_compute_with_their_own_parameters(self, layer, inputs):
        model = nn.ModuleList([mb.ParallelInverse(layer)])
        halved = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in halved.parameters():
                parameter.div_(2)
        replica = replicate(model, lambda p: p / 2)[0]
        got, want = replica(*inputs), halved(*inputs)
        assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert_close(replica.inverse(*inputs), halved.inverse(*inputs))
        weights = torch.randn(5, 6)
        gradients = [
            torch.autograd.grad((weights * x).sum() + log_det.sum(), list(of.parameters()))
            for (x, log_det), of in ((got, layer), (want, halved))
        ]
        assert_close([2 * g for g in gradients[0]], list(gradients[1]), atol=1e-4, rtol=1e-4)

    def test_replicas_of_a_transformer_have_gradients(self):
        layer = randomised(mb.TransformerAutoregressive(4, 3, channels=16, head_dim=8), 0.1)
        x, log_det = replicate(layer, lambda p: 1.0 * p)(torch.randn(2, 4, 3))
        (x.sum() + log_det.sum()).backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())

    def test_copies(self, layer, inputs):
        fast = mb.ParallelInverse(layer, tol=1e-5, max_iter=9)
        want = layer(*inputs)
        copies = [copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
        copies.append(copy.deepcopy(copy.copy(fast)))
        assert copies[0].flow is layer
        for twin in copies:
            assert (twin.tol, twin.max_iter) == (1e-5, 9)
            assert_close(twin(*inputs), want, atol=1e-5, rtol=1e-5)
            assert list(twin.state_dict()) == list(layer.state_dict())
            state = {name: value.clone() for name, value in layer.state_dict().items()}
            for value in twin.parameters():
                nn.init.zeros_(value)
            twin.load_state_dict(state)
            assert_close(twin(*inputs), want, atol=1e-5, rtol=1e-5)
            layer.load_state_dict(state)

    def test_names(self, layer, inputs):
        fast = mb.ParallelInverse(layer)
        names = dict(layer.named_parameters())
        assert list(dict(fast.named_parameters())) == [f"flow.{name}" for name in names]
        assert [*fast.parameters()] == [*layer.parameters()]
        assert fast.net is layer.net and fast.features == 6
        with pytest.raises(AttributeError, match="nothing"):
            fast.nothing  # noqa: B018
        halves = {name: value / 2 for name, value in names.items()}
        want = torch.func.functional_call(layer, halves, inputs)
        for prefix in ("", "flow."):
            given = {prefix + name: value for name, value in halves.items()}
            got = torch.func.functional_call(fast, given, inputs)
            assert_close(got, want, atol=1e-5, rtol=1e-5)
            other = mb.Chain([mb.ParallelInverse(copy.deepcopy(layer))])
            given = {f"flows.0.{name}": value for name, value in given.items()}
            assert not other.load_state_dict(given, strict=False).unexpected_keys
            assert_close(other(*inputs), want, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("prefix", ["", "0.", "flow."])
    def test_keys_that_do_not_fit_are_told_by_the_names_of_the_layer(self, layer, prefix):
        if prefix:
            model = nn.Module()
            model.add_module(prefix[:-1], nn.Sequential(nn.Linear(2, 2), layer))
            prefix += "1."
        else:
            model = layer
        state = model.state_dict()
        del state[f"{prefix}net.final_layer.weight"]
        state |= {f"{prefix}nothing": torch.zeros(2), f"{prefix}net.flow.x": torch.zeros(2)}
        want = model.load_state_dict(state, strict=False)
        assert len(want.missing_keys) == 1 and len(want.unexpected_keys) == 2
        fast = mb.accelerate_sampling(model)
        got = fast.load_state_dict(state, strict=False)
        assert sorted(got.unexpected_keys) == sorted(want.unexpected_keys)
        assert got.missing_keys == want.missing_keys
        state[f"{prefix}net.final_layer.bias"] = torch.zeros(2)
        with pytest.raises(RuntimeError, match="size mismatch for") as error:
            fast.load_state_dict(state)
        assert f'"{prefix}net.final_layer.weight"' in str(error.value)
        assert f"mismatch for {prefix}net.final_layer.bias:" in str(error.value)
        assert "flow" not in str(error.value).replace(f"{prefix}net.flow.x", "").replace(
            prefix, ""
        )

    def test_averages(self, layer, inputs):
        fast = mb.Chain([mb.ParallelInverse(layer)])
        averaged = torch.optim.swa_utils.AveragedModel(fast, use_buffers=True)
        for _ in range(2):
            averaged.update_parameters(fast)
        assert_close(averaged(*inputs), fast(*inputs))

    def test_state_keeps_its_order_and_versions(self, layer):
        plain = mb.Chain([mb.ActNorm(6), layer, mb.ActNorm(6)])
        want = plain.state_dict()
        got = mb.accelerate_sampling(plain).state_dict()
        assert list(got) == list(want)
        assert want._metadata.items() <= got._metadata.items()

    def test_moves_and_converts(self, layer, inputs):
        fast = mb.ParallelInverse(layer).double()
        assert layer.net.final_layer.weight.dtype == torch.float64
        inputs = [t.double() for t in inputs]
        assert_close(fast(*inputs), layer(*inputs), atol=1e-12, rtol=1e-12)
        assert fast.to("meta").net.final_layer.weight.is_meta

    def test_what_is_set_on_it_is_set_on_the_layer(self, layer, inputs):
        fast, other = mb.ParallelInverse(layer), copy.deepcopy(layer)
        other.net = randomised(other.net, 0.4)
        other.reverse = True
        fast.net, fast.reverse, fast.max_iter = other.net, True, 5
        assert layer.net is other.net and fast.max_iter == 5
        assert_close(fast(*inputs), other(*inputs), atol=1e-5, rtol=1e-5)
        assert list(fast.state_dict()) == list(other.state_dict())

    def test_added_modules_are_not_lost(self, layer):
        fast = mb.ParallelInverse(layer)
        fast.train()
        assert layer.training and layer.net.training
        nn.utils.parametrizations.weight_norm(fast.net.final_layer)
        assert list(fast.state_dict()) == list(layer.state_dict())

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
    def test_trains_after_other_modes(self, layer, inputs, mode):
        fast = mb.ParallelInverse(layer)
        with mode():
            assert not fast(*inputs)[0].requires_grad
        sum(t.sum() for t in fast(*inputs)).backward()
        assert layer.net.final_layer.weight.grad.any()
        layer.requires_grad_(False)
        assert not fast(*inputs)[0].requires_grad


@pytest.mark.filterwarnings("ignore")  # tracing warns of checks, and of being out of date
class TestTracing:
    @pytest.fixture(params=[None, 3], ids=["", "max_iter"])
    def layers(self, request):
        layer = randomised(mb.Autoregressive(8, hidden_features=32), 0.4)
        return layer, mb.ParallelInverse(layer, max_iter=request.param)

    @pytest.mark.parametrize("gradients", [False, True])
    @pytest.mark.parametrize(
        "trace",
        [
            lambda f: torch.jit.trace(f, torch.zeros(6, 8)),
            lambda f: make_fx(f)(torch.zeros(6, 8)),
            lambda f: torch.compile(f, backend="eager", fullgraph=True),
        ],
        ids=["jit", "make_fx", "compile"],
    )
    def test_is_exact_for_other_values(self, layers, trace, gradients):
        layer, fast = layers
        layer.requires_grad_(gradients)
        traced = trace(fast)
        y = 2 * torch.randn(6, 8)
        assert_close(traced(y), layer(y), atol=1e-5, rtol=1e-5)

    @pytest.mark.skipif(
        torch.__version__.startswith("2.5."),
        reason="this version looks up the names of parameters in the state_dict",
    )
    def test_exports_any_batch(self, layers):
        layer, fast = layers
        sizes = {"z": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(fast, (torch.zeros(3, 8),), dynamic_shapes=sizes)
        y = torch.randn(9, 8)
        assert_close(exported.module()(y), layer(y), atol=1e-5, rtol=1e-5)

    def test_of_a_transformer(self):
        layer = randomised(mb.TransformerAutoregressive(5, 3, channels=16, head_dim=8), 0.1)
        z = torch.randn(4, 5, 3)
        want = layer(z)
        for traced in (torch.jit.trace(layer, 0 * z), make_fx(layer)(0 * z)):
            assert_close(traced(z), want, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "trace",
        [
            torch.jit.trace,
            lambda f, x: make_fx(f)(x),
            lambda f, x: torch.export.export(f, (x,), strict=False),
        ],
        ids=["jit", "make_fx", "export"],
    )
    def test_of_a_solver_is_refused(self, trace):
        layer = mb.ContinuousFlow(3, hidden_features=8).eval()
        with pytest.raises(RuntimeError, match="cannot be traced or exported, as its solver"):
            trace(layer, torch.zeros(2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 2),
        lambda: zuko.flows.MAF(2, 2),
        lambda: mb.Coupling(4),
        lambda: nf.NormalizingFlow(nf.distributions.DiagGaussian(2), []),
        lambda: scaled(nf.flows.MaskedAffineAutoregressive)(6, 16),
        nn.ModuleList,
    ],
)
def test_warns_wherever_nothing_is_wrapped(make):
    model = make()
    with pytest.warns(UserWarning, match=f"{type(model).__name__} holds no layer to wrap"):
        assert mb.accelerate_sampling(model) is model


def test_type_checkers_see_the_type_of_the_model():
    hints = get_type_hints(mb.accelerate_sampling)
    assert hints["return"] is hints["model"]


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="accelerate_sampling: expected a module, got list"):
        mb.accelerate_sampling([ours()])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.AlphaDropout(0.5), "AlphaDropout in training mode"),
        (nn.BatchNorm1d(16), "BatchNorm1d in training mode"),
        (nn.BatchNorm1d(16, track_running_stats=False).eval(), "without running statistics"),
    ],
)
def test_passes_that_differ_are_refused(part, message):
    layer = ours().eval()
    layer.net.blocks[0].dropout = part
    with pytest.raises(ValueError, match=message):
        mb.ParallelInverse(layer)(torch.zeros(3, 6))


@pytest.mark.parametrize(
    "make",
    [
        lambda: mb.Autoregressive(16, hidden_features=64),
        lambda: mb.Autoregressive(16, hidden_features=64, reverse=True),
        lambda: nf.flows.MaskedAffineAutoregressive(16, 64),
        lambda: nf.flows.AutoregressiveRationalQuadraticSpline(16, 1, 64),
    ],
    ids=["affine", "reverse", "maf", "spline of normflows"],
)
@pytest.mark.parametrize("rows", [3, 4000], ids=["iterated", "incremental"])
def test_an_averaged_layer_is_solved_as_the_layer(make, rows):
    """Degrees of a MADE are whole numbers, of which an average is not what it was."""
    layer = make().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    averaged = swa_utils.AveragedModel(
        layer, use_buffers=True, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9999)
    )
    for _ in range(5):
        averaged.update_parameters(layer)
    x = torch.randn(rows, 16)
    with torch.no_grad():
        for method in ("forward", "inverse"):
            got, want = (
                getattr(mb.ParallelInverse(module), method)(x)
                for module in (averaged.module, layer)
            )
            assert_close(got, want, atol=1e-4, rtol=1e-4)
