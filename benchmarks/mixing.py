"""Cost of one mixing layer beyond the matrix products that it contains.

Forward and backward of one layer of MixerFlow, in the density direction, on 64 mixer matrices
of 64 patches x 48 features, hidden 128, against `nn.Linear` layers of the same shapes on the
same number of vectors and nothing else, and against the layer assembled from normflows' parts.

    python benchmarks/mixing.py
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import normflows as nf
import torch
from common import print_table, time_in_turn, timing_parser, write_json
from torch import Tensor, nn

import mixer_bijectors as mb

BATCH, PATCHES, FEATURES, HIDDEN, BLOCKS = 64, 64, 48, 128, 2


class BareProducts(nn.Module):
    """The layer's matrix products: each linear map of each net, and the two LU maps."""

    def __init__(self) -> None:
        super().__init__()
        self.chains = nn.ModuleList()
        for size in (FEATURES, PATCHES):
            widths = [size // 2, *[HIDDEN] * (2 * BLOCKS + 1), size]
            nets = (
                nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(widths)]) for _ in range(2)
            )
            self.chains.append(nn.ModuleList([nn.Linear(size, size, bias=False), *nets]))

    def forward(self, vectors: list[Tensor], halves: list[Tensor]) -> list[Tensor]:
        outputs = []
        for chain, x, half in zip(self.chains, vectors, halves):
            square, *nets = chain.children()
            outputs += [square(x), *(net(half) for net in nets)]
        return outputs


def mixing_layer() -> Any:
    """One layer of MixerFlow, as it builds them."""
    return mb.MixerFlow((3, 32, 32), 4, 1, shift_every=0, hidden_features=HIDDEN).flows[0]


class NormflowsLayer(nn.Module):
    """ActNorm, LULinearPermute and AffineCouplingBlocks of normflows, lifted by reshaping."""

    def __init__(self) -> None:
        super().__init__()
        self.channel, self.patch = (
            nn.ModuleList([nf.flows.ActNorm(size), nf.flows.LULinearPermute(size)])
            for size in (FEATURES, PATCHES)
        )
        for flows, size in ((self.channel, FEATURES), (self.patch, PATCHES)):
            for mode in ("channel", "channel_inv"):
                net = nf.nets.ResidualNet(size // 2, size, HIDDEN, num_blocks=BLOCKS)
                flows.append(nf.flows.AffineCouplingBlock(net, split_mode=mode))

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, channel_log_det = self._lift(self.channel, x)
        z, patch_log_det = self._lift(self.patch, x.mT)
        return z.mT, channel_log_det + patch_log_det

    def _lift(self, flows: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
        y, total = x.flatten(0, 1), x.new_zeros(len(x) * x.shape[1])
        flow: Any
        for flow in flows:
            y, log_det = flow.inverse(y)
            total = total + log_det
        return y.view_as(x), total.view(len(x), -1).sum(1)


def main() -> None:
    parser = timing_parser(__doc__)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    x = torch.randn(BATCH, PATCHES, FEATURES)
    vectors = [
        torch.randn(BATCH * n, size, requires_grad=True)
        for n, size in ((PATCHES, FEATURES), (FEATURES, PATCHES))
    ]
    halves = [torch.randn(len(v), v.shape[1] // 2, requires_grad=True) for v in vectors]
    bare, layer, peer = BareProducts(), mixing_layer(), NormflowsLayer()
    layer.inverse(x)  # initialises ActNorm
    peer.inverse(x)
    x.requires_grad_()

    cotangents = [torch.randn_like(y) for y in bare(vectors, halves)]
    cotangent, cotangent_log_det = torch.randn_like(x), torch.ones(BATCH)

    def products() -> None:
        torch.autograd.backward(bare(vectors, halves), cotangents)

    def density(inverse: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(inverse(x), (cotangent, cotangent_log_det))

    sides = {
        "matrix products alone": products,
        "mixer_bijectors, eager": density(layer.inverse),
        "normflows' parts, eager": density(peer.inverse),
    }
    if not arguments.no_compile:
        sides["mixer_bijectors, compiled"] = density(torch.compile(layer.inverse))
    seconds = time_in_turn(sides, arguments.repeats)
    reference = seconds["matrix products alone"]
    rows = [
        {"side": name, "ms": f"{1e3 * s:.1f}", "ratio": f"{s / reference:.2f}"}
        for name, s in seconds.items()
    ]
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
