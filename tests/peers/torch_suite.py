"""What torch asks of the transforms of torch.distributions, through `to_torch_transform`."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable

import torch
from conftest import Case
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Independent,
    Normal,
    Transform,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform, ExpTransform, ReshapeTransform

import mixer_bijectors as mb

from .suite import Suite, refuses

SUITE = Suite(
    "torch.distributions",
    {
        "test_compose_affine, test_compose_reshape": "of torch's own transforms alone",
        "transforms of 0 dimensions": "events here have at least one",
        "transforms that are not bijective": "none here",
        "traces of `ContinuousFlow`": "refused, since its steps depend on values",
        "test_with_cache where results have a graph": (
            "they are returned once, since a graph serves one backward pass"
        ),
    },
)
BATCH = (2, 3)
CACHE = (0, 1)
SIDES = ("forward", "inverse")


def transform_of(
    case: Case, cache_size: int, side: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Transform, Tensor, Callable[[int], Tensor]]:
    """The transform of one direction, inputs of batch shape (2, 3), and more of them."""
    layer = case.build(dtype, "cpu", seed).requires_grad_(False)
    latent_event = case.latent_event or case.event
    context = case.context(dtype, "cpu", 3)
    transform = mb.to_torch_transform(
        layer,
        len(case.event),
        latent_event_dim=len(latent_event),
        context=context,
        cache_size=cache_size,
    )
    event = latent_event
    if side == "inverse":
        transform, event = transform.inv, case.event

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*BATCH, *event, dtype=dtype, generator=generator)

    return transform, draw(0), draw


def traceable(name: str, case: Case) -> bool:
    return not name.startswith("ContinuousFlow")


def closed(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a, b, atol=tolerance)


@SUITE.each_layer(cache_size=CACHE, side=SIDES)
def the_inverse_of_the_inverse_is_itself(case: Case, cache_size: int, side: str) -> None:
    transform, _, _ = transform_of(case, cache_size, side)
    assert transform.inv.inv is transform
    assert transform.inv is transform.inv


@SUITE.each_layer(cache_size=CACHE, side=SIDES)
def equality_is_that_of_the_flow(case: Case, cache_size: int, side: str) -> None:
    transform, _, _ = transform_of(case, cache_size, side)
    other, _, _ = transform_of(case, cache_size, side)
    assert transform == transform and transform != other and transform != ExpTransform()
    assert transform != transform.inv and transform.inv == transform.inv
    forward = transform if side == "forward" else transform.inv
    twin = mb.to_torch_transform(
        forward.flow,
        len(case.event),
        latent_event_dim=len(case.latent_event or case.event),
        context=forward.context,
        cache_size=cache_size,
    )
    assert twin == forward and twin.inv == forward.inv and twin is not forward
    assert hash(twin) == hash(forward)
    assert ComposeTransform([twin, ExpTransform()]) == ComposeTransform(
        [forward, ExpTransform()]
    )


@SUITE.each_layer(side=SIDES)
def a_cache_gives_the_same_tensor(case: Case, side: str) -> None:
    transform, x, _ = transform_of(case, 0, side)
    cached = transform.with_cache(1)
    assert cached._cache_size == 1 and cached.with_cache(1) is cached
    y = cached(x)
    assert cached(x) is y
    assert cached.inv(y) is x


@SUITE.each_layer(cache_size=CACHE, side=SIDES, from_cache=(False, True))
def forward_and_inverse_undo_each_other(
    case: Case, cache_size: int, side: str, from_cache: bool
) -> None:
    transform, x, _ = transform_of(case, cache_size, side)
    x.requires_grad_()
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape)
    back = transform.inv(y if from_cache else y.clone())
    assert back.shape == transform.inverse_shape(y.shape) == x.shape
    assert closed(back, x, 1e-4)
    assert closed(transform(back), y, 1e-4)


@SUITE.each_layer(side=SIDES, batch=((), (6,), (5, 4)))
def shapes_and_dimensions_agree(case: Case, side: str, batch: tuple[int, ...]) -> None:
    transform, x, _ = transform_of(case, 0, side)
    event = x.shape[2:]
    if case.context_features:
        batch = (*batch, 3)
    y = transform(torch.randn(*batch, *event))
    assert transform.domain.event_dim == len(event)
    assert transform.codomain.event_dim == y.dim() - len(batch)
    assert y.shape == transform.forward_shape((*batch, *event))
    assert transform.inverse_shape(y.shape) == (*batch, *event)
    assert transform.domain.check(torch.randn(*batch, *event)).shape == batch
    assert transform.bijective
    refuses(transform.forward_shape, event[1:])


@SUITE.each_layer(cache_size=CACHE, side=SIDES, dtype=(torch.float32, torch.float64))
def log_det_is_that_of_the_jacobian(
    case: Case, cache_size: int, side: str, dtype: torch.dtype
) -> None:
    transform, x, _ = transform_of(case, cache_size, side, dtype)
    y = transform(x)
    log_det = transform.log_abs_det_jacobian(x, y)
    assert log_det.shape == BATCH
    size = x[0, 0].numel()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: transform(x).reshape(6, size).sum(0), x
    )
    want = torch.linalg.slogdet(jacobian.reshape(size, 6, size).movedim(1, 0)).logabsdet
    assert closed(log_det, want.view(BATCH), 1e-5)


@SUITE.each_layer(where=traceable, side=SIDES, what=("value", "log_det"))
def a_trace_gives_the_same(case: Case, side: str, what: str) -> None:
    transform, x, draw = transform_of(case, 0, side)

    def run(x: Tensor) -> Tensor:
        y = transform(x)
        return y if what == "value" else transform.log_abs_det_jacobian(x, y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(run, (x.requires_grad_(),))
    other = draw(1).requires_grad_()
    assert closed(traced(other), run(other), 1e-5)


@SUITE.each_layer(cache_size=CACHE, side=SIDES)
def copies_give_the_same(case: Case, cache_size: int, side: str) -> None:
    transform, x, _ = transform_of(case, cache_size, side)
    y = transform(x)
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        again = other(x)
        assert torch.equal(again, y)
        assert closed(
            other.log_abs_det_jacobian(x, again), transform.log_abs_det_jacobian(x, y), 1e-4
        )
        assert other.inv.inv is other


@SUITE.each_layer(cache_size=CACHE, side=SIDES)
def compositions_add_up(case: Case, cache_size: int, side: str) -> None:
    transform, x, _ = transform_of(case, cache_size, side)
    dim = len(x.shape) - 2
    scale = AffineTransform(0.5, 0.5, event_dim=dim, cache_size=cache_size)
    composed = ComposeTransform([scale, transform], cache_size=cache_size)
    assert composed.domain.event_dim == dim
    assert composed.codomain.event_dim == transform.codomain.event_dim
    y = composed(x)
    inner = 0.5 + 0.5 * x
    assert torch.equal(y, transform(inner))
    want = transform.log_abs_det_jacobian(inner, y) - x[0, 0].numel() * math.log(2)
    assert closed(composed.log_abs_det_jacobian(x, y), want, 1e-4)
    assert closed(composed.inv(y), x, 1e-4)


@SUITE.each_layer(
    where=lambda name, case: case.latent_event is None,
    num_transforms=(1, 2, 3),
    base_batch=(0, 1, 2),
    independent=(False, True),
    sample_shape=((), (7,)),
)
def transformed_distributions_have_shapes(
    case: Case,
    num_transforms: int,
    base_batch: int,
    independent: bool,
    sample_shape: tuple[int, ...],
) -> None:
    transform, x, _ = transform_of(case, 0, "forward")
    event = x.shape[2:]
    batch = (2, 3)[2 - base_batch :]
    base = Normal(torch.zeros(*batch, *event), torch.ones(*batch, *event))
    if independent:
        base = Independent(base, len(event))
    size = x[0, 0].numel()
    parts = [
        AffineTransform(0.0, 2.0, event_dim=len(event)),
        transform,
        ReshapeTransform(event, (size,)),
    ]
    parts = parts[1:2] if num_transforms == 1 else parts[:num_transforms]
    distribution = TransformedDistribution(base, parts)
    want = torch.broadcast_shapes(batch, (3,)) if case.context_features else batch
    assert distribution.batch_shape == want
    assert distribution.event_shape == ((size,) if num_transforms == 3 else event)
    x = distribution.sample(sample_shape)
    assert x.shape == (*sample_shape, *distribution.batch_shape, *distribution.event_shape)
    assert x.unique().numel() >= 0.9 * x.numel()
    assert distribution.log_prob(x).shape == (*sample_shape, *distribution.batch_shape)
    while x.dim() > len(distribution.event_shape):
        x = x[0]
    assert distribution.log_prob(x).shape == distribution.batch_shape


@SUITE.each_layer(cache_size=CACHE)
def distributions_refuse_too_few_dimensions(case: Case, cache_size: int) -> None:
    transform, x, _ = transform_of(case, cache_size, "forward")
    event = x.shape[3:]
    base = Normal(torch.zeros(event), torch.ones(event))
    refuses(TransformedDistribution, base, transform)


@SUITE.each_layer(cache_size=CACHE)
def expanded_distributions_agree(case: Case, cache_size: int) -> None:
    transform, x, _ = transform_of(case, cache_size, "forward")
    event = x.shape[2:]
    base = Independent(Normal(torch.zeros(3, *event), torch.ones(3, *event)), len(event))
    one = TransformedDistribution(base, transform)
    many = one.expand((2, 3))
    assert many.batch_shape == (2, 3)
    x = many.rsample()
    assert closed(many.log_prob(x), one.log_prob(x), 1e-4)
    assert many.sample((4,)).shape == (4, *x.shape)
