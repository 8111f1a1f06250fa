"""The MixerFlow model."""

import copy
import pickle
import warnings
from pathlib import Path

import normflows as nf
import pytest
import torch
from torch.testing import assert_close

import mixer_bijectors as mb


def small(**options):
    options = {"num_layers": 2, "hidden_features": 16, "shift_every": 2, **options}
    return mb.MixerFlow((3, 8, 12), (4, 2), **options)


def perturbed(model, scale=0.1):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return model.eval()


VARIANTS = {
    "affine": {},
    "additive": {"univariate": mb.Additive()},
    "no shift": {"shift_every": 0},
    "cyclic shift": {"shift": "cyclic"},
    "neighbourhood": {"neighbourhood": 3},
    "neighbourhood, splines, classes": {
        "neighbourhood": 3,
        "shift": "cyclic",
        "univariate": mb.RationalQuadratic(),
        "num_classes": 4,
    },
    "classes": {"num_classes": 4},
    "maf over patches": {"patch_flow": lambda n: nf.flows.MaskedAffineAutoregressive(n, n)},
    "spline over channels": {
        "channel_flow": lambda n: nf.flows.CoupledRationalQuadraticSpline(n, 1, 8)
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_train_and_invert(name):
    model = small(**VARIANTS[name])
    x = torch.rand(16, 3, 8, 12) * 2 - 1
    labels = torch.arange(16) % 4 if model.num_classes else None
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = model.forward_kld(x, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    model = model.eval().double()
    z, log_det = model.inverse_and_log_det(x.double(), labels)
    back, log_det_back = model.forward_and_log_det(z, labels)
    assert_close(back, x.double(), atol=1e-8, rtol=0)
    assert_close(log_det_back, -log_det, atol=1e-7, rtol=0)


def test_log_prob_is_the_change_of_variables():
    model = mb.MixerFlow((3, 4, 6), 2, num_layers=2, hidden_features=8, shift_every=2)
    model = perturbed(model).double()
    x = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model.embed(x[None])[0], x[0])
    log_det = torch.linalg.slogdet(jacobian.reshape(72, 72)).logabsdet
    z = model.embed(x)
    normal = torch.distributions.Normal(0.0, 1.0)
    assert_close(model.log_prob(x)[0], normal.log_prob(z[0]).sum() + log_det)


def test_shifts_are_inside_a_frame_or_before_a_layer():
    """Seen from the data, after the colours and the patches; the paper's is the default."""
    names = {
        shift: [type(flow).__name__ for flow in small(shift=shift, num_layers=3).flows[-3::-1]]
        for shift in ("frame", "cyclic", None)
    }
    assert names == {
        "frame": ["MixingLayer", "Shift", "MixingLayer"],
        "cyclic": ["MixingLayer", "CyclicShift", "MixingLayer", "MixingLayer"],
        None: ["MixingLayer"] * 3,
    }
    assert repr(small(shift="frame")) == repr(small())
    assert repr(small(shift=None)) == repr(small(shift_every=0))


@pytest.mark.parametrize("net", [None, mb.nets.KAN])
def test_couplings_over_features_read_a_neighbourhood(net):
    """Two couplings of 3 x 3 patches each: a patch is reached from two rows away, not three."""
    layer = mb.MixingLayer((2, 7), 4, hidden_features=8, neighbourhood=3, net=net)
    layer = perturbed(layer.channel_mixing).double()
    x = torch.randn(1, 14, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer.inverse(x)[0], x)
    reads = jacobian[0, :, :, 0].abs().amax((1, 3)) > 0
    column = torch.arange(14) % 7
    assert torch.equal(reads, (column.view(-1, 1) - column).abs() <= 2)


def test_is_a_model_of_normflows():
    model = perturbed(small())
    assert isinstance(model, nf.NormalizingFlow)
    x = torch.rand(5, 3, 8, 12)
    for method in ("log_prob", "forward_kld", "inverse"):
        want = getattr(nf.NormalizingFlow, method)(model, x)
        assert_close(getattr(model, method)(x), want)
    z = model.inverse(x)
    assert_close(model.forward_and_log_det(z), nf.NormalizingFlow.forward_and_log_det(model, z))
    torch.manual_seed(0)
    samples = model.sample(3)
    torch.manual_seed(0)
    assert_close(samples, nf.NormalizingFlow.sample(model, 3))
    assert_close(model.log_prob(samples[0]), samples[1], atol=1e-3, rtol=1e-4)
    assert model.embed(x).shape == (5, 3 * 8 * 12)


def test_is_the_identity_at_initialisation():
    model = mb.MixerFlow((3, 16, 16), num_layers=4, hidden_features=8).eval()
    x = torch.randn(2, 3, 16, 16)
    assert_close(model.inverse(x), mb.Patchify((3, 16, 16), 4).inverse(x)[0])


def test_classes_change_the_density():
    model = perturbed(small(num_classes=3))
    x = torch.rand(1, 3, 8, 12)
    bits = [model.log_prob(x, torch.tensor([label])).item() for label in range(3)]
    assert len(set(bits)) == 3
    samples, log_prob = model.sample(3, torch.tensor([0, 1, 2]))
    assert_close(
        model.log_prob(samples, torch.tensor([0, 1, 2])), log_prob, atol=1e-2, rtol=1e-4
    )


def test_labels_under_vmap_and_on_another_device():
    model = perturbed(small(num_classes=3))
    x, labels = torch.rand(4, 3, 8, 12), torch.tensor([0, 1, 2, 0])
    each = torch.func.vmap(lambda x, y: model.log_prob(x[None], y[None])[0])(x, labels)
    assert_close(each, model.log_prob(x, labels), atol=1e-3, rtol=1e-5)
    wrong = torch.tensor([3, -2, 0, -1])  # which cannot be looked at here
    each = torch.func.vmap(lambda x, y: model.log_prob(x[None], y[None])[0])(x, wrong)
    assert each.isnan().tolist() == [True, True, False, False]
    assert model.to("meta").log_prob(x.to("meta"), labels).shape == (4,)


def test_state_survives():
    model = perturbed(small(num_classes=3))
    x, labels = torch.rand(4, 3, 8, 12), torch.tensor([0, 1, 2, 0])
    want = model.log_prob(x, labels)
    loaded = small(num_classes=3).eval()
    loaded.load_state_dict(model.state_dict())
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other.log_prob(x, labels), want, atol=0, rtol=0)


def test_temperature_narrows_the_samples():
    model = small().eval()
    wide, narrow = (model.sample(200, temperature=t)[0].std() for t in (1.0, 0.5))
    assert_close(narrow / wide, torch.tensor(0.5), atol=0.02, rtol=0)
    assert model.q0.temperature is None
    model.q0.temperature = 0.5
    model.sample(2, temperature=0.7)
    assert model.q0.temperature == 0.5


def test_a_base_of_ones_own():
    base = nf.distributions.DiagGaussian((12, 24))
    model = small(base=base)
    assert model.q0 is base
    assert len(list(model.q0.parameters())) == 2


def test_empty_batches_and_nan_pixels():
    model = perturbed(small())
    assert model.log_prob(torch.empty(0, 3, 8, 12)).shape == (0,)
    x = torch.rand(3, 3, 8, 12)
    want = model.log_prob(x)
    x[1, 0, 2, 2] = torch.nan
    log_prob = model.log_prob(x)
    assert log_prob[1].isnan()
    assert_close(log_prob[[0, 2]], want[[0, 2]])


def test_keeps_float64():
    model = small().double()
    assert model.log_prob(torch.rand(2, 3, 8, 12, dtype=torch.float64)).dtype == torch.float64
    assert model.sample(2)[1].dtype == torch.float64


def test_the_paper_s_model():
    """30 layers, patches of 4 x 4, every fourth layer shifted; on no device at all."""
    with torch.device("meta"):
        model = mb.MixerFlow()
        assert model.log_prob(torch.empty(2, 3, 32, 32)).shape == (2,)
    assert sum(p.numel() for p in model.parameters()) == 9_384_204
    assert sum(isinstance(flow, mb.Shift) for flow in model.flows) == 7


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["inverse_and_log_det", "forward_and_log_det"])
def test_compiles_to_one_graph(direction):
    model = perturbed(small(num_classes=3))
    x = torch.rand(4, 3, 8, 12)
    labels = torch.tensor([0, 1, 2, 0])
    if direction == "forward_and_log_det":
        x = model.inverse(x, labels)
    compiled = torch.compile(getattr(model, direction), fullgraph=True)
    assert_close(
        compiled(x, labels), getattr(model, direction)(x, labels), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("method", ["log_prob", "embed", "forward_kld"])
@pytest.mark.parametrize(
    ("pixels", "warns"),
    {
        "levels": (torch.rand(2, 3, 8, 12) * 255, True),
        "sixteen levels": (torch.randint(17, (2, 3, 8, 12)).double().float(), True),
        "centred levels": (torch.rand(2, 3, 8, 12) * 255 - 128, True),
        "images": (torch.rand(2, 3, 8, 12) * 2 - 1, False),
        "noisy images": (torch.randn(2, 3, 8, 12), False),
        "one pixel far out": (torch.eye(96).reshape(32, 3, 8, 12)[:2] * 100 - 1, False),
        "nan": (torch.full((2, 3, 8, 12), torch.nan), False),
    }.values(),
)
def test_pixels_on_another_scale_warn_once(pixels, warns, method):
    model = small()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(model, method)(pixels)
        getattr(model, method)(pixels)
    assert len(caught) == warns
    if warns:
        assert "where models expect [-1, 1); scale 8-bit" in str(caught[0].message)


def test_results_are_contiguous():
    """So that `view` flattens them, also those of strided inputs."""
    model, tar = perturbed(small()), mb.presets.attention_hybrid((3, 8, 12), (4, 2), 1)
    for each in (model, tar.eval()):
        x = torch.rand(5, 8, 12, 3).permute(0, 3, 1, 2)
        z = each.inverse(x)
        results = [z, each.sample(2)[0], each(z), each.forward_and_log_det(z)[0]]
        strided = each(torch.randn(5, 24, 12).transpose(1, 2))
        for result in (*results, strided, each.inverse_and_log_det(x)[0]):
            assert result.view(len(result), -1).shape[1] == 288
        assert_close(each.log_prob(x), each.log_prob(x.contiguous()))


CHECKPOINTS = Path(__file__).parent / "data" / "checkpoints_0.1.pt"
SAVED = {
    "mixerflow": lambda: mb.MixerFlow(
        (1, 6, 8), 2, 2, shift_every=2, hidden_features=4, num_blocks=1, num_classes=2
    ),
    "layers": lambda: mb.Chain(
        [
            mb.CyclicShift((1, 6, 8), 2),
            mb.ChannelMixing(mb.LULinear(4, identity_init=False)),
            mb.PatchMixing(
                mb.ParallelInverse(mb.Autoregressive(12, hidden_features=12, num_blocks=1))
            ),
            mb.ChannelMixing(
                mb.Autoregressive(4, hidden_features=4, num_blocks=1, context_features=2)
            ),
            mb.ChannelMixing(mb.ActNorm(4)),
        ]
    ),
    "tarflow": lambda: mb.TarFlow(
        (1, 6, 8),
        2,
        channels=8,
        num_blocks=2,
        layers_per_block=1,
        head_dim=4,
        num_classes=2,
        volume_preserving=True,
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_checkpoints_of_version_0_1_load(name):
    """From before parts of layers had names, and layers kept indices of pixels."""
    saved = torch.load(CHECKPOINTS, weights_only=True)[name]
    model = SAVED[name]().eval()
    state = next(value for value in saved.values() if isinstance(value, dict))
    model.load_state_dict(state)
    with torch.no_grad():
        if name == "layers":
            z, log_det = model.inverse(saved["x"], torch.eye(2)[saved["labels"]])
            value = z.flatten(1).sum(1) + log_det
        else:
            value = model.log_prob(saved["x"], saved["labels"])
    assert_close(value, saved["value"], atol=1e-5, rtol=1e-5)


def test_parts_have_names_in_the_order_of_the_parameters_of_version_0_1():
    """So that states of optimisers, which go by that order, fit too."""
    model = SAVED["mixerflow"]()
    step = model.flows[0].flow.channel_mixing.flow
    assert isinstance(step.actnorm, mb.ActNorm) and isinstance(step.linear, mb.LULinear)
    assert step.couplings.flows[1].net.final.weight.shape == (4, 4)
    saved = torch.load(CHECKPOINTS, weights_only=True)["mixerflow"]
    state = next(value for value in saved.values() if isinstance(value, dict))
    parts = {"flows.0.": "patch_mixing.", "flows.1.": "channel_mixing."}
    names = [name for name, _ in model.named_parameters()]
    shapes = [tuple(p.shape) for p in model.parameters()]
    buffers = ("q0", "permutation", "sign", "initialized", "inner")
    former = [k for k in state if not any(part in k for part in buffers)]
    assert [tuple(state[k].shape) for k in former] == shapes
    assert [k.rsplit(".", 2)[1:] for k in former if ".net." in k] == [
        k.rsplit(".", 2)[1:] for k in names if ".net." in k
    ]
    assert all(part in " ".join(names) for part in parts.values())


def test_hybrids_of_version_0_1_load():
    """Whatever builds the flows inside; numbered parts as they were saved then."""
    for options in (VARIANTS["maf over patches"], VARIANTS["spline over channels"]):
        model = perturbed(small(**options))
        parts = {
            "patch_mixing": 0,
            "channel_mixing": 1,
            "couplings": 0,
            "linear": 1,
            "actnorm": 2,
        }
        state = model.state_dict()
        former = {}
        for key, value in state.items():
            words = [f"flows.{parts[w]}" if w in parts else w for w in key.split(".")]
            former[".".join(words)] = value
        assert former.keys() != state.keys()
        other = small(**options).eval()
        other.load_state_dict(former)
        x = torch.rand(2, 3, 8, 12)
        assert torch.equal(other.log_prob(x), model.log_prob(x))
