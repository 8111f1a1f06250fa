"""The library on a pretended GPU: right values, one device, and no unlisted synchronisation."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gpu_training  # noqa: F401 - adds its programs to the others
import numpy as np
import pytest
import torch
from gpu_programs import MODELS, PROGRAMS, Program, build_model
from pretended_gpu import pretended_gpu, value, why_not
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._pytree import tree_iter, tree_map

import mixer_bijectors as mb
from mixer_bijectors import presets
from mixer_bijectors._checks import has_values
from mixer_bijectors.train.data.batches import Batch

DOCS = Path(__file__).parents[1] / "docs" / "design.md"
NEEDS_CUDA = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


def run(program: Program, device: str) -> tuple[Any, set[str]]:
    torch.manual_seed(0)
    arguments = list(program.build())
    with pretended_gpu() if device == "cuda" else nullcontext(set()) as places:
        moved = [move(argument, device) for argument in arguments]
        places.clear()
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - normflows' layers draw from it
        return program.run(*moved), places


def move(argument: Any, device: str) -> Any:
    if isinstance(argument, Batch):  # as Lightning does
        return argument._replace(
            images=argument.images.to(device), labels=argument.labels.to(device)
        )
    return argument.to(device) if isinstance(argument, nn.Module | Tensor) else argument


def plain(leaf: Any) -> Any:
    return value(leaf).detach() if isinstance(leaf, Tensor) else leaf


@NEEDS_CUDA
@pytest.mark.parametrize("name", PROGRAMS)
def test_on_a_gpu(name):
    program = PROGRAMS[name]
    want, _ = run(program, "cpu")
    got, places = run(program, "cuda")
    assert places == program.places
    assert all(t.device.type == "cuda" for t in tree_iter(got) if isinstance(t, Tensor))
    assert_close(tree_map(plain, got), tree_map(plain, want), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if "ffjord" not in name])
def test_gradients_on_the_meta_device(name):
    """Which a pretended GPU has not; on either, gradients are where their parameters are."""
    model, x, labels = (move(argument, "meta") for argument in build_model(MODELS[name]))
    given = () if labels is None else (labels,)
    model.log_prob(x, *given).sum().backward()
    head = {"head.weight", "head.bias"}  # which tells classes, and no density
    for parameter_name, parameter in model.named_parameters():
        wanted = parameter.requires_grad and parameter_name not in head
        assert (parameter.grad is not None) == wanted, parameter_name
    assert mb.denoise(model, x, 0.1, *given).is_meta


def test_the_docs_list_where_the_host_synchronises():
    section = DOCS.read_text().split("## Host synchronisation\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(set().union(*(p.places for p in PROGRAMS.values())))


def test_every_preset_is_among_the_programs():
    without = {name for name in presets.__all__ if f"presets.{name}, density" not in PROGRAMS}
    assert without == {"residual"}


SYNCHRONISES = {
    "item": lambda x: x[0].item(),
    "item in inference mode": torch.inference_mode()(lambda x: x[0].item()),
    "branch": lambda x: bool((x > 0).any()),
    "mask": lambda x: x[x > 0],
    "assignment by mask": lambda x: x.index_put_([x > 0], x[0]),
    "nonzero": lambda x: x.nonzero(),
    "index on the CPU": lambda x: x[[0, 1]],
    "copy from the CPU": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "copy to the CPU": lambda x: x.cpu(),
}


@NEEDS_CUDA
@pytest.mark.parametrize("name", SYNCHRONISES)
def test_synchronisations_are_noted(name):
    with pretended_gpu() as places:
        x = torch.randn(4, device="cuda")
        assert not places
        SYNCHRONISES[name](x)
    assert places == {"outside"}


@NEEDS_CUDA
@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(4)]),
        lambda x: torch.randn(4, device=x.device, generator=torch.Generator()),
    ],
    ids=["sum", "cat", "generator"],
)
def test_devices_do_not_mix(mix):
    with pretended_gpu():
        x = torch.randn(4, device="cuda")
        with pytest.raises(RuntimeError, match=r"devices|generator"):
            mix(x)


@NEEDS_CUDA
def test_copies_that_do_not_block_are_no_synchronisation():
    with pretended_gpu() as places:
        torch.zeros(4).to("cuda", non_blocking=True).add_(torch.tensor(1.0))
    assert not places


def test_no_driver_is_asked_about_tensors_without_values(monkeypatch):
    """Which may be on a GPU where there is none."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: 1 / 0)
    with FakeTensorMode():
        x = torch.empty(2, device="cuda")
        assert not has_values(x)
    assert x.is_cuda and not has_values(x)
