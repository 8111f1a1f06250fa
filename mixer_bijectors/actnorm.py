"""Activation normalisation."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from ._checks import check_input
from .flow import Flow

__all__ = ["ActNorm"]


class ActNorm(Flow):
    r"""Scale and shift of each feature, set to normalise the first training batch.

    .. math:: x = z \, e^{s} + t

    The first batch seen in training mode, in either direction, sets :math:`s` and :math:`t`
    so that what leaves the layer has mean 0 and variance 1; evaluation mode never does. When
    torch.distributed is initialised, all ranks must see their first batch together, and all
    take the statistics of the joint batch. Values that are not finite are left out of the
    statistics, and a feature that is constant in the batch is shifted but not scaled.

    Args:
        features: number of features.

    Shapes: (batch, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input is not of shape (batch, features).

    References:
        Kingma and Dhariwal, Glow, 2018, section 3.1 (https://arxiv.org/abs/1807.03039)

    Example:
        >>> layer = ActNorm(3)
        >>> z, log_det = layer.inverse(5 + 2 * torch.randn(1000, 3))
        >>> bool(z.mean().abs() < 1e-5), bool((z.std() - 1).abs() < 1e-2)
        (True, True)
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialized", torch.tensor(False))
        # Mirrors the buffer, so that no forward pass has to wait for the device to read it.
        self._initialized = False

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input("ActNorm", z, self.features, like=self.shift)
        if self._awaits_first_batch():
            self._initialize(z, inverse=False)
        x = torch.addcmul(self.shift, z.to(self.shift.dtype), self.log_scale.exp())
        return x.to(z.dtype).contiguous(), self.log_scale.sum().to(z.dtype).repeat(len(z))

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input("ActNorm", x, self.features, like=self.shift)
        if self._awaits_first_batch():
            self._initialize(x, inverse=True)
        scale = (-self.log_scale).exp()
        z = torch.addcmul(-self.shift * scale, x.to(scale.dtype), scale)
        return z.to(x.dtype).contiguous(), -self.log_scale.sum().to(x.dtype).repeat(len(x))

    def _awaits_first_batch(self) -> bool:
        if self._initialized or not self.training:
            return False
        # Read once more before the first batch: the buffer may have come from another rank,
        # or from the model that this one averages.
        if not (torch.compiler.is_compiling() or self.initialized.is_meta):
            self._initialized = bool(self.initialized)
        return not self._initialized

    @torch.no_grad()
    def _initialize(self, batch: Tensor, *, inverse: bool) -> None:
        if len(batch) == 0 and not _is_distributed():
            return
        batch = batch.to(torch.promote_types(self.shift.dtype, torch.float32))
        finite = batch.isfinite()
        count = _total(finite.to(batch.dtype).sum(0)).clamp(min=1)
        mean = _total(batch.where(finite, 0.0).sum(0)) / count
        # A second pass over the deviations: a mean of squares would cancel for large means.
        std = (_total((batch - mean).where(finite, 0.0).square().sum(0)) / count).sqrt()
        rounding = 16 * torch.finfo(batch.dtype).eps * mean.abs()
        log_std = std.where((std > rounding) & std.isfinite(), 1.0).log()
        if inverse:
            self.shift.copy_(mean)
            self.log_scale.copy_(log_std)
        else:
            self.shift.copy_(-mean * (-log_std).exp())
            self.log_scale.copy_(-log_std)
        self.initialized.fill_(True)
        self._initialized = True

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        initialized = state_dict.get(prefix + "initialized")
        if initialized is not None and not initialized.is_meta:
            self._initialized = bool(initialized)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _total(x: Tensor) -> Tensor:
    """Sum over the ranks, if there are any."""
    if _is_distributed():
        distributed.all_reduce(x)
    return x
