"""Results share no memory with inputs, or with the state of a layer."""

import normflows as nf
import pytest
import torch

import mixer_bijectors as mb


class Identity(nf.flows.Flow):
    """A layer that returns what it gets, and a log_det that is its state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("log_det", torch.tensor(0.5))

    def forward(self, z):
        return z, self.log_det

    def inverse(self, x):
        return x, self.log_det


def changes_something(layer, given):
    """Whether changes of the results reach the input or the state."""
    tensors = [given, *layer.state_dict().values()]
    for run in (layer, layer.inverse):
        before = [tensor.clone() for tensor in tensors]
        with torch.no_grad():
            for result in run(given):
                result.add_(1)
        if not all(map(torch.equal, tensors, before)):
            return True
    return False


PATCHIFY = mb.Patchify((1, 4, 4), 4)


@pytest.mark.parametrize(
    ("layer", "event"),
    [
        (mb.Chain([PATCHIFY, nf.flows.Reverse(PATCHIFY)]), (1, 16)),
        (mb.Chain([nf.flows.Reverse(PATCHIFY), PATCHIFY]), (1, 4, 4)),
        (mb.Chain([]), (4,)),
        (mb.Chain([Identity()]), (4,)),
        (mb.ChannelMixing(Identity()), (2, 4)),
        (mb.Shift(mb.Chain([]), (1, 4, 4), 2), (4, 4)),
    ],
    ids=["one patch", "one patch of an image", "empty chain", "identity", "lift", "frame"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_results_share_no_memory_where_nothing_is_computed(layer, event, batch):
    assert not changes_something(layer, torch.zeros(batch, *event))


def test_the_log_det_of_one_sample_is_no_buffer_of_the_layer():
    class Constant(mb.Bijection):
        def __init__(self):
            super().__init__((2,))
            self.register_buffer("log_det", torch.tensor(0.7))

        def transform(self, x, context=None, *, inverse=False):
            return x, self.log_det

    assert not changes_something(Constant(), torch.zeros(1, 2))


@pytest.mark.parametrize("inverse", [True, False])
def test_results_of_all_layers_share_no_memory(case, inverse):
    layer = case.build(torch.float32, "cpu")
    given = (case.data if inverse else case.latents)(torch.float32, "cpu")
    context = case.context(torch.float32, "cpu")
    before = given.clone()
    with torch.no_grad():
        run = layer.inverse if inverse else layer
        first = [result.clone() for result in run(given, context=context)]
        for result in run(given, context=context):
            result.add_(1)
        again = run(given, context=context)
    assert torch.equal(given, before)
    assert all(map(torch.equal, first, again))
