"""MixerFlows with every inner flow: train, sample, invert, take classes, run under autocast."""

import normflows as nf
import pytest
import torch
from conftest import NETS, UNIVARIATES, train
from jsonargparse import ArgumentParser
from torch.testing import assert_close

import mixer_bijectors as mb

SHAPE = (1, 8, 8)
PRESETS = {
    name: getattr(mb.presets, name)
    for name in (
        "affine",
        "attention_hybrid",
        "spline",
        "kan",
        "kan_layer",
        "local",
        "maf_hybrid",
        "residual",
        "ffjord",
    )
}
ESTIMATED = {"residual"}  # its log-determinants are random


def tiny(make, **options):
    mixing = {"shift_every": 2}
    if make is not mb.presets.kan_layer:  # which has no net
        mixing["hidden_features"] = 8
    if make is mb.presets.attention_hybrid:
        return make(SHAPE, 2, 2, mixer=mixing, **options)
    return make(SHAPE, 2, 2, **mixing, **options)


def images(count=16):
    """Smooth random images."""
    noise = torch.randn(count, 1, 2, 2)
    return torch.nn.functional.interpolate(noise, SHAPE[1:], mode="bilinear").clamp(-1, 0.99)


def test_every_preset_is_tried():
    assert set(mb.presets.__all__) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
class TestPreset:
    def test_trains_samples_and_inverts(self, name):
        model = tiny(PRESETS[name])
        x = images() + 0.05 * torch.rand(16, *SHAPE)
        losses = train(model, x, steps=12, learning_rate=1e-2)
        assert losses[-1] < losses[0] - 5
        model.eval()
        with torch.no_grad():
            z = model.inverse(x)
            assert_close(model.forward(z), x, atol=2e-3, rtol=0)
            samples, log_prob = model.sample(3)
            assert samples.shape == (3, *SHAPE)
            assert log_prob.isfinite().all()
            if name not in ESTIMATED:
                assert_close(model.log_prob(samples), log_prob, atol=0.1, rtol=1e-3)

    def test_takes_classes(self, name):
        if name in ("kan_layer", "residual"):
            with pytest.raises(ValueError, match="none of the flows inside reads a context"):
                tiny(PRESETS[name], num_classes=3)
            return
        model = tiny(PRESETS[name], num_classes=3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        x = images(1).expand(3, -1, -1, -1)
        log_prob = model.eval().log_prob(x, torch.arange(3))
        assert len(set(log_prob.tolist())) == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spline", {"univariate": mb.Affine()}),
        ("kan", {"num_blocks": 3}),
        ("maf_hybrid", {"patch_flow": mb.Coupling}),
        ("local", {"channel_flow": mb.Coupling}),
        ("kan_layer", {"hidden_features": 8}),
        ("residual", {"univariate": mb.Affine()}),
        ("ffjord", {"num_blocks": 1, "net": mb.nets.KAN}),
    ],
)
def test_options_without_effect_are_refused(name, options):
    with pytest.raises(TypeError, match=f"presets.{name}: .*{next(iter(options))}"):
        PRESETS[name](SHAPE, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_file_names_any_preset(name):
    """Its parser fills in the defaults of MixerFlow's options."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nf.NormalizingFlow, "flow")
    options = {"image_shape": [1, 8, 8], "patch_size": 2, "num_layers": 1}
    config = {"class_path": f"mixer_bijectors.presets.{name}", "init_args": options}
    model = parser.instantiate_classes(parser.parse_object({"flow": config})).flow
    assert isinstance(model, nf.NormalizingFlow)
    assert model.log_prob(images(2)).shape == (2,)


@pytest.mark.parametrize("univariate", UNIVARIATES)
@pytest.mark.parametrize("net", NETS)
def test_bfloat16_autocast_is_close_to_float32(univariate, net):
    """Nets run in bfloat16; splines and log-determinants stay in float32."""
    model = tiny(mb.MixerFlow, univariate=UNIVARIATES[univariate], net=NETS[net]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = images()
    z, log_det = model.inverse_and_log_det(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z_low, log_det_low = model.inverse_and_log_det(x)
        back, _ = model.forward_and_log_det(z_low)
    assert (z_low.dtype, log_det_low.dtype) == (torch.float32, torch.float32)
    assert_close(z_low, z, atol=0.15, rtol=0.05)
    assert_close(log_det_low, log_det, atol=0.3, rtol=0.02)
    # The nets see halves that differ by float32's rounding, which theirs can magnify.
    assert_close(back, x, atol=0.02, rtol=0)


@pytest.mark.parametrize("univariate", UNIVARIATES)
@pytest.mark.parametrize("net", NETS)
def test_class_conditional_couplings(univariate, net):
    model = tiny(
        mb.MixerFlow, univariate=UNIVARIATES[univariate], net=NETS[net], num_classes=3
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = images(6).double().requires_grad_()
    labels = torch.arange(6) % 3
    log_prob = model.log_prob(x, labels)
    assert not torch.isclose(log_prob, model.log_prob(x, (labels + 1) % 3)).any()
    back = model.forward(model.inverse(x, labels), labels)
    assert_close(back, x, atol=1e-8, rtol=0)
    log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *model.parameters()])


@pytest.mark.parametrize("name", PRESETS)
def test_is_built_on_no_device_and_gets_its_state_later(name):
    """What `to_empty` and `load_state_dict` do not bring back must not be in the layers."""
    model = tiny(PRESETS[name])
    x = images(4)
    model.log_prob(x)
    with torch.device("meta"):
        other = tiny(PRESETS[name])
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    assert all(tensor.is_meta for tensor in state.values())
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    results = []
    for each in (model.eval(), other.eval()):
        torch.manual_seed(1)
        with torch.no_grad():
            results.append((each.log_prob(x), *each.sample(2)))
    assert_close(results[0], results[1], atol=0, rtol=0)


@pytest.fixture
def default_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", PRESETS)
def test_is_built_in_the_default_dtype(name, default_float64):
    model = tiny(PRESETS[name])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    model.log_prob(images(4))
    x, log_prob = model.eval().sample(2)
    again = model.log_prob(x)
    assert {x.dtype, log_prob.dtype, again.dtype} == {torch.float64}
    if name not in ESTIMATED:
        atol = 1e-2 if name == "ffjord" else 1e-6
        assert_close(again, log_prob, atol=atol, rtol=1e-6)


@pytest.mark.parametrize(
    ("sides", "most", "window"),
    [
        ((16, 16), 8, None),
        ((14, 16), 8, None),
        ((32, 32), 8, 8),
        ((24, 40), 8, 4),
        ((24, 24), 8, 6),
        ((32, 32), 4, 4),
        ((32, 32), None, None),
    ],
)
def test_the_windows_of_the_local_preset_fill_the_grid(sides, most, window):
    model = mb.presets.local((1, *sides), 2, 1, hidden_features=8, window=most)
    mixing = model.flows[0].patch_mixing
    assert getattr(mixing, "window", None) == window


def test_the_local_preset_is_of_one_size_for_all_images():
    sizes = [
        sum(p.numel() for p in mb.presets.local((3, side, side)).parameters())
        for side in (32, 64, 128)
    ]
    assert len(set(sizes)) == 1
