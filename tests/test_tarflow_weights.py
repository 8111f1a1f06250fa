"""Weights under the names of the authors' code."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_tarflow import small
from torch.testing import assert_close

import mixer_bijectors as mb


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"volume_preserving": True}])
def test_reference_names_round_trip(options, tmp_path):
    model = small(**options)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    some = torch.tensor([0, 1]) if model.num_classes else None
    model.forward_kld(torch.rand(2, 1, 6, 8), some).backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    torch.save(model.to_reference(), path)
    again = mb.TarFlow.from_reference(path, (1, 6, 8), 2, head_dim=8)
    x = torch.rand(4, 1, 6, 8)
    labels = torch.tensor([0, 1, 2, -1]) if options.get("num_classes") else None
    assert_close(again.log_prob(x, labels), model.log_prob(x, labels))
    assert again.state_dict().keys() == model.state_dict().keys()


def test_the_names_are_those_of_the_authors_code():
    keys = small(num_classes=3, num_blocks=1).to_reference().keys()
    parts = ("norm.weight", "norm.bias", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    mlp = ("norm.weight", "norm.bias", "main.0.weight", "main.0.bias", "main.2.weight")
    want = {f"blocks.0.attn_blocks.0.attention.{part}" for part in parts}
    want |= {f"blocks.0.attn_blocks.0.mlp.{part}" for part in (*mlp, "main.2.bias")}
    want |= {
        f"blocks.0.proj_{way}.{kind}" for way in ("in", "out") for kind in ("weight", "bias")
    }
    want |= {f"blocks.0.{name}" for name in ("pos_embed", "class_embed", "attn_mask")}
    assert keys == want | {"var"}


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"var": torch.optim.SGD}, path)
    with pytest.raises(Exception, match=r"[Ww]eights only"):
        mb.TarFlow.from_reference(path, (1, 6, 8), 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_reference_weights_keep_their_precision(dtype):
    model = small().to(dtype)
    again = mb.TarFlow.from_reference(model.to_reference(), (1, 6, 8), 2, head_dim=8)
    assert {p.dtype for p in again.parameters()} == {dtype}
    model.to_reference()["blocks.0.proj_in.weight"].zero_()
    assert model.flows[-2].net.initial.weight.abs().sum() > 0, "it handed out the weights"


def test_safetensors_round_trip(tmp_path):
    save_file(small().to_reference(), tmp_path / "weights.safetensors")
    loaded = load_file(tmp_path / "weights.safetensors")
    model = mb.TarFlow.from_reference(loaded, (1, 6, 8), 2, head_dim=8)
    x = torch.rand(2, 1, 6, 8)
    assert_close(model.log_prob(x), small().log_prob(x))
