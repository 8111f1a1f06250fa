"""What layers and models compute, as programs that run on any device.

The places where they synchronise are those that docs/design.md lists, with its reasons.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nflows.transforms as nt
import normflows as nf
import pytest
import torch
from conftest import LAYERS
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution

import mixer_bijectors as mb
from mixer_bijectors import images, presets
from mixer_bijectors.running.round_trip import treatment_of

SHAPE = (1, 6, 6)
SOLVES, INTEGRATES, WINDOWS = (
    "solvers.fixed_point.solve",
    "layers.continuous.transform",
    "solvers.patch_windows.sample_in_windows",
)
FIRST_BATCH = "layers.actnorm._awaits_first_batch"
LEFT_OVER = "running.incremental_made.__init__"


@dataclass(frozen=True)
class Program:
    """What is built on the CPU, what is computed of it, and where a GPU then synchronises."""

    build: Callable[[], Iterable[Any]]
    run: Callable[..., Any]
    places: frozenset[str]


PROGRAMS: dict[str, Program] = {}


def add(
    name: str, build: Callable[[], Iterable[Any]], run: Callable[..., Any], *places: str
) -> None:
    PROGRAMS[name] = Program(build, run, frozenset(places))


def randomised(module: nn.Module, spread: float = 0.05) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module.eval()


# Layers ------------------------------------------------------------------------------------


def both_ways(layer: Any, x: Tensor, z: Tensor, context: Tensor | None) -> Any:
    given = () if context is None else (context,)
    return layer.inverse(x, *given), layer.forward(z, *given)


def places_of(name: str) -> set[str]:
    kinds = {"ParallelInverse": SOLVES, "ContinuousFlow": INTEGRATES}
    return {kinds[kind]} if (kind := name.split("-")[0]) in kinds else set()


for name, case in LAYERS.items():
    add(
        name,
        lambda case=case: (
            case.build(torch.float32, "cpu"),
            case.data(torch.float32, "cpu"),
            case.latents(torch.float32, "cpu"),
            case.context(torch.float32, "cpu"),
        ),
        both_ways,
        *places_of(name),
    )

add(
    "ActNorm, first batch",
    lambda: (mb.ActNorm(5), torch.randn(9, 5)),
    lambda layer, x: (layer.inverse(x), layer.inverse(x), layer.shift, layer.log_scale),
    FIRST_BATCH,
)
add(
    "ActNorm, loaded",
    lambda: (randomised(mb.ActNorm(5)), mb.ActNorm(5)),
    lambda layer, other: (other.load_state_dict(layer.state_dict()), other.log_scale)[1],
    "layers.actnorm._mirror",
)
add(
    "ContinuousFlow, in training",
    lambda: (mb.ContinuousFlow(3, hidden_features=8), torch.randn(4, 3)),
    lambda layer, x: layer.train().inverse(x),
    INTEGRATES,
)
AUTOREGRESSIVE: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "Autoregressive": (lambda: mb.Autoregressive(6, hidden_features=8), ()),
    "normflows' MAF": (lambda: nf.flows.MaskedAffineAutoregressive(6, 8), ()),
    "normflows' spline": (
        lambda: nf.flows.AutoregressiveRationalQuadraticSpline(6, 1, 8),
        ("normflows",),
    ),
    "normflows' circular spline": (
        lambda: nf.flows.CircularAutoregressiveRationalQuadraticSpline(6, 1, 8, [0, 1]),
        ("normflows",),
    ),
    "nflows' MAF": (lambda: mb.from_nflows(nt.MaskedAffineAutoregressiveTransform(6, 8)), ()),
    "nflows' spline": (
        lambda: mb.from_nflows(
            nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                6, 8, tails="linear", tail_bound=3.0
            )
        ),
        ("nflows",),
    ),
}
for name, (make, places) in AUTOREGRESSIVE.items():
    for options in ({}, {"max_iter": 2}):
        add(
            f"ParallelInverse of {name}, {options}",
            lambda make=make, options=options: (
                mb.ParallelInverse(randomised(make(), 0.3), **options),
                torch.randn(16, 6),
            ),
            lambda layer, x: both_ways(layer, x, x, None),
            SOLVES,
            *places,
            *([LEFT_OVER] if options and "circular" not in name else []),
        )


# Models ------------------------------------------------------------------------------------


def tar_flow(**options: Any) -> Any:
    sizes = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}
    return mb.TarFlow(SHAPE, 1, **sizes | options)


SMALL: dict[str, Any] = {"num_layers": 2, "shift_every": 2}
NET = SMALL | {"hidden_features": 8}


def attention_hybrid(**options: Any) -> Any:
    mixer = {"shift_every": 2, "hidden_features": 8}
    return presets.attention_hybrid(SHAPE, 2, 2, mixer=mixer, **options)


MODELS: dict[str, Callable[[], Any]] = {
    "MixerFlow": lambda: mb.MixerFlow(SHAPE, 2, **NET),
    "MixerFlow of classes": lambda: mb.MixerFlow(SHAPE, 2, num_classes=3, **NET),
    **{
        f"presets.{name}": partial(
            getattr(presets, name), SHAPE, 2, **(SMALL if name == "kan_layer" else NET)
        )
        for name in presets.__all__
        # Densities of `residual` need gradients, and these a driver.
        if name not in ("attention_hybrid", "residual")
    },
    "presets.attention_hybrid": attention_hybrid,
    "presets.attention_hybrid of classes": partial(attention_hybrid, num_classes=3),
    "Jet of classes": lambda: mb.Jet(
        SHAPE,
        (2, 3),
        num_layers=5,
        channels=16,
        layers_per_coupling=1,
        head_dim=8,
        num_classes=3,
    ),
    "TarFlow": tar_flow,
    "TarFlow of classes": partial(tar_flow, num_classes=3),
    "TarFlow, volume-preserving": partial(tar_flow, volume_preserving=True),
    "HybridClassifier": lambda: mb.HybridClassifier(
        mb.MixerFlow(SHAPE, 2, **NET), 3, weight=0.1
    ),
}


def build_model(make: Callable[[], Any], count: int = 4) -> tuple[Any, Tensor, Tensor | None]:
    model = randomised(make())
    conditional = getattr(model, "num_classes", 0) and not hasattr(model, "head")
    labels = torch.arange(count) % 4 - 1 if conditional else None
    return model, 2 * torch.rand(count, *SHAPE) - 1, labels


def density(model: Any, x: Tensor, labels: Tensor | None) -> Any:
    given = () if labels is None else (labels,)
    if hasattr(model, "head"):
        y = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return model(x), model.loss(x, y), model.embed(x), model.log_prob(x)
    z, log_det = model.inverse_and_log_det(x, *given)
    back = model.forward_and_log_det(z, *given)
    return z, log_det, back, model.log_prob(x, *given), model.embed(x, *given)


def draw(model: Any, x: Tensor, labels: Tensor | None, **options: Any) -> Any:
    given = {} if labels is None else {"labels": labels}
    generator = torch.Generator(x.device).manual_seed(1)
    return model.sample(len(x), **given, generator=generator, temperature=0.9, **options)


for name, make in MODELS.items():
    places = [INTEGRATES] if "ffjord" in name else []
    add(f"{name}, density", partial(build_model, make), density, *places)
    add(f"{name}, samples", partial(build_model, make), draw, *places)

# Few patches are sampled one after the other, unless windows are asked for.
for method, places in {"auto": (), "parallel": (WINDOWS,), "sequential": ()}.items():
    for name, options in {
        "": {},
        ", guided": {"guidance": 1.5},
        ", guided by temperature": {
            "guidance": mb.Guidance(1.5, "scale", annealed=True, attention_temperature=0.5)
        },
    }.items():
        add(
            f"TarFlow of classes, {method}{name}",
            partial(build_model, partial(tar_flow, num_classes=3)),
            partial(draw, method=method, **options),
            *places,
        )
add(
    "ReversibleChain, first batch with gradients",
    lambda: (randomised(mb.Coupling(6, hidden_features=8)), torch.randn(4, 6)),
    lambda layer, x: (treatment_of(layer, x, None, inverse=True), x)[1],
    "running.round_trip.treatment_of",
)
add(
    "nf.NormalizingFlow, accelerated",
    lambda: (
        mb.accelerate_sampling(
            nf.NormalizingFlow(
                nf.distributions.DiagGaussian(6), [nf.flows.MaskedAffineAutoregressive(6, 8)]
            )
        ),
        torch.randn(4, 6),
    ),
    lambda model, x: (model.log_prob(x), model.sample(4)),
    SOLVES,
)


# Bridges and images ------------------------------------------------------------------------


def in_torch(layer: Any, x: Tensor) -> Any:
    normal = Normal(torch.zeros_like(x[0]), torch.ones_like(x[0]), validate_args=False)
    base = Independent(normal, 1, validate_args=False)
    model = TransformedDistribution(
        base, mb.to_torch_transform(layer, cache_size=1), validate_args=False
    )
    samples = model.rsample((4,))
    return samples, model.log_prob(samples), model.log_prob(x)


def with_shapes(layer: Any, x: Tensor) -> Any:
    transform = mb.to_torch_transform(layer, 3, latent_event_dim=2)
    return transform.inv(x), torch.zeros(transform.forward_shape((2, 9, 4)), device=x.device)


add(
    "to_nflows",
    lambda: (mb.to_nflows(randomised(mb.Coupling(6))), torch.randn(4, 6)),
    lambda t, x: (t(x), t.inverse(x)),
)
add(
    "from_nflows",
    lambda: (mb.from_nflows(nt.LULinear(6)), torch.randn(4, 6)),
    lambda layer, x: (layer.inverse(x), layer.forward(x)),
    "nflows",
)
add(
    "to_torch_transform",
    lambda: (randomised(mb.Coupling(6)), torch.randn(4, 6)),
    in_torch,
    "bridges.torch_transform._all_same",
)
add(
    "to_torch_transform of another shape",
    lambda: (
        mb.Chain([mb.ChannelMixing(mb.LULinear(4)), mb.Patchify(SHAPE, 2)]),
        torch.randn(2, *SHAPE),
    ),
    with_shapes,
)


def pixels(count: int = 4) -> Tensor:
    return torch.randint(256, (count, *SHAPE), dtype=torch.uint8)


def noisy(x: Tensor) -> Any:
    generator = torch.Generator(x.device).manual_seed(1)
    seeds = range(len(x))
    for options in ({}, {"generator": generator}, {"seeds": seeds}, {"dtype": torch.float64}):
        yield images.dequantize(x, **options)
        yield images.add_noise(x, 0.1, **options)


add(
    "images",
    lambda: (pixels(),),
    lambda x: [
        *noisy(x),
        images.quantize(images.dequantize(x)),
        images.bits_per_dim(x.flatten(1).float().sum(1), SHAPE),
        images.make_grid(x),
        images.make_grid(images.dequantize(x)),
    ],
)


def saved(x: Tensor) -> Tensor:
    with TemporaryDirectory() as folder:
        images.save_grid(Path(folder) / "grid.png", x)
    return x


add("images.save_grid", lambda: (pixels(),), saved, "images.grids.save_grid")


def denoised(model: Any, x: Tensor, labels: Tensor | None) -> Tensor:
    """With a score in place of the gradient, which needs a driver."""
    score = pytest.MonkeyPatch()
    with score.context() as patched:
        patched.setattr(torch.autograd, "grad", lambda y, x: (y + x.detach(),))
        return mb.denoise(model, x, 0.1, *(() if labels is None else (labels,)))


for name in ("MixerFlow", "TarFlow of classes"):
    add(f"denoise, {name}", partial(build_model, MODELS[name]), denoised)
