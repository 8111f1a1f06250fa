"""Properties of every layer of the registry."""

import copy
import pickle

import normflows as nf
import pytest
import torch
from conftest import LAYERS, Case
from normflows.flows.flow_test import FlowTest
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import swa_utils
from torch.testing import assert_close

import mixer_bijectors as mb

DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "inverse"])
NOT_IDENTITY = {"Patchify", "Patchify-tall", "CyclicShift", "CyclicShift-offset"} | {
    "Chain",  # holds normflows' random permutation
    "LULinear-rotation",
}


def run(layer, direction, x, context=None):
    """One direction, with context only where there is one, as normflows' models call layers."""
    method = layer if direction == "forward" else layer.inverse
    return method(x) if context is None else method(x, context=context)


def skip_adaptive(case: Case) -> None:
    if case.adaptive:
        pytest.skip("its solver looks at values to choose its steps")


def start(case: Case, direction: str, dtype: torch.dtype, device: str, batch: int = 4):
    make = case.latents if direction == "forward" else case.data
    return make(dtype, device, batch)


def test_is_a_bijection(case, device):
    layer = case.build(torch.float64, device)
    if isinstance(layer, mb.ContinuousFlow):
        layer.tol = 1e-9  # enough for this check, which runs the layer a hundred times
    double = {"dtype": torch.float64, "device": device}
    mb.check_bijection(
        layer, case.data(**double), case.context(**double), z=case.latents(**double)
    )


def test_passes_the_flow_test_of_normflows(case, device):
    layer = case.build(torch.float32, device)
    if case.latent_event:  # that test wants equal shapes: image -> matrix -> image has them
        layer = mb.Chain([nf.flows.Reverse(layer), layer])
    FlowTest().checkForwardInverse(
        layer,
        case.data(torch.float32, device),
        case.context(torch.float32, device),
        atol=1e-5,
        rtol=1e-5,
    )


def test_float64_round_trip(case, device):
    layer = case.build(torch.float64, device)
    x, context = case.data(torch.float64, device), case.context(torch.float64, device)
    z, log_det = run(layer, "inverse", x, context)
    back, log_det_back = run(layer, "forward", z, context)
    assert (back - x).abs().max() < 1e-10
    assert (log_det + log_det_back).abs().max() < 1e-10


@DIRECTIONS
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiles_to_one_graph(case, device, direction, backend):
    skip_adaptive(case)
    if case.context_features and (backend == "inductor" or case.rounding):
        pytest.skip("to a compiler, context is one more input of the net")
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.float32, device)
    context = case.context(torch.float32, device)
    compiled = torch.compile(
        lambda x, context: run(layer, direction, x, context), fullgraph=True, backend=backend
    )
    # Passes with gradients of a reversible chain are no part of a graph.
    with torch.set_grad_enabled(not isinstance(layer, mb.ReversibleChain)):
        got = compiled(x, context)
    assert_close(got, run(layer, direction, x, context), atol=1e-5, rtol=1e-5)


@DIRECTIONS
@pytest.mark.slow
def test_one_graph_serves_all_batch_sizes(case, device, direction):
    """In one compiled graph of symbolic sizes, gradients included: the first batch's."""
    skip_adaptive(case)
    if case.context_features and case.rounding:
        pytest.skip("to a compiler, context is one more input of the net")
    layer = case.build(torch.float32, device)
    if isinstance(layer, mb.ReversibleChain):
        pytest.skip("its passes with gradients are no part of a graph")
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, context: run(layer, direction, x, context),
        fullgraph=True,
        dynamic=True,
        backend=graphs,
    )
    first = 0
    # No size of an event, which the compiler would take for the same symbol; and above 15, up
    # to which torch has another kernel for convolutions.
    for batch in (17, 19, 23):
        x = start(case, direction, torch.float32, device, batch)
        context = case.context(torch.float32, device, batch)
        gradients = []
        for function in (compiled, lambda x, c: run(layer, direction, x, c)):
            leaf = x.clone().requires_grad_()
            y, log_det = function(leaf, context)
            (y.square().sum() + log_det.sum()).backward()
            gradients.append((y, log_det, leaf.grad))
        assert_close(*gradients, atol=1e-4, rtol=1e-4)
        first = graphs.frame_count if batch == 17 else first
    assert graphs.frame_count == first


@DIRECTIONS
@pytest.mark.parametrize("how", ["trace", pytest.param("export", marks=pytest.mark.slow)])
def test_a_frozen_layer_takes_other_batch_sizes(case, device, direction, how):
    """`len(x)` would be the number of the example, in every batch that follows."""
    skip_adaptive(case)
    layer = case.make()
    if how == "trace" and isinstance(layer, mb.TransformerAutoregressive):
        pytest.skip("its trace is tested with its layer")
    if any(isinstance(m, nf.flows.Permute) for m in layer.modules()):
        pytest.skip("normflows' permutation freezes its batch size, which raises in another")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = case.build(torch.float32, device)

        def forward(self, x, context=None):
            return run(self.layer, direction, x, context)

    def arguments(batch):
        x = start(case, direction, torch.float32, device, batch)
        context = case.context(torch.float32, device, batch)
        return (x,) if context is None else (x, context)

    model = Model()
    with torch.no_grad():
        if how == "trace":
            # An empty batch is an example too, but for nets of normflows, which refuse it.
            examples = (1, 4) if isinstance(layer, mb.ParallelInverse) else (0, 1, 4)
            frozen = [torch.jit.trace(model, arguments(n), check_trace=False) for n in examples]
        else:
            batch = torch.export.Dim("batch", min=2)
            shapes = tuple({0: batch} for _ in arguments(4))
            program = torch.export.export(model, arguments(4), dynamic_shapes=shapes)
            frozen = [program.module()]
        for each in frozen:
            assert_close(each(*arguments(7)), model(*arguments(7)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("average", ["ema", "ema of each", "swa"])
def test_an_average_of_the_same_weights_is_the_same_layer(case, device, average):
    """Buffers are averaged as numbers, also those that are none."""
    layer = case.build(torch.float32, device)
    if not layer.state_dict():
        pytest.skip("it holds nothing to be averaged")
    functions = {
        "ema": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9999)},
        "ema of each": {"avg_fn": swa_utils.get_ema_avg_fn(0.9999)},
        "swa": {},
    }
    averaged = swa_utils.AveragedModel(layer, use_buffers=True, **functions[average])
    for _ in range(5):
        averaged.update_parameters(layer)
    x, context = case.data(torch.float32, device), case.context(torch.float32, device)
    got, want = (run(m, "inverse", x, context) for m in (averaged.module, layer))
    assert_close(got, want, atol=1e-5, rtol=1e-5)


@DIRECTIONS
def test_runs_on_the_meta_device(case, direction):
    skip_adaptive(case)
    layer = case.build(torch.float32, "meta")
    x = start(case, direction, torch.float32, "meta", 7)
    y, log_det = run(layer, direction, x, case.context(torch.float32, "meta", 7))
    assert y.shape[0] == 7 and y[0].numel() == x[0].numel()
    assert (log_det.shape, log_det.dtype, log_det.device.type) == ((7,), x.dtype, "meta")


@DIRECTIONS
def test_vmaps(case, device, direction):
    skip_adaptive(case)
    layer = case.build(torch.float64, device)
    x = torch.stack([start(case, direction, torch.float64, device)] * 2)
    x[1] *= 0.5
    context = case.context(torch.float64, device)
    mapped = torch.func.vmap(lambda x: run(layer, direction, x, context))(x)
    looped = [run(layer, direction, one, context) for one in x]
    assert_close(mapped, tuple(torch.stack(parts) for parts in zip(*looped)))


@DIRECTIONS
def test_state_survives(case, device, direction):
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.float32, device)
    context = case.context(torch.float32, device)
    want = run(layer, direction, x, context)
    loaded = case.build(torch.float32, device, seed=5)
    loaded.load_state_dict(layer.state_dict())
    copies = [loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for other in copies:
        assert_close(run(other, direction, x, context), want, atol=0, rtol=0)
    assert_close(run(layer.double().float(), direction, x, context), want, atol=0, rtol=0)


@DIRECTIONS
@pytest.mark.parametrize("low", [torch.bfloat16])
def test_half_precision_parameters_run_both_ways(case, device, direction, low):
    layer = case.build(low, device)
    x = start(case, direction, low, device)
    y, log_det = run(layer, direction, x, case.context(low, device))
    assert (y.dtype, log_det.dtype) == (low, low)
    assert y.isfinite().all() and log_det.isfinite().all()


@DIRECTIONS
def test_data_of_lower_precision_comes_back_in_its_own(case, device, direction):
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.bfloat16, device)
    context = case.context(torch.float32, device)
    y, log_det = run(layer, direction, x, context)
    assert (y.dtype, log_det.dtype) == (torch.bfloat16, torch.bfloat16)
    want, want_log_det = run(layer, direction, x.float(), context)
    assert_close(y.float(), want, atol=5e-2, rtol=5e-2)
    assert_close(log_det.float(), want_log_det, atol=0.1, rtol=5e-2)


@DIRECTIONS
def test_bfloat16_autocast_is_close_to_float32(case, device, direction):
    """Nets run in bfloat16; bijections and log-determinants stay in float32."""
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.float32, device)
    context = case.context(torch.float32, device)
    want = run(layer, direction, x, context)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        y, log_det = run(layer, direction, x, context)
    assert (y.dtype, log_det.dtype) == (torch.float32, torch.float32)
    assert_close((y, log_det), want, atol=5e-2, rtol=5e-2)


@DIRECTIONS
def test_log_det_can_be_added_to_in_place(case, device, direction):
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.float32, device)
    _, log_det = run(layer, direction, x, case.context(torch.float32, device))
    log_det.detach().add_(1)


@DIRECTIONS
def test_gradients_reach_every_parameter(case, device, direction):
    layer = case.build(torch.float64, device)
    x = start(case, direction, torch.float64, device).requires_grad_()
    y, log_det = run(layer, direction, x, case.context(torch.float64, device))
    (y.square().sum() + log_det.sum()).backward()
    for name, parameter in [("input", x), *layer.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@DIRECTIONS
def test_gradients_on_the_meta_device(case, direction):
    """Each gradient is on the device of its parameter; on another, autograd refuses it."""
    skip_adaptive(case)
    layer = case.build(torch.float32, "meta")
    x = start(case, direction, torch.float32, "meta").requires_grad_()
    y, log_det = run(layer, direction, x, case.context(torch.float32, "meta"))
    (y.square().sum() + log_det.sum()).backward()
    for name, parameter in [("input", x), *layer.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.is_meta and parameter.grad.shape == parameter.shape, name


@DIRECTIONS
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("training", [False, True])
def test_small_batches(case, device, direction, batch, training):
    layer = case.build(torch.float32, device).train(training)
    x = start(case, direction, torch.float32, device, batch)
    y, log_det = run(layer, direction, x, case.context(torch.float32, device, batch))
    assert len(y) == batch and log_det.shape == (batch,)
    assert y.isfinite().all() and log_det.isfinite().all()


@DIRECTIONS
def test_nan_stays_in_its_sample(case, device, direction):
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.float32, device)
    context = case.context(torch.float32, device)
    want, want_log_det = run(layer, direction, x, context)
    x = x.clone()
    x[1] = torch.nan
    y, log_det = run(layer, direction, x, context)
    others = torch.tensor([0, 2, 3], device=x.device)
    assert y[1].isnan().all()
    assert_close(y[others], want[others])
    assert_close(log_det[others], want_log_det[others])


@DIRECTIONS
def test_takes_strided_input(case, device, direction):
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.float32, device)
    context = case.context(torch.float32, device)
    strided = x.movedim(0, -1).contiguous().movedim(-1, 0)
    assert_close(run(layer, direction, strided, context), run(layer, direction, x, context))


@DIRECTIONS
@pytest.mark.parametrize("layout", ["contiguous", "strided", "expanded", "channels last"])
def test_results_can_be_flattened_by_view(case, device, direction, layout):
    layer = case.build(torch.float32, device)
    x = start(case, direction, torch.float32, device)
    if layout == "strided":
        x = x.movedim(0, -1).contiguous().movedim(-1, 0)
    elif layout == "expanded":
        x = x[:1].expand_as(x)
    elif layout == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    y, log_det = run(layer, direction, x, case.context(torch.float32, device))
    assert y.view(len(x), -1).shape == (len(x), x[0].numel())
    assert y.is_contiguous() and log_det.is_contiguous()


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("kind", ["MixerFlow", "TarFlow"])
def test_results_of_models_can_be_flattened_by_view(device, kind, num_classes):
    if kind == "MixerFlow":
        model = mb.MixerFlow((3, 4, 8), 2, 2, hidden_features=8, num_classes=num_classes)
    else:
        sizes = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}
        model = mb.TarFlow((3, 4, 8), 2, num_classes=num_classes, **sizes)
    model = model.eval().to(device)
    labels = (torch.arange(2, device=device),) if num_classes else ()
    x = torch.rand(2, 3, 4, 8, device=device)
    layouts = x, x.contiguous(memory_format=torch.channels_last), x[:1].expand(2, -1, -1, -1)
    for x in layouts:
        z, _ = model.inverse_and_log_det(x, *labels)
        results = [z, model.inverse(x, *labels), model.forward(z, *labels)]
        results += [model.sample(2, *labels)[0], model.embed(x, *labels)]
        results += [model.forward(z.mT.contiguous().mT, *labels)]
        for result in results:
            assert result.view(2, -1).shape == (2, 96)


def test_is_the_identity_at_initialisation(request, case, device):
    if request.node.callspec.params["case"] in NOT_IDENTITY:
        pytest.skip("its name says that it is not the identity")
    layer = case.make().eval().to(device)
    x = case.data(torch.float32, device)
    z, log_det = run(layer, "inverse", x, case.context(torch.float32, device))
    assert_close(z, x, atol=case.rounding, rtol=0)
    assert_close(log_det, torch.zeros_like(log_det), atol=5 * case.rounding, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "conditional", "multiscale"])
def test_works_inside_the_models_of_normflows(case, device, kind):
    layer = case.build(torch.float32, device)
    base = nf.distributions.DiagGaussian(case.latent_event or case.event, trainable=False)
    context = case.context(torch.float32, device)
    if kind == "multiscale":
        if context is not None:
            pytest.skip("normflows.MultiscaleFlow hands no context to its layers")
        model = nf.MultiscaleFlow([base], [[layer]], [], class_cond=False).to(device)
        arguments, options = (None,), {}
    elif kind == "plain" and context is None:
        model, arguments, options = nf.NormalizingFlow(base, [layer]).to(device), (), {}
    else:
        model = nf.ConditionalNormalizingFlow(base, [layer]).to(device)
        arguments, options = (), {"context": context}
    x = case.data(torch.float32, device)
    z, log_det = run(layer, "inverse", x, context)
    assert_close(model.log_prob(x, *arguments, **options), base.log_prob(z) + log_det)
    samples, log_prob = model.sample(4, **options)
    assert samples.shape == x.shape
    assert_close(model.log_prob(samples, *arguments, **options), log_prob, atol=1e-4, rtol=1e-4)


def test_context_reaches_the_layer(case, device):
    context = case.context(torch.float32, device)
    layer = case.build(torch.float32, device)
    x = case.data(torch.float32, device)
    if context is None:
        ignored = torch.randn(4, 3, device=device)
        assert_close(layer.inverse(x, context=ignored), layer.inverse(x), atol=0, rtol=0)
    else:
        one, other = (layer.inverse(x, context=c)[0] for c in (context, context + 1))
        assert not torch.allclose(one, other)


def test_every_public_layer_is_in_the_registry():
    registered = {name.split("-")[0] for name in LAYERS}
    public = {
        name
        for name in mb.__all__
        if isinstance(getattr(mb, name), type) and issubclass(getattr(mb, name), nf.flows.Flow)
    }
    assert public == registered | {"Bijection"}
