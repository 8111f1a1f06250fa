"""Density and classifier in one."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import mixer_bijectors as mb


def mixer():
    return mb.MixerFlow((1, 6, 8), 2, num_layers=2, hidden_features=8, shift_every=0)


def tar():
    sizes = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}
    return mb.TarFlow((1, 6, 8), 2, **sizes)


def small(build=mixer, weight=0.5):
    """A model whose head is not zero, since zeros hide mistakes."""
    model = mb.HybridClassifier(build(), 3, weight=weight)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def data(batch=5, dtype=torch.float32):
    return 2 * torch.rand(batch, 1, 6, 8, dtype=dtype) - 1, torch.arange(batch) % 3


@pytest.mark.parametrize("build", [mixer, tar])
def test_one_pass_gives_density_and_logits(build):
    model = small(build)
    passes = []
    model.flow.flows[-1].register_forward_hook(lambda *_: passes.append("forward"))
    inverse = model.flow.flows[-1].inverse
    model.flow.flows[-1].inverse = lambda *a: passes.append("inverse") or inverse(*a)
    x, _ = data()
    log_prob, logits = model(x)
    assert passes == ["inverse"]
    assert_close(log_prob, model.flow.log_prob(x))
    assert_close(log_prob, model.log_prob(x))
    assert_close(logits, model.head(model.embed(x)))
    assert_close(model.embed(x), model.flow.embed(x))


@pytest.mark.parametrize("weight", [0.0, 0.5, 20.0])
def test_loss_is_nats_per_dimension_and_weighted_cross_entropy(weight):
    model = small(weight=weight)
    x, labels = data()
    nats = -model.flow.log_prob(x).mean() / (6 * 8)
    entropy = F.cross_entropy(model.head(model.flow.embed(x)), labels)
    assert_close(model.loss(x, labels), nats + weight * entropy)
    assert_close(model.combine(*model(x), labels), model.loss(x, labels))
    assert_close(model.loss(x, labels.to(torch.uint8)), model.loss(x, labels))


def test_starts_with_all_classes_as_likely():
    model = mb.HybridClassifier(mixer(), 4, weight=2.0)
    x, labels = data()
    log_prob, logits = model(x)
    assert_close(logits, torch.zeros(5, 4))
    assert_close(model.loss(x, labels), -log_prob.mean() / 48 + 2 * math.log(4))


def test_learns_classes_and_density():
    model = mb.HybridClassifier(mixer(), 2, weight=1.0)
    labels = torch.arange(64) % 2
    x = 0.2 * torch.randn(64, 1, 6, 8) + (labels - 0.5).view(-1, 1, 1, 1)
    before = model.log_prob(x).mean().item()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        loss = model.loss(x, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    log_prob, logits = model.eval()(x)
    assert (logits.argmax(1) == labels).all()
    assert log_prob.mean() > before
    z = model.flow.inverse(x)
    assert_close(model.flow(z), x, atol=1e-4, rtol=0)


def test_the_classifier_moves_the_flow():
    x, labels = data()
    gradients = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model = small(weight=weight)
        model.loss(x, labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.flow.parameters()]))
    assert not torch.allclose(*gradients)


def test_samples_are_those_of_the_flow():
    model = small()
    torch.manual_seed(0)
    samples = model.sample(3, temperature=0.7)
    torch.manual_seed(0)
    assert_close(samples, model.flow.sample(3, temperature=0.7))


def test_keeps_float64_and_takes_float32_images():
    model = small().double()
    x, labels = data(dtype=torch.float64)
    assert all(output.dtype == torch.float64 for output in model(x))
    assert model.loss(x, labels).dtype == torch.float64
    assert_close(model(x.float())[1], model(x)[1], atol=1e-4, rtol=0)


def test_state_survives():
    torch.manual_seed(0)
    model = small()
    x, labels = data()
    want = model.loss(x, labels)
    loaded = mb.HybridClassifier(mixer(), 3, weight=0.5).eval()
    loaded.load_state_dict(model.state_dict())
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other.loss(x, labels), want, atol=0, rtol=0)


def test_on_no_device_under_vmap_and_without_images():
    model = small()
    x, labels = data()
    log_prob, logits = torch.func.vmap(lambda x: model(x[None]))(x)
    assert_close((log_prob[:, 0], logits[:, 0]), model(x), atol=1e-5, rtol=1e-5)
    each = torch.func.vmap(lambda x, y: model.loss(x[None], y[None]))(x, labels)
    assert_close(each.mean(), model.loss(x, labels))
    assert model(x[:0])[1].shape == (0, 3)
    model.to("meta")
    assert model.loss(x.to("meta"), labels.to("meta")).shape == ()


def test_autocast_leaves_the_density_in_float32():
    model = small()
    x, labels = data()
    with torch.autocast("cpu", torch.bfloat16):
        log_prob, _ = model(x)
        loss = model.loss(x, labels)
    assert log_prob.dtype == loss.dtype == torch.float32
    assert_close(loss, model.loss(x, labels), atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_compiles_to_one_graph():
    model = small()
    x, labels = data()
    compiled = torch.compile(model.loss, fullgraph=True)
    assert_close(compiled(x, labels), model.loss(x, labels), atol=1e-4, rtol=1e-4)


def test_metrics_are_of_each_image():
    model = small()
    x, labels = data()
    loss, metrics = model.loss_and_metrics(x, labels)
    log_prob, logits = model(x)
    assert_close(loss, model.loss(x, labels))
    assert_close(metrics["bits_per_dim"], mb.images.bits_per_dim(log_prob, (1, 6, 8)))
    assert_close(metrics["accuracy"], (logits.argmax(1) == labels).float())
    confidence, right = metrics["calibration_error"].unbind(1)
    assert_close(confidence, logits.softmax(1).amax(1))
    assert_close(right, metrics["accuracy"])
    assert tuple(metrics) == model.metric_names
    with pytest.raises(ValueError, match=r"the loss needs labels; .* of shape \(5,\)"):
        model.loss(x)


@pytest.mark.parametrize("scale", [0.0, 0.1, 5.0])
def test_the_calibration_error_is_that_of_confidences(scale):
    """Also of logits that all lie in [0, 1], such as zeros of a model that is not trained."""
    pytest.importorskip("lightning")
    from torchmetrics.functional.classification import multiclass_calibration_error

    from mixer_bijectors.train.metrics import make_metrics

    x, labels = data(60)
    model = mb.HybridClassifier(mixer(), 3, weight=0.5)
    model.head.weight.data.normal_(std=scale)
    metrics = make_metrics(model.metric_names)
    for part in zip(x.split(25), labels.split(25)):
        metrics["calibration_error"].update(model.metrics(*part)["calibration_error"])
    probabilities = model(x)[1].softmax(1)
    want = multiclass_calibration_error(probabilities, labels, num_classes=3)
    assert_close(metrics["calibration_error"].compute(), want.detach())
