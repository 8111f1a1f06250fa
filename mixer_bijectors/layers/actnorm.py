"""Activation normalisation."""

import warnings

import torch
from torch import Tensor, distributed, nn

from .._checks import has_values, is_concrete, is_recorded
from .._dependencies import is_function_transformed
from ..bijection import Bijection

__all__ = ["ActNorm"]


class ActNorm(Bijection):
    r"""Scale and shift of each feature, set to normalise the first training batch.

    .. math:: x = z \, e^{s} + t

    The first batch seen in training mode, in either direction, sets :math:`s` and :math:`t`
    so that the output of the layer has mean 0 and variance 1; evaluation mode never does. When
    torch.distributed is initialised, all ranks must see their first batch together, and all
    take the statistics of the joint batch. Values that are not finite are left out of the
    statistics, and a feature that is constant in the batch is shifted but not scaled.

    Whether the first batch has come is a buffer. Parameters that are loaded or averaged without
    it, or passed to `torch.func.functional_call` beside the buffers of an untrained model, are
    set anew by the next batch in training mode.

    Args:
        features: number of features.

    Attributes:
        warns: whether to warn of evaluation before the first batch; the warning turns it off.
            Code that evaluates a model before training, as a check, sets it to False.

    Shapes: (batch, features) in and out, log_det (batch,).

    Raises:
        TypeError: the input is not floating point.
        ValueError: the input is not of shape (batch, features).
        RuntimeError: the first batch in training mode comes under torch.func.

    Warns:
        UserWarning: evaluation mode before the first batch, once, where the layer is still the
            identity.

    References:
        Kingma and Dhariwal, Glow, 2018, section 3.1 (https://arxiv.org/abs/1807.03039)

    Example:
        >>> layer = ActNorm(3)
        >>> z, log_det = layer.inverse(5 + 2 * torch.randn(1000, 3))
        >>> bool(z.mean().abs() < 1e-5), bool((z.std() - 1).abs() < 1e-2)
        (True, True)
    """

    # The buffer that was mirrored: functional_call and replicas put others in its place.
    _mirrored: Tensor | None = None

    def __init__(self, features: int) -> None:
        super().__init__((features,))
        self.features = features
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        # 0 or 1, as a number that can be averaged.
        self.register_buffer("initialized", torch.tensor(0.0))
        # Mirrors the buffer, so that no forward pass has to read it from the device.
        self._initialized = False
        self.warns = True
        self.register_load_state_dict_post_hook(_mirror)

    def transform(
        self, x: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self._awaits_first_batch(x):
            self._initialize(x, inverse=inverse)
        scale, shift, log_det = self.affine(inverse=inverse)
        return torch.addcmul(shift, x.to(self.shift.dtype), scale), log_det

    def affine(self, *, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Scale and shift (features,) of one direction, and its log_det ()."""
        log_det = self.log_scale.sum()
        if inverse:
            scale = (-self.log_scale).exp()
            return scale, -self.shift * scale, -log_det
        return self.log_scale.exp(), self.shift, log_det

    def _awaits_first_batch(self, x: Tensor) -> bool:
        if not self.training:
            if not self._initialized:
                self._warn_of_identity()
            return False
        if self._initialized and not self._has_other_buffer():
            return False
        if any(map(is_function_transformed, (x, self.initialized, self.shift))):
            raise RuntimeError(
                "ActNorm: the first batch in training mode sets the parameters, which is not "
                "possible under torch.func; run a batch before, or call eval()"
            )
        # Read once more before the first batch: the buffer may have come from another rank,
        # or from the model that this one averages.
        if not (torch.compiler.is_compiling() or self.initialized.is_meta):
            self._remember(bool(self.initialized))
        if not self._initialized and is_recorded():
            raise RuntimeError(
                "ActNorm: the first batch in training mode sets the parameters, which a graph "
                "that is traced or exported would do for every batch; run a batch before, or "
                "call eval()"
            )
        return not self._initialized

    def _has_other_buffer(self) -> bool:
        """Whether another buffer than the one that was mirrored is there to be read."""
        if torch.compiler.is_compiling() or self._mirrored is self.initialized:
            return False
        return is_concrete(self.initialized)

    def _remember(self, initialized: bool) -> None:
        self._initialized, self._mirrored = initialized, self.initialized

    def _warn_of_identity(self) -> None:
        """Warn once where evaluation comes first, after one look at the parameters."""
        tensors = (self.initialized, self.log_scale, self.shift)
        # First of all, as a graph must not depend on whether a warning has been given.
        if torch.compiler.is_compiling() or not self.warns:
            return
        if not all(map(has_values, tensors)):
            return
        self.warns = False
        if bool(torch.stack([tensor.any() for tensor in tensors]).any()):
            return  # They may come from elsewhere, as those of an average of models do.
        warnings.warn(
            "ActNorm: used in evaluation mode before its first batch in training mode, so it "
            "is the identity; train it first, or load parameters that were trained",
            stacklevel=2,
        )

    @torch.no_grad()
    def _initialize(self, batch: Tensor, *, inverse: bool) -> None:
        if batch.shape[0] == 0 and not _is_distributed():
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
        self.initialized.fill_(1.0)
        self._remember(True)


def _mirror(layer: nn.Module, _: object) -> None:
    """Read anew whether there was a first batch, after a state_dict was loaded."""
    if isinstance(layer, ActNorm) and not layer.initialized.is_meta:
        layer._remember(bool(layer.initialized))


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _total(x: Tensor) -> Tensor:
    """Sum over the ranks, if there are any."""
    if _is_distributed():
        distributed.all_reduce(x)
    return x
