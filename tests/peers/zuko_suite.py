"""What zuko asks of its transforms and lazy flows, through `to_torch_transform(...).inv`."""

import io

import torch
from conftest import UNIVARIATES, Case
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.distributions import DiagNormal
from zuko.lazy import Flow, LazyTransform, UnconditionalDistribution

import mixer_bijectors as mb

from .suite import Suite

SUITE = Suite(
    "zuko",
    {
        "adjacency matrices, passes of masked transforms": "no such options here",
        "Cos, Sin, Softclip, CircularShift, free-form and Bernstein transforms": "none here",
        "test_nn, test_mixtures, test_bayesian, test_utils": "not of transforms",
    },
)


class Lazy(LazyTransform):
    """A layer as zuko wants it: built for a context, from data to latent."""

    def __init__(self, flow: nn.Module, event_dim: int = 1) -> None:
        super().__init__()
        self.flow = flow
        self.event_dim = event_dim

    def forward(self, c: Tensor | None = None) -> Transform:
        return mb.to_torch_transform(self.flow, self.event_dim, context=c).inv


def flow_of(case: Case) -> Flow:
    features = case.event[0]
    base = UnconditionalDistribution(
        DiagNormal, torch.zeros(features), torch.ones(features), buffer=True
    )
    return Flow(Lazy(case.build(torch.float32, "cpu")), base)


def context_of(case: Case, *batch: int) -> Tensor | None:
    return torch.randn(*batch, case.context_features) if case.context_features else None


def is_vector(name: str, case: Case) -> bool:
    return len(case.event) == 1


def closed(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(a, b, atol=tolerance)


def check_jacobian(transform: Transform, x: Tensor, tolerance: float = 1e-4) -> Tensor:
    """log_det of one event is that of the Jacobian; returns the latter."""
    y = transform(x)
    size = x.numel()
    jacobian = torch.autograd.functional.jacobian(transform, x).reshape(size, size)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    assert closed(transform.log_abs_det_jacobian(x, y), log_det, tolerance)
    together, together_log_det = transform.call_and_ladj(x)
    assert closed(together, y) and closed(together_log_det, log_det, tolerance)
    return jacobian


@SUITE.each(univariate=UNIVARIATES)
def univariate_transforms(univariate: str) -> None:
    layer = mb.Elementwise(256, UNIVARIATES[univariate])
    nn.init.normal_(layer.params)
    transform = Lazy(layer)()
    bound = 5.0 if univariate != "circular" else UNIVARIATES[univariate].bound - 1e-2
    x = torch.linspace(-bound, bound, 256)
    y = transform(x)
    assert y.shape == x.shape
    back = transform.inv(y)
    if univariate == "circular":  # whose values are those of a circle
        back = back - 6 * ((back - x) / 6).round()
    assert closed(back, x)
    for run, inputs in ((transform, x), (transform.inv, y)):
        # A sum over 256 numbers: each may be off by what zuko allows for one.
        jacobian = check_jacobian(run, inputs, 256 * 1e-4)
        assert (jacobian - jacobian.diagonal().diag() == 0).all()


@SUITE.each_layer()
def multivariate_transforms(case: Case) -> None:
    layer = case.build(torch.float32, "cpu")
    latent_event = case.latent_event or case.event
    context = context_of(case)
    transform = mb.to_torch_transform(
        layer, len(case.event), latent_event_dim=len(latent_event), context=context
    ).inv
    x = torch.randn(256, *case.event)
    y = transform(x)
    assert y.shape == (256, *latent_event)
    assert transform.log_abs_det_jacobian(x, y).shape == (256,)
    assert closed(transform.inv(y), x)
    x = torch.randn(case.event)
    check_jacobian(transform, x)
    check_jacobian(transform.inv, transform(x))


@SUITE.each_layer(where=is_vector)
def densities_have_gradients(case: Case) -> None:
    flow = flow_of(case)
    x, c = torch.randn(256, *case.event), context_of(case)
    log_prob = flow(c).log_prob(x)
    assert log_prob.shape == (256,) and log_prob.requires_grad
    (-log_prob.mean()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name


@SUITE.each_layer(where=lambda name, case: is_vector(name, case) and "Continuous" not in name)
def evaluation_changes_no_density(case: Case) -> None:
    flow = flow_of(case).train()
    x, c = torch.randn(256, *case.event), context_of(case)
    log_prob = flow(c).log_prob(x)
    with torch.no_grad():
        assert torch.allclose(log_prob, flow.eval()(c).log_prob(x))


@SUITE.each_layer(where=is_vector)
def samples_have_gradients(case: Case) -> None:
    flow = flow_of(case)
    c = context_of(case)
    assert flow(c).sample((32,)).shape == (32, *case.event)
    assert flow(c).has_rsample
    flow(c).rsample().square().sum().sqrt().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name


@SUITE.each_layer(where=is_vector)
def contexts_are_batches(case: Case) -> None:
    flow = flow_of(case)
    x, c = torch.randn(256, *case.event), context_of(case, 256)
    transform = flow(c).transform
    y = transform(x)
    assert closed(transform.inv(y), x)
    if c is None:
        return
    distribution = flow(c)
    assert distribution.batch_shape == (256,)
    assert distribution.sample((2,)).shape == (2, 256, *case.event)
    assert distribution.log_prob(x[:1]).shape == (256,)
    one = torch.stack([flow(c[i]).log_prob(x[i]) for i in range(3)])
    assert closed(distribution.log_prob(x)[:3], one)
    assert flow(c[:3, None]).log_prob(x[:5]).shape == (3, 5)


@SUITE.each_layer(where=is_vector)
def jacobians_are_inverses(case: Case) -> None:
    transform = flow_of(case)(context_of(case)).transform
    x = torch.randn(case.event)
    jacobian = check_jacobian(transform, x, 1e-3)
    inverse = check_jacobian(transform.inv, transform(x), 1e-3)
    assert closed(jacobian, torch.linalg.inv(inverse), 1e-3)


@SUITE.each_layer(where=is_vector)
def flows_are_saved_whole(case: Case) -> None:
    flow = flow_of(case)
    file = io.BytesIO()
    torch.save(flow, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    x, c = torch.randn(case.event), context_of(case)
    assert torch.allclose(flow(c).log_prob(x), twin(c).log_prob(x))
    assert repr(flow) == repr(twin)


@SUITE.each_layer(where=is_vector)
def lazy_compositions_have_densities(case: Case) -> None:
    flow = flow_of(case)
    twice = Flow([Lazy(flow.transform.flow), Lazy(flow.transform.flow)], flow.base)
    c = context_of(case)
    x = torch.randn(7, *case.event)
    transform = flow(c).transform
    middle = transform(x)
    want = transform.log_abs_det_jacobian(x, middle) + flow(c).log_prob(middle)
    assert closed(twice(c).log_prob(x), want, 1e-3)
    assert twice(c).rsample((4,)).shape == (4, *case.event)
