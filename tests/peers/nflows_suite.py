"""What nflows asks of its transforms, through `to_nflows`."""

from collections.abc import Callable
from math import prod

import torch
from conftest import LAYERS, Case
from nflows.transforms import (
    CompositeTransform,
    InverseTransform,
    MultiscaleCompositeTransform,
    ReversePermutation,
    Transform,
)
from torch import Tensor, nn

import mixer_bijectors as mb

from .suite import Suite, close, refuses

SUITE = Suite(
    "nflows",
    {
        "Linear's cache": "`LULinear` has none: a product of two triangles is not dear",
        "MADE's masks, nets, torchutils": "of nflows' own nets and helpers",
        "exceptions outside of a domain": "all layers here are bijections of all real numbers",
        "piecewise linear, quadratic and cubic splines; QR, SVD, Householder": "none here",
        "BatchNorm": "no inverse in training; `ActNorm` is what there is",
    },
)

SIZED: dict[str, Callable[[int], nn.Module]] = {
    "ActNorm": mb.ActNorm,
    "LULinear": lambda n: mb.LULinear(n, identity_init=False),
    "Coupling": lambda n: mb.Coupling(n, hidden_features=8),
    "Coupling-spline": lambda n: mb.Coupling(n, mb.RationalQuadratic(), hidden_features=8),
    "Autoregressive": lambda n: mb.Autoregressive(n, hidden_features=n),
    "Elementwise": lambda n: mb.Elementwise(n, mb.MonotoneBSpline()),
    "KANLayer": mb.KANLayer,
}


def eps_of(name: str) -> float:
    """The tolerance of nflows for such a transform, in float32."""
    if any(part in name for part in ("spline", "circular", "KAN", "kan")):
        return 1e-3
    if "Continuous" in name:
        return 1e-4  # that of monotonic networks, which are integrated as well
    return 1e-5  # that of linear layers


def transform_of(
    case: Case, dtype: torch.dtype = torch.float32
) -> tuple[Transform, Tensor, Tensor, Tensor | None]:
    """The layer, ten inputs and latents, and contexts."""
    transform = mb.to_nflows(case.build(dtype, "cpu"))
    x, z = case.data(dtype, "cpu", 10), case.latents(dtype, "cpu", 10)
    return transform, x, z, case.context(dtype, "cpu", 10)


def check_good(tensor: Tensor, shape: tuple[int, ...]) -> None:
    assert isinstance(tensor, Tensor)
    assert tuple(tensor.shape) == tuple(shape)
    assert tensor.isfinite().all()


def check_consistent(
    transform: Transform, x: Tensor, eps: float, context: Tensor | None = None
) -> None:
    both = CompositeTransform([InverseTransform(transform), transform])
    back, log_det = both(x, context)
    check_good(back, x.shape)
    check_good(log_det, x.shape[:1])
    close(back, x, eps)
    close(log_det, torch.zeros_like(log_det), eps * x[0].numel())


@SUITE.each_layer(direction=("forward", "inverse"))
def results_are_good(case: Case, direction: str) -> None:
    transform, x, z, context = transform_of(case)
    inputs, outputs = (x, z) if direction == "forward" else (z, x)
    y, log_det = getattr(transform, direction)(inputs, context)
    check_good(y, outputs.shape)
    check_good(log_det, (10,))


@SUITE.each_layer(dtype=(torch.float32, torch.float64), trained=(False, True))
def forward_and_inverse_are_consistent(case: Case, dtype: torch.dtype, trained: bool) -> None:
    transform, _, z, context = transform_of(case, dtype)
    if not trained:
        transform = mb.to_nflows(case.make().eval().to(dtype))
    name = next(name for name, other in LAYERS.items() if other is case)
    check_consistent(transform, z, eps_of(name) if dtype == torch.float32 else 1e-6, context)


@SUITE.each_layer()
def log_det_is_that_of_the_jacobian(case: Case) -> None:
    transform, x, _, context = transform_of(case, torch.float64)
    context = None if context is None else context[:1]
    jacobian = torch.autograd.functional.jacobian(
        lambda x: transform(x.view(1, *case.event), context)[0].flatten(), x[0].flatten()
    )
    close(transform(x[:1], context)[1][0], torch.linalg.slogdet(jacobian).logabsdet, 1e-6)


@SUITE.each_layer()
def an_inverse_transform_swaps_directions(case: Case) -> None:
    transform, x, z, context = transform_of(case)
    swapped = InverseTransform(transform)
    close(swapped(z, context), transform.inverse(z, context), 0)
    close(swapped.inverse(x, context), transform(x, context), 0)


@SUITE.each_layer(where=lambda name, case: len(case.event) == 1)
def a_composite_runs_its_parts_in_turn(case: Case) -> None:
    transform, x, z, context = transform_of(case, torch.float64)
    flip = ReversePermutation(*case.event)
    composite = CompositeTransform([transform, flip, transform])
    first, one = transform(x, context)
    want, two = transform(first.flip(1), context)
    close(composite(x, context), (want, one + two), 1e-6)
    first, one = transform.inverse(z, context)
    want, two = transform.inverse(first.flip(1), context)
    close(composite.inverse(z, context), (want, one + two), 1e-6)


@SUITE.each_layer(where=lambda name, case: "Patchify" in name or "CyclicShift" in name)
def a_permutation_keeps_numbers(case: Case) -> None:
    transform, x, z, _ = transform_of(case)
    for run, inputs in ((transform, x), (transform.inverse, z)):
        y, log_det = run(inputs)
        close(y.flatten(1).sort(1).values, inputs.flatten(1).sort(1).values, 0)
        close(log_det, torch.zeros(10), 0)
    close(transform.inverse(transform(x)[0])[0], x, 0)


@SUITE.each(size=((4, 4), (2, 4)))
def a_squeeze_has_these_values(size: tuple[int, int]) -> None:
    image = torch.arange(1.0, 1 + prod(size)).view(1, 1, *size)
    rows = mb.to_nflows(mb.Patchify((1, *size), 2))(image)[0]
    close(rows[0], image.view(size[0] // 2, 2, -1, 2).transpose(1, 2).reshape(-1, 4), 0)


@SUITE.each(shape=((32, 3, 3), (32, 4), (31, 4, 4)))
def a_squeeze_refuses_shapes(shape: tuple[int, ...]) -> None:
    transform = mb.to_nflows(mb.Patchify((32, 4, 4), 2))
    for run in (transform, transform.inverse):
        refuses(run, torch.randn(10, *shape))


@SUITE.each_layer(where=lambda name, case: name.startswith("Coupling"))
def a_coupling_keeps_one_half(case: Case) -> None:
    transform, x, z, context = transform_of(case)
    cut = transform.flow.sizes[0]
    first, second = slice(cut), slice(cut, None)
    kept, changed = (second, first) if transform.flow.reverse else (first, second)
    for run, inputs in ((transform, x), (transform.inverse, z)):
        y, log_det = run(inputs, context)
        close(y[:, kept], inputs[:, kept], 0)
        assert not torch.allclose(y[:, changed], inputs[:, changed])
        if isinstance(transform.flow.univariate, mb.Additive):
            close(log_det, torch.zeros(10), 0)


@SUITE.each_layer(where=lambda name, case: name.startswith("Autoregressive"))
def an_autoregressive_jacobian_is_triangular(case: Case) -> None:
    transform, x, _, context = transform_of(case, torch.float64)
    context = None if context is None else context[:1]
    jacobian = torch.autograd.functional.jacobian(
        lambda x: transform(x[None], context)[0][0], x[0]
    )
    if transform.flow.reverse:
        jacobian = jacobian.flip(0, 1)
    close(jacobian.triu(1), torch.zeros_like(jacobian), 0)
    assert (jacobian.diagonal() > 0).all()


@SUITE.each_layer(where=lambda name, case: name.startswith("LULinear"))
def a_linear_layer_is_its_matrix(case: Case) -> None:
    transform, x, z, _ = transform_of(case)
    weight = transform.flow.weight()
    log_det = torch.linalg.slogdet(weight).logabsdet.expand(10)
    close(transform(x), (x @ weight.mT, log_det), 1e-5)
    close(transform.inverse(z), (z @ weight.inverse().mT, -log_det), 1e-5)


@SUITE.each(shape=((100,), (32, 8, 8)), direction=("forward", "inverse"))
def actnorm_initialises_once(shape: tuple[int, ...], direction: str) -> None:
    def build() -> Transform:
        norm = mb.ActNorm(shape[0])
        return mb.to_nflows(norm if len(shape) == 1 else mb.PixelMixing(norm))

    first, other = torch.randn(50, *shape), torch.randn(50, *shape)
    one = build()
    y, log_det = getattr(one, direction)(first)
    check_good(y, first.shape)
    check_good(log_det, (50,))
    check_consistent(one, first, 1e-5)
    two = build()
    two.load_state_dict(one.state_dict())
    two(other)
    close(two.state_dict(), one.state_dict(), 0)
    close(two(first), one(first), 1e-6)


@SUITE.each(
    where=("inside", "tails", "identity"),
    univariate=(mb.RationalQuadratic(10), mb.MonotoneBSpline(), mb.RationalQuadratic(4, 1.0)),
)
def splines_are_consistent(where: str, univariate: mb.RationalQuadratic) -> None:
    params = torch.randn(2, 3, 4, univariate.num_params)
    x = 3 * torch.randn(2, 3, 4)
    if where == "tails":
        x = x.sign() * (univariate.bound + torch.rand(2, 3, 4))
    if where == "identity":
        params = torch.zeros_like(params)
    y, log_slope = univariate(x, params)
    back, log_slope_back = univariate(y, params, inverse=True)
    close(back, x, 1e-3)
    close(log_slope, -log_slope_back, 1e-3)
    if where != "inside":
        close(y, x, 1e-6)
        close(log_slope, torch.zeros_like(x), 2e-6)


def multiscale(build: Callable[[int], nn.Module], shape: tuple[int, ...], **options: int):
    """Four layers, each for the half that the one before it leaves."""
    transform = MultiscaleCompositeTransform(num_transforms=4, **options)
    for _ in range(4):
        layer = build(shape[0])
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.1)
        layer = (layer if len(shape) == 1 else mb.PixelMixing(layer)).eval()
        shape = transform.add_transform(mb.to_nflows(layer), shape)
    return transform


@SUITE.each(layer=SIZED, shape=((32, 4, 4), (64,), (65,), (21,)))
def multiscale_composites_are_consistent(layer: str, shape: tuple[int, ...]) -> None:
    transform = multiscale(SIZED[layer], shape)
    y, log_det = transform(torch.ones(5, *shape))
    check_good(y, (5, prod(shape)))
    check_good(log_det, (5,))
    check_consistent(transform, torch.randn(5, prod(shape)), 1e-3)


@SUITE.each(layer=SIZED)
def multiscale_composites_refuse_shapes(layer: str) -> None:
    refuses(multiscale, SIZED[layer], (8,))
    refuses(lambda: multiscale(SIZED[layer], (32,), split_dim=2))
    refuses(multiscale(SIZED[layer], (32, 4, 4)).inverse, torch.randn(5, 32, 4, 4))


@SUITE.each_layer()
def modules_survive_saving(case: Case) -> None:
    transform, x, _, context = transform_of(case)
    twin = mb.to_nflows(case.build(torch.float32, "cpu", seed=3))
    twin.load_state_dict(transform.state_dict())
    close(twin(x, context), transform(x, context), 0)
    assert mb.from_nflows(transform) is transform.flow
