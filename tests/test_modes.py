"""Image models in inference mode, in half precision, on strided images, traced and exported."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import mixer_bijectors as mb

SHAPE, CLASSES = (3, 6, 8), 3
TAR = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}
MODELS = {
    "MixerFlow": lambda classes: mb.MixerFlow(
        SHAPE, 2, 2, hidden_features=8, shift_every=2, num_classes=classes
    ),
    "TarFlow": lambda classes: mb.TarFlow(SHAPE, 2, num_classes=classes, **TAR),
    "TarFlow without scales": lambda classes: mb.TarFlow(
        SHAPE, 2, num_classes=classes, volume_preserving=True, **TAR
    ),
}


def build(name, classes, dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name](classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def data(batch, classes, dtype=torch.float32):
    """Images and, for a class-conditional model, labels."""
    x = (2 * torch.rand(batch, *SHAPE) - 1).to(dtype)
    return x, *([torch.arange(batch) % classes] if classes else [])


def results(model, x, *labels):
    """Of all methods that take labels."""
    generator = torch.Generator().manual_seed(4)
    guided = {}
    if isinstance(model, mb.TarFlow) and labels:
        guided = {"guidance": 0.5, "method": "parallel"}
    return {
        "log_prob": model.log_prob(x, *labels),
        "forward_kld": model.forward_kld(x, *labels),
        "embed": model.embed(x, *labels),
        "inverse": model.inverse(x, *labels),
        "forward": model(model.inverse(x, *labels), *labels),
        "sample": model.sample(len(x), *labels, generator=generator, **guided),
        "denoise": mb.denoise(model, x, 0.1, *labels),
    }


@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("name", MODELS)
class TestModel:
    def test_inference_mode_changes_nothing(self, name, classes):
        model, given = build(name, classes), data(4, classes)
        want = results(model, *given)
        with torch.inference_mode():
            got = results(model, *(tensor.clone() for tensor in given))
        after = results(model, *given)
        assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert_close(after, want, atol=0, rtol=0)
        model.forward_kld(*given).backward()  # nothing that was kept is an inference tensor
        assert all(p.grad is not None for p in model.parameters())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_close_to_single(self, name, classes, dtype):
        model, half = build(name, classes), build(name, classes, dtype)
        (x, *labels) = data(4, classes)
        want, got = results(model, x, *labels), results(half, x.to(dtype), *labels)
        # Noise is drawn in the dtype of the base, so that samples differ.
        (images, log_prob), _ = got.pop("sample"), want.pop("sample")
        assert images.dtype == dtype and images.shape == x.shape
        assert images.isfinite().all() and log_prob.isfinite().all()
        for method, value in got.items():
            assert value.dtype == dtype
            assert_close(value.float(), want[method], atol=0.2, rtol=0.05)

    def test_the_layout_of_images_does_not_matter(self, name, classes):
        model, (x, *labels) = build(name, classes), data(4, classes)
        layouts = {
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "every second": x.repeat_interleave(2, dim=3)[..., ::2],
            "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        }
        strided = [label.repeat_interleave(2)[::2] for label in labels]
        want = results(model, x, *labels)
        for given in layouts.values():
            assert_close(results(model, given, *strided), want, atol=1e-5, rtol=1e-5)

    def test_a_traced_density_takes_batches_of_any_size(self, name, classes):
        model = build(name, classes)
        with torch.no_grad():
            traced = torch.jit.trace(LogProb(model), data(4, classes), check_trace=False)
            for batch in (1, 7):
                given = data(batch, classes)
                assert_close(traced(*given), model.log_prob(*given), atol=1e-3, rtol=1e-5)

    @pytest.mark.slow
    def test_an_exported_density_takes_batches_of_any_size(self, name, classes):
        model, given = build(name, classes), data(4, classes)
        batch = torch.export.Dim("batch", min=2, max=64)
        with torch.no_grad():
            program = torch.export.export(
                LogProb(model),
                given,
                dynamic_shapes={"given": tuple({0: batch} for _ in given)},
                strict=False,
            ).module()
            for size in (2, 7):
                given = data(size, classes)
                assert_close(program(*given), model.log_prob(*given), atol=1e-3, rtol=1e-5)


class LogProb(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *given):
        return self.model.log_prob(*given)


@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("name", MODELS)
def test_tensors_without_values_are_not_looked_at(name, classes):
    model, given = MODELS[name](classes).eval(), data(4, classes)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(tensor) for tensor in given]
        assert model.log_prob(*fake).shape == (4,)
