"""What torchflows, pyro, sbi and FrEIA ask of layers, in adapters as their users write them."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from conftest import Case
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from sbi.neural_nets.estimators import NFlowsFlow, ZukoFlow
from torch import Tensor, nn
from torchflows.bijections.base import Bijection as TorchflowsBijection
from torchflows.bijections.base import BijectiveComposition, invert
from torchflows.flows import Flow as Model
from torchflows.utils import flatten_event, unflatten_event
from zuko.distributions import DiagNormal
from zuko.lazy import Flow as LazyFlow
from zuko.lazy import UnconditionalDistribution

import mixer_bijectors as mb

from .suite import Suite, close
from .zuko_suite import Lazy

TORCHFLOWS = Suite(
    "torchflows", {"its own bijections, fitting, regularization": "not of layers"}
)
PYRO = Suite("pyro", {"transforms of pyro, guides": "not of layers"})
SBI = Suite("sbi", {"scores, mixtures, discrete estimators": "not of flows"})
FREIA = Suite("FrEIA", {"graphs of nodes, splits and Haar transforms": "none here"})


def keeps_shape(name: str, case: Case) -> bool:
    return case.latent_event is None


def is_vector(name: str, case: Case) -> bool:
    return len(case.event) == 1


def is_conditional(name: str, case: Case) -> bool:
    return is_vector(name, case) and case.context_features > 0


def float_context(case: Case, *batch: int) -> Tensor | None:
    return torch.randn(*batch, case.context_features) if case.context_features else None


def jacobian_of(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian of one event, as a matrix."""
    return torch.autograd.functional.jacobian(run, x).reshape(x.numel(), x.numel())


class Adapter(TorchflowsBijection):
    """A layer in torchflows, whose `forward` maps data to latents."""

    def __init__(self, case: Case) -> None:
        features = case.context_features
        super().__init__(case.event, (features,) if features else None)
        self.flow = case.build(torch.float32, "cpu")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mb.to_nflows(self.flow)(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mb.to_nflows(self.flow).inverse(z, context)


@TORCHFLOWS.each_layer(where=keeps_shape, layout=("contiguous", "strided"))
def events_flatten_by_view(case: Case, layout: str) -> None:
    adapter, context = Adapter(case), float_context(case, 4)
    x = case.data(torch.float32, "cpu")
    if layout == "strided":
        x = x.movedim(0, -1).contiguous().movedim(-1, 0)
    for run in (adapter, adapter.inverse):
        y, _ = run(x, context)
        flat = flatten_event(y, case.event)
        assert flat.shape == (4, x[0].numel())
        assert torch.equal(unflatten_event(flat, case.event), y)


@TORCHFLOWS.each_layer(where=keeps_shape)
def flows_have_densities(case: Case) -> None:
    flow = Model(BijectiveComposition([Adapter(case), Adapter(case)]))
    x, context = case.data(torch.float32, "cpu"), float_context(case, 4)
    log_prob = flow.log_prob(x, context=context)
    assert log_prob.shape == (4,) and log_prob.isfinite().all()
    back, _ = flow.bijection.inverse(flow.bijection.forward(x, context)[0], context)
    close(back, x, 1e-2)
    if context is None:
        assert flow.sample((5,)).shape == (5, *case.event)


@TORCHFLOWS.each_layer(where=keeps_shape)
def bijections_are_inverted_and_run_in_batches(case: Case) -> None:
    adapter, context = Adapter(case), float_context(case, 4)
    x = case.data(torch.float32, "cpu")
    want = adapter.forward(x, context)
    close(adapter.batch_forward(x, 3, context), want, 1e-5)
    close(invert(Adapter(case)).inverse(x, context), want, 0)


class Conditional(dist.conditional.ConditionalTransformModule):
    """A layer as a conditional transform of pyro."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def condition(self, context: Tensor) -> dist.torch_transform.TransformModule:
        return mb.to_torch_transform(self.flow, context=context)


def standard(case: Case) -> dist.Distribution:
    return dist.Normal(torch.zeros(case.event), torch.ones(case.event)).to_event(1)


@PYRO.each_layer(where=is_conditional, batch=((), (5,), (2, 5)))
def conditional_transforms_have_shapes(case: Case, batch: tuple[int, ...]) -> None:
    transform = Conditional(case.build(torch.float32, "cpu"))
    context = float_context(case, *batch)
    distribution = dist.conditional.ConditionalTransformedDistribution(
        standard(case), [transform]
    ).condition(context)
    x = distribution.sample((7,) if batch else (7, 1))
    assert distribution.log_prob(x).shape == x.shape[:-1]
    assert distribution.log_prob(torch.randn(*batch, *case.event)).shape == batch
    inverted = transform.inv.condition(context)
    z = torch.randn(*batch, *case.event)
    close(inverted(transform.condition(context)(z)), z, 1e-4)


@PYRO.each_layer(where=is_vector, inverse=(False, True))
def jacobians_agree(case: Case, inverse: bool) -> None:
    transform = mb.to_torch_transform(
        case.build(torch.float64, "cpu"), context=case.context(torch.float64, "cpu", 1)
    )
    transform = transform.inv if inverse else transform
    x = torch.randn(1, *case.event, dtype=torch.float64)
    want = torch.linalg.slogdet(jacobian_of(transform, x)).logabsdet
    close(transform.log_abs_det_jacobian(x, transform(x))[0], want, 1e-6)


@PYRO.each_layer(where=is_vector)
def parameters_are_in_the_store(case: Case) -> None:
    pyro.clear_param_store()
    layer = case.build(torch.float32, "cpu")
    transform = mb.to_torch_transform(layer, context=float_context(case))
    pyro.module("flow", transform)
    assert len(pyro.get_param_store()) == len(list(layer.parameters())) > 0
    distribution = dist.TransformedDistribution(standard(case), transform)
    with pyro.plate("data", 7):
        x = pyro.sample("x", distribution)
    assert x.shape == (7, *case.event)
    trace = pyro.poutine.trace(lambda: pyro.sample("x", distribution.expand((7,)))).get_trace()
    assert trace.log_prob_sum().isfinite()


def nflows_estimator(case: Case) -> NFlowsFlow:
    transform = mb.to_nflows(case.build(torch.float32, "cpu"))
    embedding = nn.Linear(9, case.context_features)
    net = Flow(transform, StandardNormal(case.event), embedding_net=embedding)
    return NFlowsFlow(net, torch.Size(case.event), torch.Size((9,)))


def zuko_estimator(case: Case) -> ZukoFlow:
    zeros = torch.zeros(case.event)
    base = UnconditionalDistribution(DiagNormal, zeros, zeros + 1, buffer=True)
    net = LazyFlow(Lazy(case.build(torch.float32, "cpu")), base)
    embedding = nn.Linear(9, case.context_features)
    return ZukoFlow(net, embedding, torch.Size(case.event), torch.Size((9,)))


ESTIMATORS = {"nflows": nflows_estimator, "zuko": zuko_estimator}


@SBI.each_layer(where=is_conditional, through=ESTIMATORS, conditions=(1, 5))
def estimators_have_shapes(case: Case, through: str, conditions: int) -> None:
    estimator = ESTIMATORS[through](case)
    condition = torch.randn(conditions, 9)
    x = torch.randn(6, conditions, *case.event)
    log_prob = estimator.log_prob(x, condition)
    assert log_prob.shape == (6, conditions) and log_prob.isfinite().all()
    assert estimator.loss(x[0], condition).shape == (conditions,)
    for shape in ((), (3,), (2, 3)):
        samples = estimator.sample(torch.Size(shape), condition)
        assert samples.shape == (*shape, conditions, *case.event)
    samples, log_prob = estimator.sample_and_log_prob(torch.Size((3,)), condition)
    assert samples.shape == (3, conditions, *case.event)
    assert log_prob.shape == (3, conditions)


@SBI.each_layer(where=is_conditional, through=ESTIMATORS)
def batches_of_conditions_are_independent(case: Case, through: str) -> None:
    estimator = ESTIMATORS[through](case)
    condition, x = torch.randn(5, 9), torch.randn(6, 5, *case.event)
    together = estimator.log_prob(x, condition)
    one_by_one = [estimator.log_prob(x[:, [i]], condition[[i]])[:, 0] for i in range(5)]
    close(together, torch.stack(one_by_one, dim=1), 1e-4)


@SBI.each_layer(where=is_conditional, through=ESTIMATORS)
def losses_train(case: Case, through: str) -> None:
    estimator = ESTIMATORS[through](case)
    estimator.loss(torch.randn(6, *case.event), torch.randn(6, 9)).mean().backward()
    for name, parameter in estimator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    if case.event[0] > 1:
        assert estimator.embedding_net.weight.grad.abs().sum() > 0


def invertible(
    case: Case, dtype: torch.dtype = torch.float64
) -> tuple[Callable[..., tuple[Tensor, Tensor]], Tensor, Tensor]:
    """The layer as one function with a flag for the direction, and inputs of either."""
    layer, context = case.build(dtype, "cpu"), case.context(dtype, "cpu")

    def run(x: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        rows = None if context is None else context[: len(x)]
        return layer(x, rows) if rev else layer.inverse(x, rows)

    return run, case.data(dtype, "cpu"), case.latents(dtype, "cpu")


@FREIA.each_layer(rev=(False, True))
def the_inverse_of_the_inverse_is_the_identity(case: Case, rev: bool) -> None:
    run, x, z = invertible(case)
    start = z if rev else x
    once, log_det = run(start, rev)
    back, log_det_back = run(once, not rev)
    close(back, start, 1e-8)
    close(log_det, -log_det_back, 1e-8)


@FREIA.each_layer(rev=(False, True))
def log_det_has_the_sign_of_its_direction(case: Case, rev: bool) -> None:
    run, x, z = invertible(case)
    start = (z if rev else x)[:1]
    matrix = jacobian_of(lambda x: run(x, rev)[0], start)
    close(run(start, rev)[1][0], torch.linalg.slogdet(matrix).logabsdet, 1e-7)


@FREIA.each_layer(rev=(False, True))
def log_det_is_that_of_finite_differences(case: Case, rev: bool) -> None:
    run, x, z = invertible(case)
    start = (z if rev else x)[0]
    step = 1e-6
    columns = []
    for i in range(start.numel()):
        nudge = torch.zeros(start.numel(), dtype=start.dtype)
        nudge[i] = step
        up, down = ((start + sign * nudge.view_as(start))[None] for sign in (1, -1))
        columns.append((run(up, rev)[0] - run(down, rev)[0]).flatten() / (2 * step))
    want = torch.linalg.slogdet(torch.stack(columns, dim=1)).logabsdet
    close(run(start[None], rev)[1][0], want, 1e-4)


@FREIA.each_layer(rev=(False, True))
def gradients_are_those_of_finite_differences(case: Case, rev: bool) -> None:
    run, x, z = invertible(case)
    start = (z if rev else x).clone().requires_grad_()
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(start.shape, generator=generator, dtype=start.dtype)

    def score(x: Tensor) -> Tensor:
        y, log_det = run(x, rev)
        return y.square().sum() + log_det.sum()

    (gradient,) = torch.autograd.grad(score(start), start)
    with torch.no_grad():
        step = 1e-6
        slope = (score(start + step * direction) - score(start - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, atol=1e-4, rtol=1e-4)


@FREIA.each_layer(where=keeps_shape)
def stacks_add_up_their_log_dets(case: Case) -> None:
    layer, context = case.build(torch.float64, "cpu"), case.context(torch.float64, "cpu")
    stack = mb.Chain([layer] * 3)
    x = case.data(torch.float64, "cpu")
    total = torch.zeros(4, dtype=torch.float64)
    z = x
    for _ in range(3):
        z, log_det = layer.inverse(z, context)
        total = total + log_det
    close(stack.inverse(x, context), (z, total), 1e-8)
    close(stack(z, context), (x, -total), 1e-6)
