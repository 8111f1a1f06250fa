"""Models in a folder as the Hugging Face Hub holds it."""

import json
import pickle

import pytest
import torch

import mixer_bijectors as mb
from mixer_bijectors import hub

SPLINE = mb.RationalQuadratic(num_bins=4, bound=2.0)
MODELS = {
    "MixerFlow": lambda: hub.MixerFlow((1, 8, 8), 2, 2, hidden_features=8, univariate=SPLINE),
    "MixerFlow-local": lambda: hub.MixerFlow(
        (3, 8, 8), (4, 2), num_layers=2, hidden_features=8, shift="cyclic", neighbourhood=3
    ),
    "MixerFlow-classes": lambda: hub.MixerFlow(
        (1, 4, 4), 2, 1, hidden_features=8, num_classes=3
    ),
    "MixerFlow-inverse": lambda: hub.MixerFlow(
        (1, 4, 4), 2, 1, hidden_features=8, univariate=mb.Inverse(SPLINE)
    ),
    "TarFlow": lambda: hub.TarFlow(
        (1, 8, 8), 4, channels=16, num_blocks=2, layers_per_block=1, head_dim=8
    ),
    "Jet": lambda: hub.Jet((3, 8, 8), 2, num_layers=2, channels=16, head_dim=8),
}


def randomised(build, dtype=torch.float32):
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_comes_back_from_a_folder_with_the_same_numbers(name, dtype, tmp_path):
    model = randomised(MODELS[name], dtype)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    x = 2 * torch.rand(3, *model.image_shape, dtype=dtype) - 1
    labels = (torch.arange(3),) if model.num_classes else ()
    with torch.no_grad():
        assert torch.equal(loaded.log_prob(x, *labels), model.log_prob(x, *labels))
    assert not loaded.training
    assert loaded.arguments == model.arguments
    # So that it can be saved again, and read without the Hub's classes.
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == (
        tmp_path / "config.json"
    ).read_bytes()


def test_is_the_model_of_the_library():
    model = randomised(MODELS["MixerFlow"])
    plain = mb.MixerFlow((1, 8, 8), 2, 2, hidden_features=8, univariate=SPLINE).eval()
    plain.load_state_dict(model.state_dict())
    x = 2 * torch.rand(3, 1, 8, 8) - 1
    assert torch.equal(plain.log_prob(x), model.log_prob(x))
    assert torch.equal(pickle.loads(pickle.dumps(model)).log_prob(x), model.log_prob(x))


def test_arguments_are_read_as_they_were_given(tmp_path):
    MODELS["MixerFlow"]().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "image_shape": [1, 8, 8],
        "patch_size": 2,
        "num_layers": 2,
        "hidden_features": 8,
        "univariate": {
            "univariate": "RationalQuadratic",
            "num_bins": 4,
            "bound": 2.0,
            "circular": False,
            "slopes": "bounded",
        },
    }


def test_the_card_says_how_to_load_the_model(tmp_path):
    model = MODELS["MixerFlow-classes"]()
    model.save_pretrained(tmp_path, model_card_kwargs={"description": "Three shapes, 1 epoch."})
    card = (tmp_path / "README.md").read_text()
    for part in (
        "library_name: mixer_bijectors",
        "from mixer_bijectors.hub import MixerFlow",
        "model.sample(4, labels=torch.arange(4))",
        "Three shapes, 1 epoch.",
        '"num_classes": 3',
    ):
        assert part in card


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("net", mb.nets.KAN, "type"),
        ("channel_flow", mb.LULinear, "type"),
        ("base", torch.nn.Linear(1, 1), "Linear"),
    ],
)
def test_arguments_that_a_file_cannot_hold_are_refused(name, value, kind):
    sentence = f"MixerFlow: the argument {name} is a {kind}, which a file of arguments cannot"
    with pytest.raises(TypeError, match=sentence):
        hub.MixerFlow((1, 8, 8), 2, 1, **{name: value})


class Kan(hub.MixerFlow):
    """A subclass with a net of its own, as the error suggests."""

    def __init__(self, image_shape, hidden_features=8):
        super().__init__(
            image_shape, 2, 1, hidden_features=hidden_features, net=mb.nets.KAN, num_classes=0
        )


def test_a_subclass_may_hold_what_a_file_cannot(tmp_path):
    model = randomised(lambda: Kan((1, 4, 4)))
    assert model.arguments == {"image_shape": [1, 4, 4]}
    model.save_pretrained(tmp_path)
    x = 2 * torch.rand(3, 1, 4, 4) - 1
    assert torch.equal(Kan.from_pretrained(tmp_path).log_prob(x), model.log_prob(x))


def test_other_weights_are_refused(tmp_path):
    MODELS["MixerFlow"]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_features": 16}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        hub.MixerFlow.from_pretrained(tmp_path)
