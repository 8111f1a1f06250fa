"""TransformerAutoregressive: its net, its methods of sampling, guidance."""

import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors.solvers.patch_windows import sample_in_windows

SIZES = {"channels": 16, "head_dim": 8, "num_layers": 2}


def randomised(layer: torch.nn.Module, spread: float = 0.1) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return layer.eval()


def make(num_patches: int = 40, spread: float = 0.1, **options) -> mb.TransformerAutoregressive:
    layer = mb.TransformerAutoregressive(num_patches, 3, **(SIZES | options))
    return randomised(layer, spread).double()


def latents(layer: mb.TransformerAutoregressive, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, layer.num_patches, layer.features, dtype=torch.float64)


def weights(layer: mb.TransformerAutoregressive, batch: int = 3) -> torch.Tensor | None:
    if not layer.context_features:
        return None
    return torch.eye(layer.context_features, dtype=torch.float64)[torch.arange(batch) % 2]


def one_by_one(layer, z, context=None, guidance=None):
    """By the definition: a whole pass of the net for each patch."""
    reverse = layer.reverse
    z = z.flip(1) if reverse else z
    x, log_det = z.clone(), z.new_zeros(len(z))
    for i in range(1, layer.num_patches):
        params = layer.net(x[:, :i], context)[:, -1]
        if guidance is not None:
            weak_context = None if context is None else torch.full_like(context, 0.5)
            weak = layer.net(x[:, :i], weak_context, temperature=guidance.attention_temperature)
            weight = guidance.weight * (i / (layer.num_patches - 1) if guidance.annealed else 1)
            chosen = torch.tensor(["scale" in guidance.guide, "shift" in guidance.guide])
            chosen = chosen[-1:] if layer.volume_preserving else chosen
            difference = weight * (params - weak[:, -1])
            params = params + difference * chosen.repeat_interleave(layer.features)
        shift = params[:, -layer.features :]
        log_scale = params[:, : -layer.features] if params.shape[1] > 3 else 0 * shift
        x[:, i] = z[:, i] * log_scale.exp() + shift
        log_det += log_scale.sum(1)
    return (x.flip(1) if reverse else x), log_det


VARIANTS = {
    "plain": {},
    "reverse": {"reverse": True},
    "classes": {"num_classes": 2},
    "volume-preserving": {"volume_preserving": True},
}
GUIDANCES = {
    "both": mb.Guidance(1.5, attention_temperature=2.0),
    "annealed": mb.Guidance(1.5, annealed=True, attention_temperature=0.5),
    "scale": mb.Guidance(0.7, "scale", attention_temperature=2.0),
    "shift": mb.Guidance(0.7, "shift", attention_temperature=2.0),
}


@pytest.mark.parametrize("method", ["sequential", "parallel", "auto"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_all_methods_sample_what_the_definition_says(options, method):
    layer = make(**options)
    z, context = latents(layer), weights(layer)
    x, log_det = layer(z, context, method=method)
    assert_close((x, log_det), one_by_one(layer, z, context), atol=1e-10, rtol=1e-10)
    assert_close(layer.inverse(x, context), (z, -log_det), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("method", ["sequential", "parallel"])
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_guidance_follows_its_formula(options, guidance, method):
    layer = make(10, **options)
    z, context = latents(layer), weights(layer)
    result = layer(z, context, method=method, guidance=guidance)
    want = one_by_one(layer, z, context, guidance)
    assert_close(result, want, atol=1e-10, rtol=1e-10)
    unguided = layer(z, context, guidance=mb.Guidance(0.0, attention_temperature=2.0))
    assert_close(unguided, layer(z, context), atol=0, rtol=0)


def test_a_uniform_context_is_the_mean_of_the_classes():
    layer = make(6, num_classes=4)
    z = latents(layer)
    uniform = layer.inverse(z, torch.full((3, 4), 0.25).double())
    with torch.no_grad():
        layer.net.context.copy_(layer.net.context.mean(0).expand(4, -1))
    assert_close(layer.inverse(z, torch.eye(4).double()[[0, 1, 2]]), uniform)


def test_patches_read_only_those_before_them():
    layer = make(5)
    x = latents(layer, 1).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: layer.inverse(x)[0], x)
    reads = jacobian[0].abs().amax((1, 2, 4)) > 0
    assert torch.equal(reads, torch.ones(5, 5, dtype=torch.bool).tril())


def test_windows_finish_in_fewer_calls_and_count_their_work():
    layer = make(200, spread=0.03)
    z = latents(layer, 2)
    layer(z, method="sequential")
    assert (layer.last_calls, layer.last_passes) == (199, 1.0)
    layer(z, method="parallel")
    assert layer.last_calls < 100
    assert 1 < layer.last_passes <= layer.last_calls


def test_a_layer_with_hooks_or_other_modules_is_sampled_through_them():
    layer, guidance = make(8), mb.Guidance(0.5, attention_temperature=2.0)
    z = latents(layer)
    want = layer(z, method="sequential", guidance=guidance)
    calls = []
    handle = layer.net.layers[0].register_forward_hook(lambda *_: calls.append(1))
    assert_close(layer(z, method="sequential", guidance=guidance), want)
    assert len(calls) >= 7
    handle.remove()

    class Twice(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    up = layer.net.layers[1].mlp[1]
    other = Twice(up.in_features, up.out_features).double()
    other.load_state_dict({name: t / 2 for name, t in up.state_dict().items()})
    layer.net.layers[1].mlp[1] = other
    assert_close(layer(z, method="sequential", guidance=guidance), want)


def _replace_forward(net):
    linear = net.layers[0].mlp[1]
    linear.forward = lambda x: torch.nn.Linear.forward(linear, 0.5 * x)


CHANGES = {
    "eps": lambda net: setattr(net.layers[1].mlp[0], "eps", 0.1),
    "eps of attention": lambda net: setattr(net.layers[0].attention.norm, "eps", 0.1),
    "another approximation": lambda net: setattr(net.layers[0].mlp[2], "approximate", "tanh"),
    "a last norm": lambda net: setattr(net, "norm", torch.nn.LayerNorm(16).double()),
    "no bias": lambda net: setattr(net.layers[0].mlp[1], "bias", None),
    "forward of the instance": _replace_forward,
    "another layer of the perceptron": lambda net: net.layers[0].mlp.append(torch.nn.GELU()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_net_that_was_changed_samples_as_its_density_says(change):
    """The step by patch calls no modules, and must compute what they do."""
    layer = make(8)
    change(layer.net)
    z = latents(layer)
    assert_close(layer.inverse(layer(z, method="sequential")[0])[0], z, atol=1e-9, rtol=0)


def test_sequential_sampling_under_autocast():
    layer = make(12).float()
    z = latents(layer).float()
    want, _ = layer(z, method="sequential")
    with torch.autocast("cpu", torch.bfloat16):
        x, _ = layer(z, method="sequential")
    assert x.dtype == torch.float32
    assert_close(x, want, atol=0.1, rtol=0.1)


def test_samples_that_have_settled_are_left_out():
    """A sample whose patches all have zero scale and shift but one that has not."""
    seen = []

    class Predict:
        """Patch i is shifted by patch i - 1, in the second sample alone."""

        slope = torch.tensor([0.0, 1.0]).view(2, 1, 1)

        def __call__(self, x, start):
            seen.append(len(x))
            return torch.zeros_like(x), self.slope * x

        def keep(self, rows):
            self.slope = self.slope[rows]

    z = torch.ones(2, 30, 1)
    x, _, work = sample_in_windows(Predict(), z, method="parallel", tol=1e-6)
    assert_close(x[0], z[0])
    assert_close(x[1, :, 0], torch.arange(1.0, 31))
    assert seen[0] == 2 and seen[-1] == 1
    assert work.calls == len(seen) and work.patches < 30 * len(seen)


def test_auto_gives_up_windows_that_do_not_pay():
    class Predict:
        """Nothing is known of a patch before the last one is right."""

        def __call__(self, x, start):
            return torch.zeros_like(x), 3 * x

        def by_patch(self):
            return self

        def keep(self, rows):
            raise AssertionError("one sample is not left out")

    z = 1e-3 * torch.ones(1, 400, 1, dtype=torch.float64)
    calls = {}
    for method in ("sequential", "parallel", "auto"):
        x, _, work = sample_in_windows(Predict(), z, method=method, tol=1e-14)
        calls[method] = (work.calls, work.patches)
        assert (x[0, 1:] - 3 * x[0, :-1] - z[0, 1:]).abs().max() <= 1e-9 * x.abs().max()
    assert calls["auto"][1] < 0.5 * calls["parallel"][1]


@pytest.mark.parametrize("method", ["sequential", "parallel", "auto"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_a_sample_that_breaks_harms_no_other(method, value):
    layer = make(40).float()
    z = latents(layer, 4).float()
    want, want_log_det = layer(z, method="sequential")
    z[2, 5] = value
    x, log_det = layer(z, method=method)
    others = torch.tensor([0, 1, 3])
    assert_close(x[others], want[others], atol=1e-4, rtol=1e-4)
    assert_close(log_det[others], want_log_det[others], atol=1e-4, rtol=1e-4)
    broken, _ = layer(z, method="sequential")
    assert torch.equal(x[2].isfinite(), broken[2].isfinite())
    assert_close(x[2, :5], broken[2, :5], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_steep_nets_are_solved_exactly_by_any_method(spread):
    """Guesses overflow on the way, which must not reach the patches before them."""
    layer = make(24, spread, num_layers=1, volume_preserving=True).float()
    z = latents(layer, 3).float()
    want, _ = layer(z, method="sequential")
    x, _ = layer(z, method="parallel")
    finite = want.isfinite()
    assert torch.equal(x.isfinite(), finite)
    scale = want[finite].abs().clamp(min=1)
    assert ((x - want)[finite].abs() / scale).max() < 1e-3


@pytest.mark.parametrize("guidance", [None, mb.Guidance(0.5)], ids=["plain", "guided"])
def test_windows_and_single_patches_agree_with_guidance(guidance):
    layer = make(256, spread=0.03, num_classes=2, num_layers=1)
    z, context = latents(layer, 1), weights(layer, 1)
    want = layer(z, context, method="sequential", guidance=guidance)
    assert layer.last_calls == 255
    got = layer(z, context, method="parallel", guidance=guidance)
    assert_close(got, want, atol=1e-10, rtol=1e-10)
    assert layer.last_calls < 120


@pytest.mark.parametrize("guidance", [None, mb.Guidance(0.5, attention_temperature=2.0)])
def test_samples_left_out_take_their_class_with_them(guidance, monkeypatch):
    """Some samples settle sooner than others, and one breaks."""
    layer = make(14, spread=0.1, num_classes=2, num_layers=1)
    z, context = latents(layer, 6), weights(layer, 6)
    z[::2] *= 0.01
    z[5, 3] = torch.nan
    layer.tol = 10.0  # of float32: 2e-8
    batches = []
    run = type(layer.net).read
    monkeypatch.setattr(
        type(layer.net),
        "read",
        lambda net, x, *args, **kwargs: batches.append(len(x)) or run(net, x, *args, **kwargs),
    )
    with torch.no_grad():
        x, log_det = layer(z, context, method="parallel", guidance=guidance)
    assert batches[-1] < batches[0] / 2, "no sample was left out"
    want, want_log_det = layer(z, context, method="sequential", guidance=guidance)
    assert_close(x, want, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert_close(log_det, want_log_det, atol=1e-6, rtol=1e-6, equal_nan=True)


def test_float64_is_exact_to_its_own_precision():
    layer = make(60, spread=0.05)
    z = latents(layer, 2)
    x, _ = layer(z, method="parallel")
    assert (layer.inverse(x)[0] - z).abs().max() < 1e-12


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_gradients_through_sampling_are_those_of_the_definition(options):
    layer = make(6, **options)
    z, context = latents(layer), weights(layer)

    def gradients(run):
        inputs = [z.clone().requires_grad_(), *layer.parameters()]
        x, log_det = run(inputs[0])
        loss = x.sin().sum() + log_det.square().sum()
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    got = gradients(lambda z: layer(z, context))
    want = gradients(lambda z: _definition(layer, z, context))
    for one, wanted in zip(got, want):
        if wanted is not None:
            assert_close(one, wanted, atol=1e-9, rtol=1e-7)


def _definition(layer, z, context):
    z = z.flip(1) if layer.reverse else z
    patches, log_det = [z[:, 0]], z.new_zeros(len(z))
    for i in range(1, layer.num_patches):
        params = layer.net(torch.stack(patches, 1), context)[:, -1]
        shift = params[:, -layer.features :]
        log_scale = 0 * shift if layer.volume_preserving else params[:, : layer.features]
        patches.append(z[:, i] * log_scale.exp() + shift)
        log_det = log_det + log_scale.sum(1)
    x = torch.stack(patches, 1)
    return (x.flip(1) if layer.reverse else x), log_det


def test_checkpointing_changes_no_gradient():
    layer = make(8)
    x = latents(layer)

    def gradients():
        z, log_det = layer.inverse(x)
        return torch.autograd.grad(z.square().sum() - log_det.sum(), [*layer.parameters()])

    calls = []
    layer.net.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    want = gradients()
    assert len(calls) == 1
    layer.net.checkpointing = True
    assert_close(gradients(), want)
    assert len(calls) == 3, "the layer was not computed again"


def test_samples_can_be_trained_on():
    """They are computed in inference mode, which must not show."""
    layer = make(8)
    x, _ = layer(latents(layer).detach())
    x = x.detach()
    layer.inverse(x)[0].sum().backward()
    x.add_(1)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_traces_of_one_layer_with_gradients_are_one_graph(direction):
    """And its gradients and batch sizes are those of the call; windows would be frozen."""
    layer = mb.TransformerAutoregressive(5, 3, channels=16, head_dim=8).requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    run = layer if direction == "forward" else layer.inverse
    traced = torch.jit.trace(lambda x: run(x), torch.randn(4, 5, 3, requires_grad=True))
    x = torch.randn(7, 5, 3, requires_grad=True)
    gradients = []
    for y, log_det in (run(x), traced(x)):
        score = y.square().sum() + log_det.sum()
        gradients.append((y, log_det, *torch.autograd.grad(score, x)))
    assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
