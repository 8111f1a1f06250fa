"""What nflows asks of its flows, with layers through `to_nflows`."""

import torch
from conftest import Case
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow
from torch import Tensor, nn

import mixer_bijectors as mb

from .nflows_suite import SIZED, check_good, transform_of
from .suite import Suite, close

SUITE = Suite(
    "nflows, flows",
    {
        "test_transform_to_noise with 20 contexts for 10 inputs": (
            "a context of another batch is refused, also by layers that read none"
        ),
        "discrete distributions, mixtures": "not of layers",
    },
)


def contexts_of(case: Case, rows: int) -> list[Tensor | None]:
    """None and one that nothing reads, or the one that the layer reads."""
    context = case.context(torch.float32, "cpu", rows)
    return [None, torch.randn(rows, 5, 6)] if context is None else [context]


@SUITE.each_layer()
def flows_have_densities_and_samples(case: Case) -> None:
    transform, x, z, _ = transform_of(case)
    flow = Flow(transform, StandardNormal(z.shape[1:]))
    for context in contexts_of(case, 10):
        log_prob = flow.log_prob(x, context=context)
        check_good(log_prob, (10,))
        check_good(flow.transform_to_noise(x, context=context), z.shape)
        noise, log_det = transform(x, context)
        close(log_prob, StandardNormal(z.shape[1:]).log_prob(noise) + log_det, 1e-5)
    for context in contexts_of(case, 4):
        batch = (3,) if context is None else (4, 3)
        if context is None:
            check_good(flow.sample(3, batch_size=2), (3, *case.event))
        check_good(flow.sample(3, context=context), (*batch, *case.event))
        x, log_prob = flow.sample_and_log_prob(3, context=context)
        check_good(x, (*batch, *case.event))
        check_good(log_prob, batch)
        rows = None if context is None else context.repeat_interleave(3, 0)
        want = flow.log_prob(x.flatten(0, len(batch) - 1), context=rows)
        close(log_prob.flatten(), want, 1e-3)


@SUITE.each_layer(where=lambda name, case: case.context_features > 0)
def flows_embed_contexts(case: Case) -> None:
    transform, x, z, _ = transform_of(case)
    embedding = nn.Linear(7, case.context_features)
    flow = Flow(transform, StandardNormal(z.shape[1:]), embedding_net=embedding)
    raw = torch.randn(10, 7)
    log_prob = flow.log_prob(x, context=raw)
    want = Flow(transform, StandardNormal(z.shape[1:])).log_prob(x, context=embedding(raw))
    close(log_prob, want, 0)
    log_prob.sum().backward()
    assert embedding.weight.grad.abs().sum() > 0
    check_good(flow.sample(3, context=raw), (10, 3, *case.event))


@SUITE.each(layer=SIZED)
def flows_have_conditional_bases(layer: str) -> None:
    context = torch.randn(10, 12)
    base = ConditionalDiagonalNormal([6])
    flow = Flow(mb.to_nflows(SIZED[layer](6).eval()), base)
    check_good(flow.log_prob(torch.randn(10, 6), context=context), (10,))
    x, log_prob = flow.sample_and_log_prob(3, context=context)
    check_good(x, (10, 3, 6))
    check_good(log_prob, (10, 3))
