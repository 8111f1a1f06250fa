"""A MixerFlow with Transformers on its latents."""

import normflows as nf
import pytest
from jsonargparse import ArgumentParser

import mixer_bijectors as mb

SHAPE = (1, 8, 8)


def test_the_mixer_of_a_hybrid_has_no_base():
    mixer = {"base": nf.distributions.DiagGaussian((16, 4))}
    with pytest.raises(ValueError, match="TarFlow: the mixer has a base of its own"):
        mb.presets.attention_hybrid(SHAPE, 2, 1, mixer=mixer)


def test_all_options_of_the_mixer_reach_a_hybrid():
    spline = {"univariate": mb.RationalQuadratic(4), "num_blocks": 1, "hidden_features": 8}
    model = mb.presets.attention_hybrid((1, 8, 8), 2, 1, num_blocks=2, mixer=spline)
    attention = [f for f in model.flows if isinstance(f, mb.TransformerAutoregressive)]
    (layer,) = (f for f in model.flows if isinstance(f, mb.MixingLayer))
    coupling = layer.channel_mixing.flow.couplings.flows[0]
    assert len(attention) == 2 and coupling.univariate.num_bins == 4
    assert len(coupling.net.blocks) == 1


def test_a_config_names_options_of_a_hybrid_in_either_way():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nf.NormalizingFlow, "flow")
    sizes = {"image_shape": [1, 8, 8], "patch_size": 2, "num_layers": 1}
    models = []
    for options in ({"mixer": {"hidden_features": 8}}, {"hidden_features": 8}):
        config = {
            "class_path": "mixer_bijectors.presets.attention_hybrid",
            "init_args": sizes | options,
        }
        models.append(parser.instantiate_classes(parser.parse_object({"flow": config})).flow)
    assert str(models[0]) == str(models[1])


def test_former_options_of_a_hybrid_are_those_of_its_mixer():
    with pytest.warns(DeprecationWarning, match=r"hidden_features is an .* mixer="):
        former = mb.presets.attention_hybrid((1, 8, 8), 2, 1, hidden_features=8)
    model = mb.presets.attention_hybrid((1, 8, 8), 2, 1, mixer={"hidden_features": 8})
    assert str(former) == str(model)
