"""Sampling from trained TarFlows: each method, and the code of the model's authors.

The weights are those of models that were trained for some minutes with the authors' code, in a
folder with NAME.json and NAME.weights.safetensors for each. `--reference` is a checkout of
https://github.com/apple/ml-tarflow, whose `Model.reverse` then gets the same weights and noise.

    python benchmarks/tarflow_sampling.py --reference ../ml-tarflow --json sampling.json

`--gs-jacobi` is a checkout of https://github.com/encoreus/GS-Jacobi_for_TarFlow, which gets the
settings that its calibration asks for: blocks with more than 30 % of the CRM in 8 modules of up
to 32 Jacobi passes, the others at once in up to 10, from the latents or from zeros, as the IGM
says. It stops before it is exact, so its differences have a column of their own.

`passes` is the work: how many times each patch of a sample went through each block, 1 being
what sampling one patch after the other computes; a GPU, where windows cost little more than
single patches, pays rather for `calls` of the net.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import print_table, time_in_turn, write_json
from safetensors.torch import load_file
from torch import Tensor

import mixer_bijectors as mb
from mixer_bijectors import TransformerAutoregressive

METHODS = ("sequential", "parallel", "auto")


def load(folder: Path, name: str, reference: str | None) -> tuple[mb.TarFlow, Any]:
    """The model here and the authors', with the same weights."""
    sizes = json.loads((folder / f"{name}.json").read_text())
    weights = load_file(folder / f"{name}.weights.safetensors")
    shape = (sizes["in_channels"], sizes["size"], sizes["size"])
    model = mb.TarFlow.from_reference(weights, shape, sizes["patch_size"], sizes["head_dim"])
    authors = None if reference is None else authors_model(model, sizes, reference)
    return model.eval(), authors


def authors_model(model: mb.TarFlow, sizes: Mapping[str, Any], reference: str) -> Any:
    """The authors' model with the weights of `model`."""
    if reference not in sys.path:
        sys.path.insert(0, reference)
    authors = importlib.import_module("transformer_flow").Model(
        sizes["in_channels"],
        sizes["size"],
        sizes["patch_size"],
        sizes["channels"],
        sizes["num_blocks"],
        sizes["layers_per_block"],
        num_classes=sizes["num_classes"],
    )
    authors.load_state_dict(model.to_reference())
    return authors.eval()


def gs_jacobi_sampler(
    model: mb.TarFlow, folder: Path, name: str, checkout: str
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Samples by the code of GS-Jacobi, with its settings for these weights.

    Its metrics are computed of the images that come with the weights.
    """
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    module: Any = importlib.import_module("GS_Jacobi_sampling")
    sizes = json.loads((folder / f"{name}.json").read_text())
    keys = ("in_channels", "size", "patch_size", "channels", "num_blocks", "layers_per_block")
    arguments = [sizes[key] for key in keys]

    def build(**options: Any) -> Any:
        solver = module.Model(*arguments, num_classes=sizes["num_classes"], **options)
        solver.load_state_dict(model.to_reference(), strict=False)
        return solver.eval()

    images = load_file(folder / f"{name}.values.safetensors")["x"]
    with torch.no_grad():
        *_, initial, ranking = build(detect_mode=True)(images, None)
    total = sum(row[3] for row in ranking)
    # From the block next to the noise on, as the solver takes them.
    tough = [row[3] > 0.3 * total for row in ranking][::-1]
    settings = {
        "num_GS_list": [8 if hard else 1 for hard in tough],
        "max_jacobi_list": [32 if hard else 10 for hard in tough],
        "guess_list": [int(zeros < latents) for latents, zeros in initial][::-1],
    }
    print(name, settings, flush=True)
    solver = build()
    return lambda z, labels: solver.reverse(z.clone(), labels, **settings)


def make_sides(
    model: mb.TarFlow, authors: Any, batch: int, gs_jacobi: Any = None
) -> dict[str, Callable[[], Tensor]]:
    """Each way to sample from the same latents, on the device of the model."""
    z = torch.randn(batch, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    z = z.to(model.q0.loc.device)
    classes = model.num_classes
    labels = torch.arange(batch, device=z.device) % classes if classes else None
    sides: dict[str, Callable[[], Tensor]] = {
        method: partial(model.forward, z, labels, method=method) for method in METHODS
    }
    if authors is not None:
        sides["authors"] = lambda: authors.reverse(z.clone(), labels)
    if gs_jacobi is not None:
        sides["GS-Jacobi"] = partial(gs_jacobi, z, labels)
    return sides


@torch.no_grad()
def compare(
    name: str, model: mb.TarFlow, authors: Any, gs_jacobi: Any, batch: int, repeats: int
) -> dict[str, Any]:
    blocks = [flow for flow in model.flows if isinstance(flow, TransformerAutoregressive)]
    sides = make_sides(model, authors, batch, gs_jacobi)
    seconds = time_in_turn(sides, repeats, warmup=1)
    samples = {side: run() for side, run in sides.items()}
    against = samples["authors" if authors is not None else "sequential"]
    row: dict[str, Any] = {"weights": name, "patches": model.latent_shape[0], "batch": batch}
    if authors is not None:
        row["authors, s"] = f"{seconds['authors']:.3f}"
    for method in METHODS:
        row[f"{method}, s"] = f"{seconds[method]:.3f}"
    if authors is not None:
        for method in METHODS:
            row[f"authors / {method}"] = f"{seconds['authors'] / seconds[method]:.2f}"
    else:
        row["sequential / auto"] = f"{seconds['sequential'] / seconds['auto']:.2f}"
    for method in ("parallel", "auto"):
        sides[method]()
        row[f"calls, {method}"] = "+".join(str(block.last_calls) for block in blocks)
        row[f"passes, {method}"] = "+".join(f"{block.last_passes:.1f}" for block in blocks)
    errors = [(samples[method] - against).abs().max().item() for method in METHODS]
    row["largest difference"] = f"{max(errors):.0e}"
    if gs_jacobi is not None:
        row["GS-Jacobi, s"] = f"{seconds['GS-Jacobi']:.3f}"
        row["GS-Jacobi / auto"] = f"{seconds['GS-Jacobi'] / seconds['auto']:.2f}"
        error = (samples["GS-Jacobi"] - against).abs()
        row["GS-Jacobi, mean and largest difference"] = f"{error.mean():.0e}, {error.max():.0e}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folder = Path(__file__).parents[2] / "shared" / "golden"
    parser.add_argument("--weights", type=Path, default=folder, help="folder of the weights")
    parser.add_argument("--reference", help="checkout of the authors' code")
    parser.add_argument("--gs-jacobi", help="checkout of the code of GS-Jacobi")
    parser.add_argument("--only", nargs="+", help="names of the weights to use")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    suffix = ".weights.safetensors"
    names = [path.name.removesuffix(suffix) for path in arguments.weights.glob(f"*{suffix}")]
    if not names:
        parser.error(f"no weights in {arguments.weights}")
    rows = []
    for name in sorted(arguments.only or names):
        model, authors = load(arguments.weights, name, arguments.reference)
        solver = None
        if arguments.gs_jacobi:
            solver = gs_jacobi_sampler(model, arguments.weights, name, arguments.gs_jacobi)
        for batch in arguments.batch:
            rows.append(compare(name, model, authors, solver, batch, arguments.repeats))
            print(rows[-1], flush=True)
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
