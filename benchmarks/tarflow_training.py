"""A training step of TarFlow against one of its authors' code, float32, same sizes and weights.

Seconds for a step (loss, gradients, AdamW) and the most memory that its tensors held at once.
`--reference` is a checkout of https://github.com/apple/ml-tarflow.

    python benchmarks/tarflow_training.py --reference ../ml-tarflow --json training.json
"""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import peak_memory, print_table, time_in_turn, timing_parser, write_json
from torch import Tensor, nn

import mixer_bijectors as mb

# image side, patch side, channels, blocks, layers for each block, batch
SIZES = [
    (32, 4, 128, 4, 2, 32),
    (32, 2, 128, 4, 2, 8),
    (64, 2, 64, 4, 1, 4),
    (32, 2, 384, 2, 4, 4),
]


def make_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def mean_nats(model: mb.TarFlow, x: Tensor) -> Tensor:
    """Per dimension, as the authors' loss is."""
    return model.forward_kld(x) / x[0].numel()


def compare(
    side: int, patch: int, channels: int, blocks: int, layers: int, batch: int, reference: Any
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Any]]:
    torch.manual_seed(0)
    x = torch.rand(batch, 3, side, side) * 2 - 1

    def build(checkpointing: bool) -> mb.TarFlow:
        return mb.TarFlow(
            (3, side, side),
            patch,
            channels=channels,
            num_blocks=blocks,
            layers_per_block=layers,
            checkpointing=checkpointing,
        )

    start = build(False)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    steps = {}
    for name, checkpointing in (("here", False), ("here, checkpointing", True)):
        model = build(checkpointing)
        model.load_state_dict(start.state_dict())
        steps[name] = make_step(model, partial(mean_nats, model, x))
    if reference is not None:
        authors = reference.Model(3, side, patch, channels, blocks, layers)
        authors.load_state_dict(start.to_reference())

        def loss() -> Tensor:
            z, _, log_det = authors(x)
            return authors.get_loss(z, log_det)

        steps["authors"] = make_step(authors, loss)
    image = f"{side} x {side}, {(side // patch) ** 2} patches"
    row = {"image": image, "channels": channels, "blocks x layers": f"{blocks} x {layers}"}
    return steps, row | {"batch": batch}


def main() -> None:
    parser = timing_parser(__doc__)
    parser.add_argument("--reference", help="checkout of the authors' code")
    arguments = parser.parse_args()
    reference = None
    if arguments.reference:
        sys.path.insert(0, arguments.reference)
        reference = importlib.import_module("transformer_flow")
    rows = []
    for sizes in SIZES:
        steps, row = compare(*sizes, reference)
        losses = {name: step().item() for name, step in steps.items()}
        seconds = time_in_turn(steps, arguments.repeats, warmup=2)
        memory = {name: peak_memory(step) for name, step in steps.items()}
        for name in steps:
            row[f"{name}, s"] = f"{seconds[name]:.3f}"
        for name in steps:
            row[f"{name}, MB"] = f"{memory[name] / 1e6:.0f}"
        if "authors" in steps:
            # The authors leave out a constant of the normal density.
            shift = losses["here"] - losses["authors"]
            row["difference of loss"] = f"{abs(shift - 0.9189385):.0e}"
            row["time, authors / here"] = f"{seconds['authors'] / seconds['here']:.2f}"
            row["memory, here / authors"] = f"{memory['here'] / memory['authors']:.2f}"
        rows.append(row)
        print(row, flush=True)
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
