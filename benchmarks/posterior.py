"""Neural posterior estimation with sbi: its own spline flow against one of these layers.

Two moons (Greenberg et al., 2019), a linear Gaussian model of five parameters, and two
parameters seen through quadratic functions; the same simulations, optimiser, batches and number
of epochs for both. Measured are the mean log-density of parameters given simulations that
neither has seen, and, where the posterior is known, samples of it at test observations against
exact ones: the accuracy of a classifier that tells them apart, 0.5 being the best (C2ST), and
the errors of mean and standard deviation in exact standard deviations.

    python benchmarks/posterior.py --simulations 5000 --epochs 60
"""

import argparse
import math
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

import torch
from common import print_table, write_json
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from sbi.inference import NPE
from sbi.neural_nets.estimators import NFlowsFlow
from sbi.utils import BoxUniform
from sbi.utils.metrics import c2st
from sbi.utils.sbiutils import standardizing_net
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import mixer_bijectors as mb

SAMPLES = 1000
TESTS = 2000


def spline_flow(theta: Tensor, x: Tensor) -> NFlowsFlow:
    """Density of theta given x: spline couplings that alternate between the halves."""
    features = theta.shape[1]
    flows: list[nn.Module] = []
    for reverse in (False, True, False, True, False):
        coupling = mb.Coupling(
            features,
            mb.RationalQuadratic(num_bins=10),
            hidden_features=50,
            context_features=x.shape[1],
            reverse=reverse,
        )
        flows += [coupling, mb.LULinear(features)]
    transform = mb.to_nflows(mb.Chain([*flows, mb.ActNorm(features)]))
    flow = Flow(transform, StandardNormal([features]), standardizing_net(x))
    return NFlowsFlow(flow, theta[0].shape, x[0].shape)


class Task(NamedTuple):
    """A prior, a simulator, and the posterior that it has."""

    prior: Any
    simulate: Callable[[Tensor], Tensor]
    # Exact samples at an observation, where they can be had.
    posterior: Callable[[Tensor], Tensor] | None = None


def two_moons() -> Task:
    def crescent(count: int) -> Tensor:
        angle = math.pi * (torch.rand(count) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(count)
        return torch.stack((radius * angle.cos() + 0.25, radius * angle.sin()), dim=1)

    def simulate(theta: Tensor) -> Tensor:
        turned = torch.stack((-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]), dim=1)
        return crescent(len(theta)) + turned / 2**0.5

    def posterior(x: Tensor) -> Tensor:
        turned = 2**0.5 * (x - crescent(4 * SAMPLES))
        total = turned[:, 0] * (2 * torch.randint(2, (len(turned),)) - 1)
        theta = torch.stack((total - turned[:, 1], total + turned[:, 1]), dim=1) / 2
        inside = (theta.abs() <= 1).all(1) & (turned[:, 0] <= 0)
        return theta[inside][:SAMPLES]

    return Task(BoxUniform(-torch.ones(2), torch.ones(2)), simulate, posterior)


def linear_gaussian() -> Task:
    features, noise = 5, 0.5
    matrix = torch.randn(features, features, generator=torch.Generator().manual_seed(0))

    def simulate(theta: Tensor) -> Tensor:
        return theta @ matrix.T + noise * torch.randn_like(theta)

    def posterior(x: Tensor) -> Tensor:
        covariance = (torch.eye(features) + matrix.T @ matrix / noise**2).inverse()
        mean = covariance @ matrix.T @ x / noise**2
        return MultivariateNormal(mean, covariance).sample((SAMPLES,))

    prior = MultivariateNormal(torch.zeros(features), torch.eye(features))
    return Task(prior, simulate, posterior)


def quadratic() -> Task:
    def simulate(theta: Tensor) -> Tensor:
        first, second = theta.unbind(1)
        seen = torch.stack((first**2 + second, first * second), dim=1)
        return seen + 0.05 * torch.randn_like(theta)

    return Task(BoxUniform(-torch.ones(2), torch.ones(2)), simulate)


TASKS = {"two moons": two_moons, "linear Gaussian": linear_gaussian, "quadratic": quadratic}


def run(
    task: Task, estimator: Any, simulations: int, epochs: int, observations: int
) -> dict[str, Any]:
    torch.manual_seed(0)
    theta = task.prior.sample((simulations,))
    x = task.simulate(theta)
    start = time.perf_counter()
    inference = NPE(task.prior, density_estimator=estimator, show_progress_bars=False)
    net = inference.append_simulations(theta, x).train(
        training_batch_size=100, max_num_epochs=epochs, stop_after_epochs=epochs
    )
    seconds = time.perf_counter() - start
    theta = task.prior.sample((TESTS,))
    with torch.no_grad():
        log_q = net.log_prob(theta.unsqueeze(0), condition=task.simulate(theta)).mean()
    result = {
        "parameters": f"{sum(p.numel() for p in net.parameters()):,}",
        "training, s": f"{seconds:.0f}",
        "test log q": f"{float(log_q):.2f}",
    }
    if task.posterior is None:
        return result
    tests = task.simulate(task.prior.sample((observations,)))
    exact = [task.posterior(x_o) for x_o in tests]
    posterior = inference.build_posterior(net)
    start = time.perf_counter()
    samples = [
        posterior.sample((len(e),), x=x_o, show_progress_bars=False)
        for x_o, e in zip(tests, exact)
    ]
    sampling = time.perf_counter() - start
    pairs = list(zip(samples, exact))
    means = fmean(float(((s.mean(0) - e.mean(0)) / e.std(0)).abs().mean()) for s, e in pairs)
    deviations = fmean(float((s.std(0) / e.std(0) - 1).abs().mean()) for s, e in pairs)
    return {
        **result,
        "sampling, s": f"{sampling:.2f}",
        "C2ST": f"{fmean(float(c2st(*pair)) for pair in pairs):.3f}",
        "error of mean": f"{means:.3f}",
        "error of deviation": f"{deviations:.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--simulations", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    sides: dict[str, Any] = {"sbi's nsf": "nsf", "mixer_bijectors": spline_flow}
    rows = []
    for name in arguments.tasks:
        for side, estimator in sides.items():
            result = run(
                TASKS[name](),
                estimator,
                arguments.simulations,
                arguments.epochs,
                arguments.observations,
            )
            rows.append({"task": name, "density estimator": side, **result})
            print(rows[-1], flush=True)
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
