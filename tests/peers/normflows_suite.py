"""The tests that normflows ships, with other constructors, and its FlowTest on every layer."""

import importlib
import unittest
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import normflows as nf
import torch
from conftest import Case
from normflows.flows.flow_test import FlowTest

import mixer_bijectors as mb

from .suite import Suite

SUITE = Suite(
    "normflows",
    {
        "distributions/*_test, stochastic_test": "of distributions, not of layers",
        "planar_test, radial_test, periodic_test, transforms_test": "no such layer here",
        "made_test": "of the masks of normflows' own net",
        "wrapper_test with some features that are angles": (
            "a spline is circular for all features or for none; it runs with all"
        ),
        "mixing_test.test_permute": "no layer permutes features alone",
        "residual_test.test_residual_cnn": "no continuous layer on images",
        "coupling_test.test_cc_affine": "no affine layer of the class alone",
    },
)


@SUITE.each_layer(batch=(1, 3, 5), dtype=(torch.float32, torch.float64), trained=(False, True))
def flow_test(case: Case, batch: int, dtype: torch.dtype, trained: bool) -> None:
    """Both directions keep dtype and shape and undo each other."""
    layer = case.build(dtype, "cpu") if trained else case.make().to(dtype)
    layers = [layer]
    if (
        case.latent_event
    ):  # That test wants equal shapes: images to matrices and back have them.
        layers = [mb.Chain([nf.flows.Reverse(layer), layer])]
    if not case.context_features:  # which Reverse of normflows does not take
        layers.append(nf.flows.Reverse(layers[0]))
    for flow in layers:
        FlowTest().checkForwardInverse(
            flow, case.data(dtype, "cpu", batch), case.context(dtype, "cpu", batch)
        )


@SUITE.each("ContinuousFlow", features=(2, 4, 5), context_features=(0, 2), seed=range(4))
def continuous_flow_test(features: int, context_features: int, seed: int) -> None:
    """At the tolerance that it has by default, and at that of normflows' residual flows."""
    case = Case(
        lambda: mb.ContinuousFlow(features, context_features=context_features),
        (features,),
        context_features,
    )
    FlowTest().checkForwardInverse(
        case.build(torch.float32, "cpu", seed),
        case.data(torch.float32, "cpu", 3, seed),
        case.context(torch.float32, "cpu", 3),
        atol=1e-4,
        rtol=1e-4,
    )


def coupling(mask: torch.Tensor, *nets: object) -> mb.Coupling:
    return mb.Coupling(len(mask), hidden_features=8, reverse=bool(mask[0]))


def autoregressive(
    features: int, hidden_features: int = 32, context_features: int = 0, **options: object
) -> mb.Autoregressive:
    return mb.Autoregressive(
        features, hidden_features=hidden_features, context_features=context_features
    )


def spline_autoregressive(features: int, **options: object) -> mb.Autoregressive:
    return mb.Autoregressive(features, mb.RationalQuadratic(10), hidden_features=30)


def wrapped(layer: type) -> object:
    """With the arguments of normflows' wrappers of splines, as its tests give them."""

    def build(
        num_input_channels: int,
        num_hidden_channels: int = 32,
        num_blocks: int = 2,
        num_context_channels: int | None = None,
    ) -> nf.flows.Flow:
        return layer(
            num_input_channels,
            mb.RationalQuadratic(),
            hidden_features=num_hidden_channels,
            num_blocks=num_blocks,
            context_features=num_context_channels or 0,
        )

    return build


def circular(layer: type) -> object:
    """All features are angles of one period, the largest of those that the test asks for."""

    def build(
        features: int,
        blocks: int,
        hidden: int,
        indices: list[int],
        *,
        tail_bound: torch.Tensor,
        num_context_channels: int | None,
    ) -> nf.flows.Flow:
        return layer(
            features,
            mb.RationalQuadratic(bound=float(tail_bound.max()), circular=True),
            hidden_features=32,
            context_features=num_context_channels or 0,
        )

    return build


def glow_block(
    channels: int, hidden_channels: int, *, scale: bool = True, **options: object
) -> mb.Chain:
    univariate = mb.Affine() if scale else mb.Additive()
    flows = [mb.Coupling(channels, univariate, hidden_features=hidden_channels)]
    flows += [mb.LULinear(channels), mb.ActNorm(channels)]
    return mb.Chain([mb.PixelMixing(flow) for flow in flows])


def piecewise_coupling(shape: list[int], **options: object) -> tuple[nf.flows.Flow, None]:
    flow = mb.Coupling(shape[0], mb.RationalQuadratic(), hidden_features=30)
    return (flow if len(shape) == 1 else mb.PixelMixing(flow)), None


def continuous(net: nf.nets.LipschitzMLP, **options: object) -> mb.ContinuousFlow:
    (first, *_) = (m for m in net.modules() if hasattr(m, "in_features"))
    # In evaluation mode the trace is exact, as those of that test are.
    return mb.ContinuousFlow(first.in_features).eval()


def spline(
    inputs: torch.Tensor,
    unnormalized_widths: torch.Tensor,
    unnormalized_heights: torch.Tensor,
    unnormalized_derivatives: torch.Tensor,
    inverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    slopes = unnormalized_derivatives[..., 1:-1]
    params = torch.cat((unnormalized_widths, unnormalized_heights, slopes), dim=-1)
    return mb.RationalQuadratic(unnormalized_widths.shape[-1])(inputs, params, inverse)


# Test module and class: test methods, and what they call, replaced.
SHIPPED = {
    ("core_test", "CoreTest"): (
        "test_normalizing_flow test_conditional_normalizing_flow test_cc_normalizing_flow "
        "test_multiscale_flow test_normalizing_flow_vae",
        {
            "MaskedAffineFlow": coupling,
            "MaskedAffineAutoregressive": autoregressive,
            "AutoregressiveRationalQuadraticSpline": wrapped(mb.Autoregressive),
            "GlowBlock": glow_block,
        },
    ),
    ("flows.affine.autoregressive_test", "MaskedAffineAutoregressiveTest"): (
        "test_maf",
        {"autoregressive.MaskedAffineAutoregressive": autoregressive},
    ),
    ("flows.affine.coupling_test", "CouplingTest"): (
        "test_mask_affine",
        {"MaskedAffineFlow": coupling},
    ),
    ("flows.affine.glow_test", "GlowTest"): ("test_glow", {"GlowBlock": glow_block}),
    (
        "flows.neural_spline.autoregressive_test",
        "MaskedPiecewiseRationalQuadraticAutoregressiveFlowTest",
    ): (
        "test_mprqas",
        {
            "autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive": (
                spline_autoregressive
            )
        },
    ),
    ("flows.neural_spline.coupling_test", "PiecewiseCouplingTransformTest"): (
        "test_rqcs test_rqcs_unconditional",
        {"create_coupling_transform": piecewise_coupling},
    ),
    ("flows.neural_spline.wrapper_test", "NsfWrapperTest"): (
        "test_normal_nsf test_circular_nsf",
        {
            "CoupledRationalQuadraticSpline": wrapped(mb.Coupling),
            "AutoregressiveRationalQuadraticSpline": wrapped(mb.Autoregressive),
            "CircularCoupledRationalQuadraticSpline": circular(mb.Coupling),
            "CircularAutoregressiveRationalQuadraticSpline": circular(mb.Autoregressive),
        },
    ),
    ("flows.base_test", "BaseTest"): (
        "test_reverse test_composite",
        {"AffineConstFlow": lambda shape: mb.Elementwise(*shape), "Composite": mb.Chain},
    ),
    ("flows.mixing_test", "MixingTest"): (
        "test_invertible_affine test_lu_linear_permute",
        {
            "InvertibleAffine": lambda n, use_lu: mb.LULinear(n, identity_init=False),
            "LULinearPermute": mb.LULinear,
        },
    ),
    ("flows.residual_test", "ResidualTest"): ("test_residual_mlp", {"Residual": continuous}),
    ("utils.splines_test", "RationalQuadraticSplineTest"): (
        "test_forward_inverse_are_consistent",
        {"splines.rational_quadratic_spline": spline},
    ),
    ("utils.splines_test", "UnconstrainedRationalQuadraticSplineTest"): (
        "test_forward_inverse_are_consistent",
        {"splines.unconstrained_rational_quadratic_spline": spline},
    ),
}


@SUITE.each(
    test=[
        (*where, test, trained)
        for where, (tests, _) in SHIPPED.items()
        for test in tests.split()
        for trained in (False, True)
        # It compares a flow with its reverse, which are equal for the identity alone.
        if not (trained and test == "test_reverse")
    ]
)
def shipped(test: tuple[str, str, str, bool]) -> None:
    """A test of normflows as it is, but for the constructors that it calls.

    Layers here start as the identity, which would hide mistakes: `trained` moves parameters.
    """
    name, kind, method, trained = test
    replaced: dict[str, object] = {}
    for target, build in SHIPPED[name, kind][1].items():
        build = perturbed(build) if trained else build
        target, *attribute = target.split(".")
        replaced[target] = SimpleNamespace(**{attribute[0]: build}) if attribute else build
    module = importlib.import_module(f"normflows.{name}")
    result = unittest.TestResult()
    with mock.patch.multiple(module, **replaced):
        getattr(module, kind)(method).run(result)
    for _, trace in (*result.failures, *result.errors):
        raise AssertionError(trace)
    assert result.testsRun == 1


def perturbed(build: Callable[..., object]) -> Callable[..., object]:
    """What builds the same with other parameters."""

    def build_perturbed(*arguments: object, **options: object) -> object:
        built = build(*arguments, **options)
        for module in built if isinstance(built, tuple) else (built,):
            if isinstance(module, torch.nn.Module):
                for parameter in module.parameters():
                    parameter.data += 0.02 * torch.randn_like(parameter)
        return built

    return build_perturbed
