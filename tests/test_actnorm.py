"""Data-dependent initialisation."""

import copy
import warnings

import normflows as nf
import pytest
import torch
from torch import distributed, multiprocessing, nn, optim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors import ActNorm


def batch(dtype=torch.float32):
    return torch.tensor([1.0, 20.0, 0.1]) * torch.randn(500, 3, dtype=dtype) + 7


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_first_training_batch_comes_out_normalised(direction):
    layer = ActNorm(3)
    run = layer if direction == "forward" else layer.inverse
    y, _ = run(batch())
    assert_close(y.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert_close(y.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    before = copy.deepcopy(layer.state_dict())
    run(3 * batch() + 1)
    assert_close(layer.state_dict(), before, atol=0, rtol=0)


def test_agrees_with_normflows():
    x = batch(torch.float64)
    layer, reference = ActNorm(3).double(), nf.flows.ActNorm(3).double()
    z, log_det = layer.inverse(x)
    want, want_log_det = reference.inverse(x)
    assert_close(z, want, atol=1e-4, rtol=2e-3)  # The reference divides by n - 1 and adds 1e-6
    assert_close(log_det, want_log_det.expand(500), atol=0.01, rtol=0)


def test_evaluation_mode_never_initialises():
    layer = ActNorm(3).eval()
    x = batch()
    with pytest.warns(UserWarning, match="before its first batch in training mode"):
        assert torch.equal(layer.inverse(x)[0], x)
    assert not layer.initialized


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_untrained_layer_warns_once(direction, device):
    layer = ActNorm(3).to(device).eval()
    run = layer if direction == "forward" else layer.inverse
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            run(batch().to(device))
    assert len(caught) == (device == "cpu")  # without values there is nothing to be wrong


def test_a_layer_whose_parameters_came_otherwise_does_not_warn():
    trained = ActNorm(3)
    trained.inverse(batch())
    loaded, averaged, own = ActNorm(3), optim.swa_utils.AveragedModel(ActNorm(3)), ActNorm(3)
    loaded.load_state_dict(trained.state_dict())
    averaged.update_parameters(trained)
    nn.init.ones_(own.shift)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layer in (trained, loaded, averaged.module, own):
            layer.eval().inverse(batch())
        mb.check_bijection(ActNorm(3), batch()[:4])


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e10, 1e-10])
def test_constant_features_are_shifted_not_scaled(value):
    layer = ActNorm(2)
    x = torch.stack([torch.full((100,), value), torch.randn(100)], dim=1)
    z, _ = layer.inverse(x)
    assert z.isfinite().all()
    assert layer.log_scale[0] == 0
    assert_close(z[:, 0], torch.zeros(100), atol=max(1e-6 * abs(value), 1e-12), rtol=0)


def test_large_means_do_not_cancel():
    layer = ActNorm(1)
    x = 1e4 + torch.randn(1000, 1)
    z, _ = layer.inverse(x)
    assert_close(z.std(), torch.tensor(1.0), atol=1e-2, rtol=0)


def test_values_that_are_not_finite_are_left_out():
    x = batch()
    want = ActNorm(3)
    want.inverse(x)
    layer = ActNorm(3)
    layer.inverse(torch.cat([x, torch.full((1, 3), torch.nan), torch.full((1, 3), torch.inf)]))
    assert_close(layer.state_dict(), want.state_dict())


def test_an_empty_batch_does_not_initialise():
    layer = ActNorm(3)
    layer.inverse(torch.empty(0, 3))
    z, _ = layer.inverse(batch())
    assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)


def test_loading_says_whether_it_is_initialised():
    trained = ActNorm(3)
    trained.inverse(batch())
    for source, target in ((trained, ActNorm(3)), (ActNorm(3), copy.deepcopy(trained))):
        target.load_state_dict(source.state_dict())
        target.inverse(batch() - 50)
        moved = not torch.equal(target.shift, source.shift)
        assert moved == (source is not trained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_batches(dtype):
    x = (50 + torch.randn(70_000, 2)).to(dtype)
    layer = ActNorm(2)
    z, log_det = layer.inverse(x)
    assert (z.dtype, log_det.dtype) == (dtype, dtype)
    assert_close(layer.shift, x.float().mean(0), atol=1e-2, rtol=0)
    assert_close(layer.log_scale, x.float().std(0).log(), atol=1e-2, rtol=0)


def test_a_huge_first_batch_leaves_finite_parameters():
    layer = ActNorm(2)
    z, _ = layer.inverse(1e30 * torch.randn(100, 2))
    assert z.isfinite().all()
    assert layer.log_scale.isfinite().all()


def test_a_buffer_that_was_set_from_outside_counts():
    trained, other = ActNorm(3), ActNorm(3)
    trained.inverse(batch())
    for target, source in zip(
        (*other.parameters(), *other.buffers()), (*trained.parameters(), *trained.buffers())
    ):
        target.data.copy_(source)
    other.inverse(batch() - 50)
    assert_close(other.state_dict(), trained.state_dict(), atol=0, rtol=0)


def _worker(rank, size, folder, batches):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    layer = ActNorm(3)
    layer.inverse(batches[rank])
    torch.save(layer.state_dict(), f"{folder}/{rank}.pt")

    # DistributedDataParallel hands rank 0's state, restored there alone, to the others.
    restored = ActNorm(3)
    if rank == 0:
        restored.load_state_dict(layer.state_dict())
    nn.parallel.DistributedDataParallel(restored)
    restored.inverse(batches[rank] - 50)
    torch.save(restored.state_dict(), f"{folder}/restored-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_take_the_statistics_of_the_joint_batch(tmp_path):
    x = batch()
    batches = [x[:120], x[120:]]  # of different size and, being ordered, different mean
    batches[1] += 5
    multiprocessing.spawn(_worker, args=(2, tmp_path, batches), nprocs=2)
    want = ActNorm(3)
    want.inverse(torch.cat(batches))
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert_close(states[0], states[1], atol=0, rtol=0)
    assert_close(states[0], dict(want.state_dict()), atol=1e-5, rtol=1e-5)
    for rank in range(2):
        restored = torch.load(tmp_path / f"restored-{rank}.pt", weights_only=True)
        assert_close(restored, states[0], atol=0, rtol=0)


@pytest.mark.parametrize("others", ["untrained", "trained"])
def test_state_that_is_lent_does_not_count_as_the_first_batch(others):
    """`functional_call` puts other parameters and buffers into the layer for one call."""
    layer, lender, x = ActNorm(3), ActNorm(3), batch()
    if others == "trained":
        lender.inverse(x)
    state = {name: tensor.clone() for name, tensor in lender.state_dict().items()}
    z, _ = torch.func.functional_call(nf.flows.Reverse(layer), with_prefix(state), (x,))
    assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    assert state["initialized"] == 1 and not layer.initialized
    assert_close(layer.inverse(x)[0], z, atol=1e-5, rtol=0)
    assert layer.initialized == 1
    # The state of the layer does not count for another that is lent to it.
    state = {name: tensor.clone() for name, tensor in ActNorm(3).state_dict().items()}
    y, _ = torch.func.functional_call(nf.flows.Reverse(layer), with_prefix(state), (2 * x,))
    assert_close(y, z, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "record",
    [torch.jit.trace, torch.export.export, lambda layer, x: make_fx(layer)(*x)],
    ids=["trace", "export", "make_fx"],
)
def test_a_graph_never_sets_the_parameters(record):
    """It would do so again for each batch that it is run on."""
    layer, x = mb.ActNorm(3), torch.randn(5, 3)
    with torch.no_grad(), pytest.raises(RuntimeError, match="exported would do for every"):
        record(layer, (x,))
    assert not layer.initialized and not layer.shift.any()
    layer(x)
    record(layer, (x,))


def with_prefix(state):
    return {f"flow.{name}": tensor for name, tensor in state.items()}


def of_many(layer, x):
    """Layers of their own buffers, as ensembles are run."""
    state = torch.func.stack_module_state([layer, mb.ActNorm(3)])
    return torch.func.vmap(lambda state: torch.func.functional_call(layer, state, x))(state)


@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x: torch.func.vmap(layer.inverse)(x.expand(2, -1, -1)),
        lambda layer, x: torch.func.grad(lambda x: layer.inverse(x)[0].sum())(x),
        of_many,
    ],
    ids=["vmap", "grad", "ensemble"],
)
def test_a_first_batch_under_torch_func_is_refused(run):
    layer, x = mb.ActNorm(3), torch.randn(5, 3)
    with pytest.raises(RuntimeError, match=r"^ActNorm: the first batch in training mode sets"):
        run(layer, x)
    assert not layer.initialized and not layer.shift.any()
    layer.inverse(x)
    if run is not of_many:
        run(layer, x)
