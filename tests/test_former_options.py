"""Arguments of sampling from before `Guidance` held them."""

import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb


def guided_tarflow():
    torch.manual_seed(0)
    sizes = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}
    model = mb.TarFlow((1, 6, 8), 2, **sizes, num_classes=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


LABELS = torch.tensor([0, 2, -1])
FORMER_CALLS = {
    "by position": (
        lambda model: model.sample(3, LABELS, 1.5, "shift", True, 0.8, 2.0, "sequential"),
        "TarFlow.sample: pass guidance and all that follows it by name",
    ),
    "by name": (
        lambda model: model.sample(
            *(3, LABELS, 1.5),
            guide="shift",
            annealed=True,
            temperature=0.8,
            attention_temperature=2.0,
            method="sequential",
        ),
        "TarFlow.sample: pass guidance and all",
    ),
    "arguments of Guidance": (
        lambda model: model.sample(
            *(3, LABELS),
            guidance=1.5,
            guide="shift",
            annealed=True,
            temperature=0.8,
            attention_temperature=2.0,
            method="sequential",
        ),
        r"TarFlow.sample: guide is now an argument of Guidance; .*\(weight, guide='shift'\)",
    ),
}


@pytest.mark.parametrize(("call", "told"), FORMER_CALLS.values(), ids=FORMER_CALLS)
def test_guidance_is_taken_in_the_former_ways(call, told):
    model = guided_tarflow()
    guidance = mb.Guidance(1.5, "shift", annealed=True, attention_temperature=2.0)
    torch.manual_seed(1)
    want = model.sample(3, LABELS, temperature=0.8, guidance=guidance, method="sequential")
    torch.manual_seed(1)
    with pytest.warns(DeprecationWarning, match=told):
        got = call(model)
    assert_close(got, want, atol=0, rtol=0)
