"""TarFlow, against the authors' numbers where they lie beside the project."""

import json
from pathlib import Path

import normflows as nf
import pytest
import torch
from safetensors.torch import load_file
from small_tarflow import small
from torch.testing import assert_close

import mixer_bijectors as mb

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
NAMES = ["digits8_conditional", "photos32_256patches", "photos64_1024patches"]
needs_golden = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the reference values do not lie beside the project"
)
GUIDANCES = {
    "sample": None,
    "sample_guidance_1.5": mb.Guidance(1.5),
    "sample_guidance_1.5_annealed": mb.Guidance(1.5, annealed=True),
    "sample_guidance_1.5_shift_only": mb.Guidance(1.5, "shift"),
    "sample_guidance_0.5_attention_temperature_2": mb.Guidance(0.5, attention_temperature=2.0),
}


def load(name: str):
    sizes = json.loads((GOLDEN / f"{name}.json").read_text())
    weights = load_file(GOLDEN / f"{name}.weights.safetensors")
    values = load_file(GOLDEN / f"{name}.values.safetensors")
    shape = (sizes["in_channels"], sizes["size"], sizes["size"])
    model = mb.TarFlow.from_reference(weights, shape, sizes["patch_size"], sizes["head_dim"])
    return model.eval(), weights, values, values["labels"] if sizes["num_classes"] else None


@needs_golden
@pytest.mark.parametrize("name", NAMES)
def test_latents_of_the_authors_code(name):
    model, weights, values, labels = load(name)
    with torch.no_grad():
        z, log_det = model.inverse_and_log_det(values["x"], labels)
    assert_close(z, values["z"], atol=1e-4, rtol=0)
    dimensions = values["x"][0].numel()
    assert_close(log_det / dimensions, values["log_det"] / dimensions, atol=1e-5, rtol=0)
    back = model.to_reference()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


@needs_golden
@pytest.mark.parametrize("method", ["sequential", "parallel", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_of_the_authors_code(name, method):
    model, _, values, labels = load(name)
    checked = 0
    for key, guidance in GUIDANCES.items():
        if key in values:
            with torch.no_grad():
                x = model(values["noise"], labels, method=method, guidance=guidance)
            assert_close(x, values[key], atol=1e-4, rtol=0)
            checked += 1
    assert checked >= 2


def test_starts_as_the_identity():
    model = mb.TarFlow((1, 6, 8), 2, channels=16, num_blocks=2, layers_per_block=1, head_dim=8)
    x = torch.randn(3, 1, 6, 8)
    z, log_det = model.inverse_and_log_det(x)
    assert torch.equal(z, mb.Patchify((1, 6, 8), 2).inverse(x)[0])
    assert_close(log_det, torch.zeros(3))


def test_orders_alternate_from_first_to_last():
    model = small(num_blocks=4)
    assert [flow.reverse for flow in model.flows[:-1]] == [True, False, True, False]


@pytest.mark.parametrize("options", [{}, {"guidance": mb.Guidance(1.0, annealed=True)}])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sample_returns_the_log_densities_of_its_samples(options, temperature):
    model = small(num_classes=3).double()
    labels = torch.tensor([0, 1, 2, 0])
    x, log_prob = model.sample(4, labels, temperature=temperature, **options)
    if options:
        assert log_prob.isfinite().all()
        return
    z, log_det = model.inverse_and_log_det(x, labels)
    base = torch.distributions.Normal(0.0, temperature).log_prob(z).flatten(1).sum(1)
    assert_close(log_prob, base + log_det)


def test_sample_by_generator_by_method_and_with_a_trace():
    model = small()
    options = [
        {"method": "sequential"},
        {"method": "parallel"},
        {"method": "auto", "trace": True},
    ]
    results = [
        model.sample(3, generator=torch.Generator().manual_seed(5), **option)
        for option in options
    ]
    for result in results[1:]:
        assert_close(result[:2], results[0], atol=1e-4, rtol=1e-4)
    x, _, states = results[2]
    assert len(states) == 5 and all(state.shape == x.shape for state in states)
    assert torch.equal(states[-1], x)
    latents = mb.Patchify((1, 6, 8), 2).inverse(states[0])[0]
    assert_close(model(latents), x, atol=1e-4, rtol=1e-4)


def test_no_class_is_the_label_minus_one():
    model = small(num_classes=3)
    x = torch.rand(2, 1, 6, 8)
    none = model.log_prob(x, torch.tensor([-1, -1]))
    assert not torch.allclose(none, model.log_prob(x, torch.tensor([0, 1])))
    with torch.no_grad():
        for flow in model.flows[:-1]:
            flow.net.context.copy_(flow.net.context.mean(0).expand(3, -1))
    assert_close(model.log_prob(x, torch.tensor([0, 2])), none)


def test_trains_and_keeps_its_state():
    model = small()
    x = torch.rand(8, 1, 6, 8)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = model.forward_kld(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 5
    other = small(num_blocks=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    assert model.embed(x).shape == (8, 48)


def test_mixer_layers_come_between_data_and_transformers():
    mixer = mb.MixerFlow((1, 6, 8), 2, num_layers=2, hidden_features=8, shift_every=0)
    model = small(mixer=mixer, num_blocks=2).double()
    x = torch.rand(4, 1, 6, 8, dtype=torch.float64)
    model.train()
    model.log_prob(x)
    model.eval()
    z, log_det = model.inverse_and_log_det(x)
    inner, inner_log_det = mixer.inverse_and_log_det(x)
    for flow in model.flows[1::-1]:
        inner, more = flow.inverse(inner)
        inner_log_det = inner_log_det + more
    assert_close((z, log_det), (inner, inner_log_det))
    assert_close(model.forward_and_log_det(z), (x, -log_det), atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="no mixer"):
        model.to_reference()


def test_gives_what_the_same_flows_give_in_normflows():
    model = small()
    plain = nf.NormalizingFlow(model.q0, list(model.flows))
    x = torch.rand(4, 1, 6, 8)
    assert_close(model.log_prob(x), plain.log_prob(x))
    assert_close(model.forward_kld(x), plain.forward_kld(x))
    z = torch.randn(3, 12, 4)
    assert_close(model.forward_and_log_det(z), plain.forward_and_log_det(z))


def test_a_hybrid_is_conditioned_as_a_whole():
    model = mb.presets.attention_hybrid(
        *((1, 8, 8), 2, 2),
        channels=16,
        head_dim=8,
        num_classes=3,
        mixer={"hidden_features": 8},
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()
    x, labels = torch.rand(4, 1, 8, 8).double(), torch.tensor([0, 1, 2, -1])
    z, log_det = model.inverse_and_log_det(x, labels)
    assert_close(model.forward_and_log_det(z, labels), (x, -log_det), atol=1e-9, rtol=1e-9)
    guided, _ = model.sample(4, labels, guidance=1.0)
    assert guided.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integers(dtype):
    model = small(num_classes=3)
    x, labels = torch.rand(3, 1, 6, 8), torch.tensor([0, 1, 2])
    assert_close(model.log_prob(x, labels.to(dtype)), model.log_prob(x, labels))
    with pytest.raises(TypeError, match="expected a tensor of integer labels"):
        model.log_prob(x, labels.bool())


def test_a_compiled_layer_is_guided_as_any():
    model = small(num_classes=3)
    z, labels = torch.randn(2, 12, 4), torch.tensor([0, 1])
    want = model(z, labels, guidance=mb.Guidance(2.0))
    assert not torch.allclose(want, model(z, labels), atol=1e-3)
    model.flows[0] = torch.compile(model.flows[0], backend="eager")
    assert_close(model(z, labels, guidance=mb.Guidance(2.0)), want, atol=1e-4, rtol=1e-4)


def test_the_mean_of_a_trained_base_is_a_constant():
    """Freezing a model and training it again must not train what never was."""
    model = small(volume_preserving=True)
    assert [name for name, _ in model.q0.named_parameters()] == ["log_scale"]
    model.requires_grad_(False).requires_grad_(True)
    x = torch.rand(4, 1, 6, 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.forward_kld(x).backward()
        optimizer.step()
    again = mb.TarFlow.from_reference(model.to_reference(), (1, 6, 8), 2, head_dim=8)
    assert_close(again.log_prob(x), model.log_prob(x))


def test_a_mean_that_was_trained_once_loads_and_is_not_dropped():
    """Checkpoints hold `q0.loc` whether it was a parameter, which could be trained, or not."""
    model = small(volume_preserving=True)
    state = model.state_dict()
    assert {"q0.loc", "q0.log_scale"} <= state.keys()
    state["q0.loc"] = torch.full_like(state["q0.loc"], 0.5)
    model.load_state_dict(state)
    x = torch.rand(2, 1, 6, 8)
    z, log_det = model.inverse_and_log_det(x)
    normal = torch.distributions.Normal(0.5, model.q0.log_scale.exp())
    assert_close(model.log_prob(x), normal.log_prob(z).flatten(1).sum(1) + log_det)
    with pytest.raises(ValueError, match="no base but a Gaussian of mean zero"):
        model.to_reference()
    model.load_state_dict(state | {"q0.loc": torch.zeros_like(state["q0.loc"])})
    model.q0.temperature = 0.5
    with pytest.raises(ValueError, match=r"q0\.temperature to None"):
        model.to_reference()
    mixer = mb.MixerFlow((1, 6, 8), 2, num_layers=1, hidden_features=8, shift_every=0)
    mixer.q0.temperature = 0.5
    with pytest.raises(ValueError, match="the mixer has a base of its own"):
        small(mixer=mixer)


def test_a_model_with_a_trained_base_is_built_on_no_device():
    model = small(volume_preserving=True)
    with torch.device("meta"):
        other = small(volume_preserving=True)
        assert other.to_reference()["var"].is_meta
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 6, 8)
    assert_close(other.log_prob(x), model.log_prob(x), atol=0, rtol=0)
