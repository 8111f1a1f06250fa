"""The names of torch, normflows and nflows in `_dependencies`: upgrades may take them away."""

import copy
import inspect
import pydoc
from contextlib import nullcontext

import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.distributions import AffineTransform, Transform
from torch.testing import assert_close
from torch.utils import _python_dispatch

from mixer_bijectors import _dependencies
from mixer_bijectors.running import compiled, faster_linear, faster_splines, known_layers


def test_torch_marks_constant_functions_as_the_library_does():
    def by_torch():
        return 2

    def by_the_library():
        return 2

    torch.compiler.assume_constant_result(by_torch)
    assert vars(_dependencies.constant_in_graphs(by_the_library)) == vars(by_torch) != {}


def test_the_module_inside_of_a_compiled_one():
    layer = nn.Linear(2, 2)
    assert _dependencies.uncompiled(torch.compile(layer)) is layer
    assert _dependencies.uncompiled(layer) is layer


def test_tensors_in_transformations_of_functions():
    seen = []

    def look(x):
        seen.append(_dependencies.is_function_transformed(x))
        return (x * x).sum()

    def look_at_gradient(grad):
        look(grad)

    x = torch.ones(2)
    look(x)
    torch.func.grad(look)(x)
    torch.vmap(look)(x)
    y = x.requires_grad_().exp()
    y.register_hook(look_at_gradient)
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)
    assert seen == [False, True, True, True]


def test_dispatch_modes():
    assert not _dependencies.in_dispatch_mode()
    with _python_dispatch.TorchDispatchMode():
        assert _dependencies.in_dispatch_mode()


@pytest.mark.parametrize(
    ("context", "curvature"), [(nullcontext, 0.0), (_dependencies.with_forward_mode, 2.0)]
)
def test_forward_mode_inside_of_a_rule_for_it(context, curvature):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_forward(*inputs)

        @staticmethod
        def jvp(ctx, tangent):
            with context():
                x = forward_ad.unpack_dual(ctx.saved_tensors[0]).primal
                return 2 * x * tangent

    def slope(x):
        return torch.func.jvp(Square.apply, (x,), (torch.ones(()),))[1]

    x = torch.tensor(3.0)
    assert slope(x) == 6
    assert torch.func.jvp(slope, (x,), (torch.ones(()),))[1] == curvature


def test_children_of_a_module():
    part = nn.Linear(2, 2)
    module = nn.Module()
    module.first = module.second = part
    module.register_module("third", None)
    children = {"first": part, "second": part, "third": None}
    assert _dependencies.child_modules(module) == children
    assert _dependencies.child_modules(nn.Module.__new__(nn.Module)) == {}
    other = nn.Linear(2, 2)
    copied = _dependencies.with_children(module, {**children, "first": other})
    assert copied.first is other and module.first is part and copied.second is part


@pytest.mark.parametrize(
    ("module", "empty"),
    [
        (nn.ReLU(), True),
        (nn.LayerNorm(2, elementwise_affine=False), False),  # its parameters are None
        (nn.Linear(2, 2), False),
        (nn.Sequential(nn.ReLU()), False),
        (nn.BatchNorm1d(2, affine=False), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_hold_nothing(module, empty):
    assert _dependencies.is_empty(module) == empty


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_pre_hook",
        "register_forward_hook",
        "register_full_backward_pre_hook",
        "register_full_backward_hook",
    ],
)
def test_hooks_of_calls(register):
    module = nn.Linear(2, 2)
    assert not _dependencies.has_hooks(module)
    assert not any(_dependencies.hook_tables(module))
    getattr(module, register)(lambda *_: None)
    assert _dependencies.has_hooks(module)
    assert any(_dependencies.hook_tables(module))


@pytest.mark.parametrize(
    "kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"]
)
def test_hooks_of_calls_of_all_modules(kind):
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    module, handle = nn.Linear(2, 2), register(lambda *_: None)
    assert _dependencies.has_hooks(module)
    handle.remove()
    assert not _dependencies.has_hooks(module)


def test_hooks_of_tensors():
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda grad: 3 * grad)

    def slope():
        return torch.autograd.grad(x.sum(), x)[0][0].item()

    assert slope() == 3
    with _dependencies.without_tensor_hooks([x, torch.ones(2)]):
        assert slope() == 1
    assert slope() == 3


def test_versions_in_a_state_dict():
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    assert _dependencies.module_versions(state)["0"] == {"version": 2}
    assert _dependencies.module_versions({}) == {}


def test_flows_of_a_composite():
    flows = [nf.flows.Permute(2), nf.flows.Permute(2)]
    assert _dependencies.flows_of_composite(nf.flows.Composite(flows)) == flows


@pytest.mark.parametrize(
    "layer",
    [
        nf.flows.MaskedAffineAutoregressive(3, 8),
        nt.MaskedAffineAutoregressiveTransform(3, 8),
        nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            features=3, hidden_features=8, tails="linear", tail_bound=3.0
        ),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_map_of_each_feature(layer):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    y, log_det = layer(x)
    params = layer.autoregressive_net(x)
    inverse, inverse_log_det = _dependencies.elementwise_inverse(layer, y, params)
    assert_close(inverse, x)
    assert_close(inverse_log_det, -log_det)


def test_the_inverse_of_a_transform():
    """What `FlowTransform` overrides, and what torch calls on it."""

    class Shift(Transform):
        def _call(self, x):
            return x + 1

        def _inv_call(self, y):
            return y - 2  # in place of what is remembered

    transform = Shift(cache_size=1)
    assert isinstance(AffineTransform(0.0, 1.0).inv, _dependencies.InverseTransform)
    inverse = _dependencies.InverseTransform(transform)
    assert inverse(torch.ones(2)).tolist() == [-1.0, -1.0]
    assert inverse._inv is transform and transform._inv is None and transform._cache_size == 1
    assert copy.copy(transform)._inv is None


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *known_layers.STEPPED_LAYERS.items(),
        *((part, "forward") for part in sorted(known_layers.NET_PARTS)),
    ],
)
def test_the_code_that_solvers_know(name, method):
    kind = pydoc.locate(name)
    assert known_layers.full_name(kind) == name
    assert known_layers.is_unchanged(kind, method)


@pytest.mark.parametrize(
    "layer",
    [nf.flows.MaskedAffineAutoregressive, nt.MaskedAffineAutoregressiveTransform],
    ids=lambda layer: layer.__module__.split(".")[0],
)
def test_the_loops_that_solvers_replace(layer):
    assert known_layers.loops_over_features(layer(3, 8))


def test_torch_leaves_functions_to_python():
    seen = []
    function = _dependencies.run_uncompiled(lambda: seen.append(torch.compiler.is_compiling()))
    torch.compile(function, backend="eager")()
    assert seen == [False]


def test_modules_that_are_compiled_in_place():
    layer = nn.Linear(2, 2)
    assert not _dependencies.is_compiled(layer)
    layer.compile(backend="eager")
    assert _dependencies.is_compiled(layer)


@pytest.mark.parametrize(
    ("faster", "name"),
    [
        (faster, name)
        for faster in (*faster_splines.LAYERS, *faster_linear.LAYERS)
        for name in faster.known
        if name in vars(faster)
    ],
)
def test_normflows_and_nflows_call_what_accelerate_replaces(faster, name):
    """Methods of layers, with the arguments that they are called with."""
    arguments = list(inspect.signature(getattr(faster, name)).parameters)
    for function in faster.known[name]:
        assert list(inspect.signature(function).parameters) == arguments


@pytest.mark.parametrize("faster", compiled.MODELS)
def test_normflows_and_nflows_have_the_methods_that_accelerate_compiles(faster):
    assert faster.directions.keys() == faster.known.keys()
    assert all(map(inspect.isfunction, sum(faster.known.values(), ())))


def test_torch_says_whether_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    assert not _dependencies.finds_cpp_compiler()


def test_torch_packages_programs_with_metadata():
    parameters = inspect.signature(torch._inductor.aoti_compile_and_package).parameters
    assert {"package_path", "inductor_configs"} <= parameters.keys()
    assert torch._inductor.config.aot_inductor.metadata == {}
