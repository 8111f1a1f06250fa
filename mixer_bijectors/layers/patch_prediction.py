"""The scales and shifts that a causal Transformer predicts for patches, and their guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..nets.patch_reader import PatchReader
from ..solvers.patch_windows import PredictNext

if TYPE_CHECKING:
    from .transformer_autoregressive import Guidance, TransformerAutoregressive

__all__ = ["CachedPrediction", "Prediction"]


class Prediction:
    """Log-scales and shifts of each patch from those before it, with guidance or without.

    Called with all patches, (batch, num_patches, features), it returns the log-scales and the
    shifts of all but the first, each (batch, num_patches - 1, features).

    Args:
        layer: the layer whose net predicts.
        x: patches, of which the batch size, the dtype and the device are read.
        context: weights of classes.
        guidance: pushes the prediction away from a weaker one.
    """

    def __init__(
        self,
        layer: TransformerAutoregressive,
        x: Tensor,
        context: Tensor | None,
        guidance: Guidance | None = None,
    ) -> None:
        self.net = layer.net
        self.volume_preserving = layer.volume_preserving
        self.context = context
        self.temperature: Tensor | float = 1.0
        self.weight: Tensor | None = None
        if guidance is not None and guidance.weight > 0:
            self._guide(type(layer).__name__, x, guidance)

    def _guide(self, name: str, x: Tensor, guidance: Guidance) -> None:
        """Double the batch of the net: its second half makes the weaker prediction."""
        if self.context is None and guidance.attention_temperature == 1.0:
            raise ValueError(
                f"{name}: guidance of a model without classes needs an attention_temperature "
                "other than 1.0, or nothing makes the prediction weaker"
            )
        if self.context is not None:
            uniform = torch.full_like(self.context, 1 / self.context.shape[1])
            self.context = torch.cat((self.context, uniform))
        if guidance.attention_temperature != 1.0:
            temperature = x.new_ones(2, x.shape[0], 1, 1, 1)
            temperature[1] = guidance.attention_temperature
            self.temperature = temperature.flatten(0, 1)
        parts = ("shift",) if self.volume_preserving else ("scale", "shift")
        # Filled on the device: to copy a list there would synchronise.
        weight = torch.cat(
            [x.new_full(x.shape[2:], guidance.weight * (p in guidance.guide)) for p in parts]
        )
        if guidance.annealed:
            share = torch.linspace(0, 1, x.shape[1], dtype=x.dtype, device=x.device)
            weight = share[1:, None] * weight
        self.weight = weight.expand(x.shape[1] - 1, -1)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x[:, :-1], self.net.offsets(self.context), None, 0)

    def _run(
        self, x: Tensor, offsets: Tensor, cache: Tensor | None, start: int
    ) -> tuple[Tensor, Tensor]:
        length = x.shape[1]
        params = self.net.read(
            self._net_inputs(x),
            offsets.narrow(1, start, length),
            temperature=self.temperature,
            cache=cache,
            start=start,
        )
        weight = None if self.weight is None else self.weight.narrow(0, start, length)
        return self._scale_and_shift(params.to(x.dtype), weight)

    def _net_inputs(self, x: Tensor) -> Tensor:
        x = x.to(self.net.positions.dtype)
        return x if self.weight is None else torch.cat((x, x))

    def _scale_and_shift(self, params: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        if weight is not None:
            params, weaker = params.chunk(2)
            params = params + weight * (params - weaker)
        if self.volume_preserving:
            return torch.zeros_like(params), params
        log_scale, shift = params.chunk(2, -1)
        return log_scale, shift


class CachedPrediction(Prediction):
    """Predicts a piece of the patches, from a cache of the keys and values of those before.

    It is the `Predict` of `solvers.patch_windows`.
    """

    def __init__(
        self,
        layer: TransformerAutoregressive,
        x: Tensor,
        context: Tensor | None,
        guidance: Guidance | None,
    ) -> None:
        super().__init__(layer, x, context, guidance)
        self.cache = self.net.make_cache(len(x) if self.weight is None else 2 * len(x))
        self.offsets = self.net.offsets(self.context)

    def __call__(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Log-scales and shifts of the patches that follow `x`, patches `start` and on."""
        return self._run(x, self.offsets, self.cache, start)

    def by_patch(self) -> PredictNext:
        """Log-scales and shifts of the patch after `x`, (batch, features), at a position."""
        if not PatchReader.can_read(self.net):
            return self._read_piece
        read = PatchReader(self.net, self.cache, self.offsets, self.temperature)
        weights = None if self.weight is None else self.weight.unbind()

        def predict(x: Tensor, position: int) -> tuple[Tensor, Tensor]:
            params = read(self._net_inputs(x), position).to(x.dtype)
            weight = None if weights is None else weights[position]
            return self._scale_and_shift(params, weight)

        return predict

    def _read_piece(self, x: Tensor, position: int) -> tuple[Tensor, Tensor]:
        log_scale, shift = self(x.unsqueeze(1), position)
        return log_scale.squeeze(1), shift.squeeze(1)

    def keep(self, rows: Tensor) -> None:
        """Drop the samples that are not in `rows`."""
        if self.weight is not None:
            rows = torch.cat((rows, rows + self.cache.shape[2] // 2))
        self.cache = self.cache[:, :, rows]
        if len(self.offsets) > 1:
            self.offsets = self.offsets[rows]
        if isinstance(self.temperature, Tensor):
            self.temperature = self.temperature[rows]
