"""A layer inside of `ParallelInverse`, as a module."""

import copy
import pickle

import pytest
import torch
from random_layers import randomised
from torch import nn
from torch.testing import assert_close

import mixer_bijectors as mb


def replicate(module, change):
    """What `nn.DataParallel` does for one device, with changed parameters."""
    replicas = {part: part._replicate_for_data_parallel() for part in module.modules()}
    for part, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in part._modules.items():
            setattr(replica, name, child and replicas[child])
        for name, parameter in part._parameters.items():
            setattr(replica, name, None if parameter is None else change(parameter))
    return replicas[module]


class TestAsAModule:
    @pytest.fixture
    def layer(self):
        return randomised(mb.Autoregressive(6, hidden_features=16, context_features=2))

    @pytest.fixture
    def inputs(self):
        return torch.randn(5, 6), torch.randn(5, 2)

    def test_replicas_compute_with_their_own_parameters(self, layer, inputs):
        model = nn.ModuleList([mb.ParallelInverse(layer)])
        halved = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in halved.parameters():
                parameter.div_(2)
        replica = replicate(model, lambda p: p / 2)[0]
        got, want = replica(*inputs), halved(*inputs)
        assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert_close(replica.inverse(*inputs), halved.inverse(*inputs))
        weights = torch.randn(5, 6)
        gradients = [
            torch.autograd.grad((weights * x).sum() + log_det.sum(), list(of.parameters()))
            for (x, log_det), of in ((got, layer), (want, halved))
        ]
        assert_close([2 * g for g in gradients[0]], list(gradients[1]), atol=1e-4, rtol=1e-4)

    def test_replicas_of_a_transformer_have_gradients(self):
        layer = randomised(mb.TransformerAutoregressive(4, 3, channels=16, head_dim=8), 0.1)
        x, log_det = replicate(layer, lambda p: 1.0 * p)(torch.randn(2, 4, 3))
        (x.sum() + log_det.sum()).backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())

    def test_copies(self, layer, inputs):
        fast = mb.ParallelInverse(layer, tol=1e-5, max_iter=9)
        want = layer(*inputs)
        copies = [copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
        copies.append(copy.deepcopy(copy.copy(fast)))
        assert copies[0].flow is layer
        for twin in copies:
            assert (twin.tol, twin.max_iter) == (1e-5, 9)
            assert_close(twin(*inputs), want, atol=1e-5, rtol=1e-5)
            assert list(twin.state_dict()) == list(layer.state_dict())
            state = {name: value.clone() for name, value in layer.state_dict().items()}
            for value in twin.parameters():
                nn.init.zeros_(value)
            twin.load_state_dict(state)
            assert_close(twin(*inputs), want, atol=1e-5, rtol=1e-5)
            layer.load_state_dict(state)

    def test_names(self, layer, inputs):
        fast = mb.ParallelInverse(layer)
        names = dict(layer.named_parameters())
        assert list(dict(fast.named_parameters())) == [f"flow.{name}" for name in names]
        assert [*fast.parameters()] == [*layer.parameters()]
        assert fast.net is layer.net and fast.features == 6
        with pytest.raises(AttributeError, match="nothing"):
            fast.nothing  # noqa: B018
        halves = {name: value / 2 for name, value in names.items()}
        want = torch.func.functional_call(layer, halves, inputs)
        for prefix in ("", "flow."):
            given = {prefix + name: value for name, value in halves.items()}
            got = torch.func.functional_call(fast, given, inputs)
            assert_close(got, want, atol=1e-5, rtol=1e-5)
            other = mb.Chain([mb.ParallelInverse(copy.deepcopy(layer))])
            given = {f"flows.0.{name}": value for name, value in given.items()}
            assert not other.load_state_dict(given, strict=False).unexpected_keys
            assert_close(other(*inputs), want, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("prefix", ["", "0.", "flow."])
    def test_keys_that_do_not_fit_are_told_by_the_names_of_the_layer(self, layer, prefix):
        if prefix:
            model = nn.Module()
            model.add_module(prefix[:-1], nn.Sequential(nn.Linear(2, 2), layer))
            prefix += "1."
        else:
            model = layer
        state = model.state_dict()
        del state[f"{prefix}net.final_layer.weight"]
        state |= {f"{prefix}nothing": torch.zeros(2), f"{prefix}net.flow.x": torch.zeros(2)}
        want = model.load_state_dict(state, strict=False)
        assert len(want.missing_keys) == 1 and len(want.unexpected_keys) == 2
        fast = mb.accelerate_sampling(model)
        got = fast.load_state_dict(state, strict=False)
        assert sorted(got.unexpected_keys) == sorted(want.unexpected_keys)
        assert got.missing_keys == want.missing_keys
        state[f"{prefix}net.final_layer.bias"] = torch.zeros(2)
        with pytest.raises(RuntimeError, match="size mismatch for") as error:
            fast.load_state_dict(state)
        assert f'"{prefix}net.final_layer.weight"' in str(error.value)
        assert f"mismatch for {prefix}net.final_layer.bias:" in str(error.value)
        assert "flow" not in str(error.value).replace(f"{prefix}net.flow.x", "").replace(
            prefix, ""
        )

    def test_averages(self, layer, inputs):
        fast = mb.Chain([mb.ParallelInverse(layer)])
        averaged = torch.optim.swa_utils.AveragedModel(fast, use_buffers=True)
        for _ in range(2):
            averaged.update_parameters(fast)
        assert_close(averaged(*inputs), fast(*inputs))

    def test_state_keeps_its_order_and_versions(self, layer):
        plain = mb.Chain([mb.ActNorm(6), layer, mb.ActNorm(6)])
        want = plain.state_dict()
        got = mb.accelerate_sampling(plain).state_dict()
        assert list(got) == list(want)
        assert want._metadata.items() <= got._metadata.items()

    def test_moves_and_converts(self, layer, inputs):
        fast = mb.ParallelInverse(layer).double()
        assert layer.net.final_layer.weight.dtype == torch.float64
        inputs = [t.double() for t in inputs]
        assert_close(fast(*inputs), layer(*inputs), atol=1e-12, rtol=1e-12)
        assert fast.to("meta").net.final_layer.weight.is_meta

    def test_what_is_set_on_it_is_set_on_the_layer(self, layer, inputs):
        fast, other = mb.ParallelInverse(layer), copy.deepcopy(layer)
        other.net = randomised(other.net, 0.4)
        other.reverse = True
        fast.net, fast.reverse, fast.max_iter = other.net, True, 5
        assert layer.net is other.net and fast.max_iter == 5
        assert_close(fast(*inputs), other(*inputs), atol=1e-5, rtol=1e-5)
        assert list(fast.state_dict()) == list(other.state_dict())

    def test_added_modules_are_not_lost(self, layer):
        fast = mb.ParallelInverse(layer)
        fast.train()
        assert layer.training and layer.net.training
        nn.utils.parametrizations.weight_norm(fast.net.final_layer)
        assert list(fast.state_dict()) == list(layer.state_dict())

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
    def test_trains_after_other_modes(self, layer, inputs, mode):
        fast = mb.ParallelInverse(layer)
        with mode():
            assert not fast(*inputs)[0].requires_grad
        sum(t.sum() for t in fast(*inputs)).backward()
        assert layer.net.final_layer.weight.grad.any()
        layer.requires_grad_(False)
        assert not fast(*inputs)[0].requires_grad
