"""The registry of public layers, which the battery runs through, and the chosen device."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import normflows as nf
import pytest
import torch
from torch import Tensor, nn

import mixer_bijectors as mb
from mixer_bijectors.univariate import Univariate

torch.set_num_threads(1)  # tests run side by side, on tensors too small for more
IMAGE = (3, 4, 6)  # small, not square, patches of 2 x 2: a matrix of 6 x 12, shifted 2 x 12


@dataclass(frozen=True)
class Case:
    """A layer, the event shape of its data, and its context if it takes one.

    `rounding` is how far from the identity it may start; an `adaptive` layer looks at values to
    choose its steps, so it neither compiles nor runs on the meta device; `spread` is that of
    random parameters, small for a layer without bounds.
    """

    make: Callable[[], nn.Module]
    event: tuple[int, ...]
    context_features: int = 0
    latent_event: tuple[int, ...] | None = None
    rounding: float = 0.0
    adaptive: bool = False
    spread: float = 0.2

    def build(self, dtype: torch.dtype, device: str, seed: int = 0) -> nn.Module:
        """The layer in evaluation mode with random parameters, since zeros hide mistakes."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        layer = self.make().eval()
        with torch.no_grad():
            for parameter in layer.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(self.spread * noise)
        return layer.to(device, dtype)

    def data(self, dtype: torch.dtype, device: str, batch: int = 4, seed: int = 0) -> Tensor:
        return self._randn((batch, *self.event), seed, dtype, device)

    def latents(self, dtype: torch.dtype, device: str, batch: int = 4) -> Tensor:
        return self._randn((batch, *(self.latent_event or self.event)), 1, dtype, device)

    def context(self, dtype: torch.dtype, device: str, batch: int = 4) -> Tensor | None:
        if not self.context_features:
            return None
        return self._randn((batch, self.context_features), 2, dtype, device)

    def _randn(
        self, shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: str
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def _image_layer() -> mb.Chain:
    """A matrix layer in an image model, the way the docs show it."""
    patchify = mb.Patchify(IMAGE, 2)
    inside = mb.ChannelMixing(mb.Coupling(12, hidden_features=8))
    return mb.Chain([nf.flows.Reverse(patchify), inside, patchify])


UNIVARIATES: dict[str, Univariate] = {
    "additive": mb.Additive(),
    "affine": mb.Affine(),
    "sigmoid": mb.SigmoidAffine(),
    "spline": mb.RationalQuadratic(num_bins=5),
    "circular": mb.RationalQuadratic(num_bins=4, circular=True),
    "softplus": mb.RationalQuadratic(num_bins=4, slopes="softplus"),
    "bspline": mb.MonotoneBSpline(),
    "inverse": mb.Inverse(mb.RationalQuadratic(num_bins=4)),
}
NETS: dict[str, Callable[..., nn.Module]] = {"mlp": mb.nets.ResidualMLP, "kan": mb.nets.KAN}
# Each univariate and each net, with and without context, though not every combination.
COUPLINGS = [
    *((univariate, "mlp", 3) for univariate in UNIVARIATES),
    ("affine", "mlp", 0),
    ("affine", "kan", 0),
    ("spline", "mlp", 0),
    ("spline", "kan", 3),
]
MATRIX_NETS: dict[str, Callable[..., nn.Module]] = {
    "conv": partial(mb.nets.PatchConv, hidden_features=8, num_blocks=1),
    "mixer": partial(mb.nets.Mixer, hidden_features=8, num_blocks=1),
    "transformer": partial(mb.nets.Transformer, channels=16, head_dim=8, num_layers=1),
}
MATRIX_COUPLINGS: dict[str, dict[str, Any]] = {
    **{name: {"net": net} for name, net in MATRIX_NETS.items()},
    "reverse": {"net": MATRIX_NETS["conv"], "reverse": True},
    "checkerboard": {"net": MATRIX_NETS["conv"], "axis": "patches"},
    "rows": {"net": MATRIX_NETS["mixer"], "axis": "patches", "mask": "rows", "reverse": True},
    "columns-spline": {
        "net": MATRIX_NETS["transformer"],
        "axis": "patches",
        "mask": "columns",
        "univariate": UNIVARIATES["spline"],
    },
}


def _coupling(univariate: str, net: str, context_features: int) -> Case:
    return Case(
        lambda: mb.Coupling(
            5,
            UNIVARIATES[univariate],
            hidden_features=8,
            net=NETS[net],
            context_features=context_features,
        ),
        (5,),
        context_features,
        rounding=_rounding(univariate),
        spread=_spread(univariate),
    )


def _autoregressive(univariate: str, context_features: int) -> Case:
    return Case(
        lambda: mb.Autoregressive(
            3, UNIVARIATES[univariate], hidden_features=8, context_features=context_features
        ),
        (3,),
        context_features,
        rounding=_rounding(univariate),
        spread=_spread(univariate),
    )


def _spread(univariate: str) -> float:
    # Slopes by softplus are not bounded, and large ones show the rounding of their parameters.
    return 0.1 if univariate == "softplus" else 0.2


def _rounding(univariate: str) -> float:
    return 0.0 if univariate in ("additive", "affine", "sigmoid") else 2e-6


LAYERS: dict[str, Case] = {
    "Patchify": Case(lambda: mb.Patchify(IMAGE, 2), IMAGE, latent_event=(6, 12)),
    "Patchify-tall": Case(lambda: mb.Patchify(IMAGE, (4, 1)), IMAGE, latent_event=(6, 12)),
    "Shift": Case(lambda: mb.Shift(mb.ChannelMixing(mb.LULinear(12)), IMAGE, 2), (6, 12)),
    "Shift-odd": Case(
        lambda: mb.Shift(mb.PatchMixing(mb.LULinear(7)), (1, 6, 7), (3, 1), offset=(2, 0)),
        (14, 3),
    ),
    "CyclicShift": Case(lambda: mb.CyclicShift(IMAGE, 2), (6, 12)),
    "CyclicShift-offset": Case(lambda: mb.CyclicShift(IMAGE, 2, offset=(3, 1)), (6, 12)),
    "ChannelMixing": Case(lambda: mb.ChannelMixing(mb.Coupling(5, hidden_features=8)), (3, 5)),
    "ChannelMixing-context": Case(
        lambda: mb.ChannelMixing(mb.Coupling(5, hidden_features=8, context_features=2)),
        (3, 5),
        context_features=2,
    ),
    "PatchMixing": Case(lambda: mb.PatchMixing(mb.Coupling(3, hidden_features=8)), (3, 5)),
    "PatchMixing-context": Case(
        lambda: mb.PatchMixing(mb.Coupling(3, hidden_features=8, context_features=2)),
        (3, 5),
        context_features=2,
    ),
    "WindowMixing": Case(
        lambda: mb.WindowMixing(
            mb.Coupling(4, hidden_features=8, context_features=2), (2, 4), window=2
        ),
        (8, 3),
        context_features=2,
    ),
    **{
        f"MatrixCoupling-{name}{'-context' if context_features else ''}": Case(
            partial(mb.MatrixCoupling, (2, 4), 5, context_features=context_features, **options),
            (8, 5),
            context_features,
            rounding=0.0 if "spline" not in name else 2e-6,
            spread=0.1,
        )
        for name, options in MATRIX_COUPLINGS.items()
        for context_features in (0, 3)
        if not context_features or name in ("conv", "rows", "columns-spline")
    },
    "PixelMixing": Case(lambda: mb.PixelMixing(mb.LULinear(3)), (3, 2, 4)),
    "MixingLayer": Case(lambda: mb.MixingLayer(3, 5, hidden_features=8), (3, 5)),
    "MixingLayer-neighbourhood": Case(
        lambda: mb.MixingLayer(
            (2, 3), 5, hidden_features=8, neighbourhood=3, context_features=2
        ),
        (6, 5),
        context_features=2,
    ),
    "MixingLayer-window": Case(
        lambda: mb.MixingLayer((2, 4), 3, hidden_features=8, window=2), (8, 3)
    ),
    "Chain": Case(lambda: mb.Chain([mb.ActNorm(5), nf.flows.Permute(5)]), (5,)),
    "Chain-image": Case(_image_layer, IMAGE),
    "ReversibleChain": Case(
        lambda: mb.ReversibleChain([mb.Coupling(5, hidden_features=8), mb.LULinear(5)]), (5,)
    ),
    "ReversibleChain-context": Case(
        lambda: mb.ReversibleChain(
            [
                mb.Coupling(5, hidden_features=8, context_features=2, reverse=reverse)
                for reverse in (False, True)
            ]
        ),
        (5,),
        context_features=2,
    ),
    "ActNorm": Case(lambda: mb.ActNorm(5), (5,)),
    "LULinear": Case(lambda: mb.LULinear(5), (5,)),
    "LULinear-rotation": Case(lambda: mb.LULinear(5, identity_init=False), (5,)),
    "Coupling-even": Case(lambda: mb.Coupling(6, hidden_features=8), (6,)),
    "Coupling-reverse": Case(lambda: mb.Coupling(5, hidden_features=8, reverse=True), (5,)),
    **{
        f"Coupling-{univariate}-{net}{'-context' if context_features else ''}": _coupling(
            univariate, net, context_features
        )
        for univariate, net, context_features in COUPLINGS
    },
    "Autoregressive-reverse": Case(
        lambda: mb.Autoregressive(3, hidden_features=8, reverse=True), (3,)
    ),
    **{
        f"Autoregressive-{univariate}{'-context' if context_features else ''}": _autoregressive(
            univariate, context_features
        )
        for univariate in UNIVARIATES
        for context_features in (0, 3)
        if context_features or univariate in ("affine", "spline")
    },
    **{
        f"Elementwise-{name}": Case(
            partial(mb.Elementwise, 5, univariate), (5,), rounding=_rounding(name)
        )
        for name, univariate in UNIVARIATES.items()
    },
    "ParallelInverse": Case(
        lambda: mb.ParallelInverse(mb.Autoregressive(5, hidden_features=8)), (5,), adaptive=True
    ),
    "ParallelInverse-context": Case(
        lambda: mb.ParallelInverse(
            mb.Autoregressive(5, mb.RationalQuadratic(), hidden_features=8, context_features=2)
        ),
        (5,),
        context_features=2,
        rounding=2e-6,
        adaptive=True,
    ),
    **{
        f"TransformerAutoregressive{name}": Case(
            partial(mb.TransformerAutoregressive, 5, 3, channels=16, head_dim=8, **options),
            (5, 3),
            context_features=options.get("num_classes", 0),
            spread=0.1,
        )
        for name, options in {
            "": {},
            "-reverse": {"reverse": True, "num_layers": 1},
            "-classes": {"num_classes": 3},
        }.items()
    },
    "KANLayer": Case(lambda: mb.KANLayer(5), (5,), rounding=2e-6),
    "ContinuousFlow": Case(
        lambda: mb.ContinuousFlow(3, hidden_features=8, tol=1e-12),
        (3,),
        rounding=2e-6,
        adaptive=True,
    ),
    "ContinuousFlow-context": Case(
        lambda: mb.ContinuousFlow(3, hidden_features=8, context_features=2, tol=1e-12),
        (3,),
        context_features=2,
        rounding=2e-6,
        adaptive=True,
    ),
}


def train(
    model: nf.NormalizingFlow, x: Tensor, steps: int, learning_rate: float
) -> list[float]:
    """Losses of a few steps of maximum likelihood on one batch."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    losses = []
    for _ in range(steps):
        loss = model.forward_kld(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nf.utils.update_lipschitz(model, 5)
        losses.append(loss.item())
    return losses


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device to run the battery on: cpu, cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture(params=LAYERS, ids=str)
def case(request: pytest.FixtureRequest) -> Any:
    return LAYERS[request.param]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> None:
    """Compiled functions of other tests would count towards the limit of recompilations."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of Hugging Face's datasets for each test, hidden beside its files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    datasets.disable_progress_bars()


@pytest.fixture
def source() -> Any:
    """Images of 24 greys with a ramp, and three labels."""
    from mixer_bijectors.train.data.batches import TensorSource

    images = torch.arange(24, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 6)
    ramp = torch.arange(24, dtype=torch.uint8).view(1, 1, 4, 6)
    return TensorSource((images + 10 * ramp).contiguous(), torch.arange(24) % 3)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a MixerFlow with averaged weights."""
    from commands import TINY
    from tiny_runs import AVERAGES, fit

    return fit(tmp_path_factory.mktemp("run"), *TINY, *AVERAGES)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps."""
    from commands import fit

    folder = tmp_path_factory.mktemp("short")
    fit(folder, 2)
    return folder / "version_0"


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a class-conditional TarFlow of noisy images."""
    from tiny_runs import CONDITIONAL, fit

    return fit(tmp_path_factory.mktemp("conditional"), *CONDITIONAL)


@pytest.fixture
def model(run: Path, tmp_path: Path) -> nn.Module:
    """The model of `run`, put together by hand from its exported weights."""
    from commands import task
    from safetensors.torch import load_file
    from tiny_runs import make_flow

    task("export", run, tmp_path / "model.safetensors")
    flow = make_flow()
    flow.load_state_dict(load_file(tmp_path / "model.safetensors"))
    return flow.eval()
