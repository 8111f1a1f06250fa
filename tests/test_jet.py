"""Jet, against the formulas of its paper with weights under the names of its PyTorch port."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import mixer_bijectors as mb

SHAPE, PATCH, WIDTH, HEADS, DEPTH = (3, 8, 8), 2, 16, 2, 2
PATCHES, FEATURES = 16, 12
ROW, COLUMN = torch.arange(PATCHES) // 4, torch.arange(PATCHES) % 4
STAY = {"checkerboard": ROW + COLUMN, "columns": COLUMN, "rows": ROW}


class Port(nn.Module):
    """A Jet by the definition, whose state_dict has the names of github.com/btrude/jet-pytorch.

    From an image (batch, channels, height, width) to latents whose features run (row, column,
    channel), with the log-determinant.
    """

    def __init__(self, num_layers):
        super().__init__()
        self.blocks = nn.ModuleList(_coupling() for _ in range(num_layers))
        kinds = [index % 5 == 4 for index in range(num_layers)]
        orders = [torch.randperm(FEATURES) for kind in kinds if not kind]
        self.register_buffer("channel_projections", _matrices(orders, FEATURES))
        masks = itertools.product(STAY, (0, 1))
        orders = [(STAY[mask] % 2 != way).int().argsort(stable=True) for mask, way in masks]
        self.register_buffer("spatial_projections", _matrices(orders[: sum(kinds)], PATCHES))

    def forward(self, x):
        cells = x.unflatten(3, (4, PATCH)).unflatten(2, (4, PATCH))
        x = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        log_det = x.new_zeros(len(x))
        over_features, over_patches = map(
            iter, (self.channel_projections, self.spatial_projections)
        )
        for index, block in enumerate(self.blocks):
            if index % 5 == 4:
                order = next(over_patches).argmax(0)
                first, second = (
                    half.reshape(len(x), PATCHES, FEATURES // 2)
                    for half in x[:, order].chunk(2, dim=1)
                )
            else:
                order = next(over_features).argmax(0)
                first, second = x[:, :, order].chunk(2, dim=2)
            bias, raw = _vision_transformer(block["dnn"], first).chunk(2, dim=2)
            second = (second + bias) * 2 * raw.sigmoid()
            log_det = log_det + (2 * raw.sigmoid()).log().sum((1, 2))
            x = x.clone()
            if index % 5 == 4:
                x[:, order[PATCHES // 2 :]] = second.reshape(len(x), PATCHES // 2, FEATURES)
            else:
                x[:, :, order[FEATURES // 2 :]] = second
        return x, log_det


def _matrices(orders, size):
    """Matrices that bring (..., size) to an order, also if there are none."""
    return torch.eye(size)[:, torch.stack([torch.arange(size), *orders])[1:]].transpose(0, 1)


def _coupling():
    encoder = nn.ModuleDict(
        {
            "blocks": nn.ModuleList(_layer() for _ in range(DEPTH)),
            "ln": nn.LayerNorm(WIDTH),
        }
    )
    dnn = nn.Module()
    dnn.init_proj, dnn.final_proj = nn.Linear(FEATURES // 2, WIDTH), nn.Linear(WIDTH, FEATURES)
    dnn.pos_emb, dnn.encoder = nn.Parameter(torch.randn(1, PATCHES, WIDTH)), encoder
    return nn.ModuleDict({"dnn": dnn})


def _layer():
    mlp = {"in_proj": nn.Linear(WIDTH, 4 * WIDTH), "out_proj": nn.Linear(4 * WIDTH, WIDTH)}
    return nn.ModuleDict(
        {
            "ln1": nn.LayerNorm(WIDTH),
            "mha": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
            "ln2": nn.LayerNorm(WIDTH),
            "mlp": nn.ModuleDict(mlp),
        }
    )


def _vision_transformer(dnn, x):
    h = dnn.init_proj(x) + dnn.pos_emb
    for layer in dnn.encoder["blocks"]:
        normed = layer["ln1"](h)
        h = h + layer["mha"](normed, normed, normed, need_weights=False)[0]
        h = h + layer["mlp"]["out_proj"](F.gelu(layer["mlp"]["in_proj"](layer["ln2"](h))))
    return dnn.final_proj(dnn.encoder["ln"](h))


def port(num_layers=30):
    reference = Port(num_layers)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return reference


def load(weights, shape=SHAPE):
    return mb.Jet.from_reference(weights, shape, PATCH, head_dim=WIDTH // HEADS)


def images(count=3):
    return 2 * torch.rand(count, *SHAPE, dtype=torch.float64) - 1


def test_latents_and_densities_are_those_of_the_definition(tmp_path):
    reference = port().double()
    torch.save(reference.state_dict(), tmp_path / "jet.pt")
    model = load(tmp_path / "jet.pt")
    x = images()
    want, want_log_det = reference(x)
    z, log_det = model.inverse_and_log_det(x)
    assert_close(z.unflatten(2, (3, 4)).transpose(2, 3).flatten(2), want)
    assert_close(log_det, want_log_det)
    assert_close(model.forward_and_log_det(z), (x, -log_det), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("num_layers", [1, 4, 5])
def test_few_couplings_load(num_layers):
    reference = port(num_layers)
    x = images().float()
    assert_close(load(reference.state_dict()).inverse_and_log_det(x)[1], reference(x)[1])


def test_starts_as_the_identity_and_trains():
    model = mb.Jet(SHAPE, PATCH, num_layers=6, channels=16, head_dim=8, layers_per_coupling=1)
    x = images(8).float()
    assert_close(model.inverse(x), mb.Patchify(SHAPE, PATCH).inverse(x)[0])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = model.forward_kld(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 5


def test_classes_reach_every_coupling():
    model = mb.Jet(
        SHAPE,
        PATCH,
        num_layers=5,
        channels=16,
        head_dim=8,
        layers_per_coupling=1,
        num_classes=3,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, labels = images(), torch.arange(3)
    z = model.inverse(x, labels)
    assert_close(model.forward(z, labels), x)
    assert len(set(model.log_prob(x[:1].expand(3, -1, -1, -1), labels).tolist())) == 3
    for layer in model.flows[:-1]:
        assert layer.context_features == 3


def broken(**changes):
    weights = port(5).state_dict()
    return {key: value for key, value in (weights | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (lambda: [1], TypeError, "expected a state_dict, tensors by name, or the path of one"),
        (
            lambda: broken(**{"blocks.1.dnn.pos_emb": None}),
            ValueError,
            r"a Jet of 5 couplings of 2 layers; missing or unexpected: blocks.1.dnn.pos_emb$",
        ),
        (
            lambda: broken(channel_projections=torch.zeros(3, 12, 12)),
            ValueError,
            "expected four couplings over features to one over patches, got 3 to 1",
        ),
        (
            lambda: broken(spatial_projections=_matrices([torch.arange(16)], 16)),
            ValueError,
            "one that should be checkerboard is not",
        ),
    ],
)
def test_other_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        load(weights())


def test_weights_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"16 patches of 12 features, but .* give 36 of 12"):
        load(port(5).state_dict(), (3, 12, 12))
