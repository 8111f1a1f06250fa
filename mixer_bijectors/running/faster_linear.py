"""Linear layers and activation normalisation of normflows and nflows."""

import math
from functools import cache
from typing import Any, ClassVar

import torch
from nflows.transforms import lu as nflows_lu
from nflows.transforms import normalization as nflows_normalization
from normflows.flows import mixing as normflows_mixing
from normflows.flows import normalization as normflows_normalization
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import has_values
from .exchange import Faster

__all__ = ["LAYERS", "awaits_first_batch", "look_at_flags"]


class TriangularLinear(Faster):
    """`LULinear`: both triangular matrices from one look-up, and solutions without copies."""

    known = {
        name: (getattr(nflows_lu.LULinear, name), getattr(normflows_mixing._LULinear, name))
        for name in (
            "forward",
            "inverse",
            "forward_no_cache",
            "inverse_no_cache",
            "_create_lower_upper",
            "upper_diag",
            "logabsdet",
        )
    }

    def forward_no_cache(self: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, log_det = self._factors()
        outputs = F.linear(F.linear(inputs, upper), lower, self.bias)
        return outputs, log_det.expand(inputs.shape[0])

    def inverse_no_cache(self: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, log_det = self._factors()
        # Of the transposed equations, so that neither side is transposed.
        outputs = torch.linalg.solve_triangular(
            lower.mT, inputs - self.bias, upper=True, left=False, unitriangular=True
        )
        outputs = torch.linalg.solve_triangular(upper.mT, outputs, upper=False, left=False)
        return outputs, -log_det.expand(inputs.shape[0])

    def _factors(self: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Lower and upper triangular matrix, and the log-determinant."""
        diagonal = self.upper_diag
        look_up = _places if torch.compiler.is_compiling() else _remembered_places
        places, constants = look_up(self.features, diagonal.device)
        entries = torch.cat((self.lower_entries, self.upper_entries, diagonal, constants))
        size = (2, self.features, self.features)
        lower, upper = entries.index_select(0, places).view(size).unbind()
        return lower, upper, diagonal.log().sum()


def _places(features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of both matrices into (lower, upper, diagonal, 0, 1), and the constants 0, 1."""
    i = torch.arange(features, device=device).unsqueeze(1)
    j = i.mT
    below = features * (features - 1) // 2
    zero = 2 * below + features
    lower = torch.where(i > j, i * (i - 1) // 2 + j, zero)
    upper = torch.where(i < j, below + i * (2 * features - 1 - i) // 2 + j - i - 1, zero)
    lower = torch.where(i == j, zero + 1, lower)
    upper = torch.where(i == j, 2 * below + i, upper)
    return torch.cat((lower.flatten(), upper.flatten())), torch.arange(2, device=device)


# A graph has these as part of its code, other calls remember them.
_remembered_places = cache(_places)


class _FirstBatch(Faster):
    """Looks at the flag of a first batch until it is set, and no more.

    Otherwise each pass reads a tensor, which stalls a GPU and breaks a graph.
    """

    _started = False
    state = ("_started",)
    flag: ClassVar[str]

    def look(self) -> bool:
        """Whether the first batch has come, by a look at the flag if it was not set before."""
        if not self._started:
            flag = getattr(self, self.flag)
            self._started = has_values(flag) and bool(flag)
        return self._started

    @property
    def awaits_first_batch(self) -> bool:
        """Whether the next pass looks at the flag."""
        return not self._started

    def _load_from_state_dict(self: Any, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)  # type: ignore[misc]
        self._started = False


class NflowsActNorm(_FirstBatch):
    """`ActNorm` of nflows, whose `inverse` looks at no flag."""

    known = {"forward": (nflows_normalization.ActNorm.forward,)}
    flag = "initialized"

    @property
    def awaits_first_batch(self: Any) -> bool:
        """Whether the next pass looks at the flag, as none does in evaluation mode."""
        return self.training and not self._started

    def forward(self: Any, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        unusual = inputs.dim() not in (2, 4)
        if unusual or (self.training and not self.look()):
            result = super().forward(inputs, context)  # type: ignore[misc]
            self.look()
            return result
        log_scale, shift = self.log_scale, self.shift
        scale, log_det = log_scale.exp(), log_scale.sum()
        if inputs.dim() == 4:
            scale, shift = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
            log_det = inputs.shape[2] * inputs.shape[3] * log_det
        return torch.addcmul(shift, inputs, scale), log_det.expand(inputs.shape[0])


class NormflowsActNorm(_FirstBatch):
    """`ActNorm` of normflows."""

    known = {
        name: (getattr(normflows_normalization.ActNorm, name),)
        for name in ("forward", "inverse")
    }
    flag = "data_dep_init_done"

    def forward(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.look():
            result = super().forward(z)  # type: ignore[misc]
            self.look()
            return result
        scale = self.s
        return torch.addcmul(self.t, z, scale.exp()), self._repeats(z) * scale.sum()

    def inverse(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.look():
            result = super().inverse(z)  # type: ignore[misc]
            self.look()
            return result
        scale = self.s
        return (z - self.t) * (-scale).exp(), -self._repeats(z) * scale.sum()

    def _repeats(self: Any, z: Tensor) -> int:
        return math.prod([z.shape[axis] for axis in self.batch_dims[1:]])


def look_at_flags(model: nn.Module) -> None:
    """Read once whether the first batch has come, so that a graph begins with the next pass."""
    for module in model.modules():
        if isinstance(module, _FirstBatch):
            module.look()


def awaits_first_batch(model: nn.Module) -> bool:
    """Whether a layer of the model has yet to see that its first batch has come."""
    return any(
        module.awaits_first_batch
        for module in model.modules()
        if isinstance(module, _FirstBatch)
    )


LAYERS = (TriangularLinear, NflowsActNorm, NormflowsActNorm)
