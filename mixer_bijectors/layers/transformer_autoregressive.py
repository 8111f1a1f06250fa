"""The Transformer as an autoregressive layer on the mixer matrix."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_flag, check_number, check_size, is_concrete
from ..bijection import Bijection
from ..nets import CausalTransformer
from ..solvers.fixed_point import solve_in_fixed_passes, with_implicit_gradients
from ..solvers.patch_windows import METHODS, sample_in_windows
from .patch_prediction import CachedPrediction, Prediction

__all__ = ["GUIDES", "Guidance", "TransformerAutoregressive"]

GUIDES = ("scale+shift", "scale", "shift")


@dataclass(frozen=True)
class Guidance:
    r"""Guidance of samples: each prediction is pushed away from a weaker one.

    Scales and shifts :math:`p` of each patch become :math:`p + w (p - p')`, where the weaker
    prediction :math:`p'` is made without the class and with another attention temperature.

    Args:
        weight: the weight :math:`w`.
        guide: 'scale+shift', 'scale' or 'shift', what the weight is for.
        annealed: let the weight grow linearly over the patches, from 0 to `weight`.
        attention_temperature: divides the attention's scores of the weaker prediction. For
            models without classes it is all that makes it weaker.

    Raises:
        TypeError: a weight or a temperature that is not a number.
        ValueError: a weight that is negative, an unknown guide, a temperature not positive.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024
        (https://arxiv.org/abs/2412.06329)

    Example:
        >>> layer = TransformerAutoregressive(16, 12, channels=64, num_classes=3)
        >>> labels = torch.eye(3)[[0, 1]]
        >>> x, log_det = layer(torch.randn(2, 16, 12), labels, guidance=Guidance(1.5))
        >>> x.shape
        torch.Size([2, 16, 12])
    """

    weight: float
    guide: str = "scale+shift"
    annealed: bool = False
    attention_temperature: float = 1.0

    def __post_init__(self) -> None:
        check_number("Guidance", "weight", self.weight)
        check_number("Guidance", "attention_temperature", self.attention_temperature)
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"Guidance: weight must not be negative, got {self.weight}")
        if self.guide not in GUIDES:
            raise ValueError(f"Guidance: guide must be one of {GUIDES}, got {self.guide!r}")
        if not 0 < self.attention_temperature < math.inf:
            raise ValueError(
                "Guidance: attention_temperature must be positive, "
                f"got {self.attention_temperature}"
            )

    @staticmethod
    def of(guidance: "Guidance | float | Mapping[str, Any] | None") -> "Guidance | None":
        """Guidance of what callers may write for it: its weight alone, or its arguments."""
        if guidance is None or isinstance(guidance, Guidance):
            return guidance
        return Guidance(**guidance) if isinstance(guidance, Mapping) else Guidance(guidance)


class TransformerAutoregressive(Bijection):
    r"""Scales and shifts each patch by the outputs of a causal Transformer on those before it.

    .. math:: x_i = z_i \odot \exp(a_i) + b_i, \qquad
        a_i, b_i = \mathrm{net}(x_1, \ldots, x_{i - 1}, \mathrm{context})

    The first patch passes through. The density direction (`inverse`) is one pass of the net,
    over all patches at once. The sampling direction is sequential over patches, and computes
    many of them at once where that is faster.

    Classes come as a context of weights: one-hot rows, or uniform ones for the null
    class, which add the mean of the class embeddings.

    Args:
        num_patches: number of patches, at least 2.
        features: size of a patch.
        channels: width of the net, a multiple of `head_dim`.
        num_layers: layers of attention and perceptron.
        head_dim: width of an attention head.
        expansion: width of the perceptrons' hidden layer, in multiples of `channels`.
        num_classes: size of the context; 0 for an unconditional layer, which ignores any.
        reverse: read the patches from last to first.
        volume_preserving: shift only; the log-determinant is zero.

    Options of sampling, keywords of `forward` and of the models that hold the layer:

    - `method`: 'sequential' for one patch at a time; 'parallel' for windows of patches at once,
      iterated until they settle; 'auto' (the default) for the same, down to one patch at a time
      where windows do not pay. Windows look at the host once for each pass. Where values cannot
      be looked at (on the meta device, under torch.compile, torch.func and tracing), the net
      runs over all patches once for each patch.
    - `guidance`: a `Guidance`, or its weight, or its arguments by name; pushes samples away
      from a weaker prediction.

    Attributes:
        net: the `nets.CausalTransformer`; its `checkpointing` saves memory in training.
        tol: the change of a patch, relative to values above 1, from which on it counts as
            settled when patches are sampled at once; that is in float32 and below, and as much
            smaller in float64 as that is more precise.
        last_calls: number of calls of the net in the last `forward`.
        last_passes: patches that went through the net, in multiples of those of the sequential
            method, 1 for that one itself; mean over the samples.

    Shapes: (batch, num_patches, features) in and out, context (batch, num_classes), log_det
    (batch,).

    Raises:
        TypeError: the input is not floating point, or of higher precision than the net.
        ValueError: fewer than 2 patches; `channels` that heads do not divide; an input not of
            shape (batch, num_patches, features); a context that is missing or not of shape
            (batch, num_classes); an unknown method; guidance without anything to guide by.
        NotImplementedError: second derivatives through `forward`; on CPUs also through
            `inverse`, unless `torch.nn.attention.sdpa_kernel` chooses the kernel `MATH`.

    References:
        Zhai et al., Normalizing flows are capable generative models, 2024
        (https://arxiv.org/abs/2412.06329)

        Song et al., Accelerating feedforward computation via parallel nonlinear equation
        solving, 2020 (https://arxiv.org/abs/2002.03629)

    Example:
        >>> layer = TransformerAutoregressive(16, 12, channels=64)
        >>> z, log_det = layer.inverse(torch.randn(5, 16, 12))
        >>> z.shape, log_det.shape
        (torch.Size([5, 16, 12]), torch.Size([5]))
    """

    sampling_options = ("method", "guidance")

    def __init__(
        self,
        num_patches: int,
        features: int,
        *,
        channels: int = 128,
        num_layers: int = 2,
        head_dim: int = 64,
        expansion: int = 4,
        num_classes: int = 0,
        reverse: bool = False,
        volume_preserving: bool = False,
    ) -> None:
        check_size(type(self).__name__, "num_classes", num_classes, least=0)
        check_flag(type(self).__name__, "reverse", reverse)
        check_flag(type(self).__name__, "volume_preserving", volume_preserving)
        super().__init__((num_patches, features), context_features=num_classes)
        if num_patches < 2:
            raise ValueError(
                f"{type(self).__name__}: needs at least 2 patches of at least 1 feature, as "
                f"the first patch passes through, got {num_patches} of {features}"
            )
        self.num_patches = num_patches
        self.features = features
        self.reverse = reverse
        self.volume_preserving = volume_preserving
        self.tol = 1e-5
        self.last_calls: int | None = None
        self.last_passes: float | None = None
        self.net = CausalTransformer(
            num_patches,
            features,
            features if volume_preserving else 2 * features,
            channels=channels,
            num_layers=num_layers,
            head_dim=head_dim,
            expansion=expansion,
            context_features=num_classes,
        )

    def transform(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        inverse: bool = False,
        method: str = "auto",
        guidance: Guidance | float | Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if not inverse:
            if method not in METHODS:
                raise ValueError(
                    f"{type(self).__name__}: method must be one of {METHODS}, got {method!r}"
                )
            return self._sample(x, context, method, Guidance.of(guidance))
        wide = self._read(x)
        log_scale, shift = Prediction(self, wide, context)(wide)
        z = torch.cat((wide[:, :1], (wide[:, 1:] - shift) * (-log_scale).exp()), dim=1)
        return self._order(z), -log_scale.flatten(1).sum(1)

    def _sample(
        self, z: Tensor, context: Tensor | None, method: str, guidance: Guidance | None
    ) -> tuple[Tensor, Tensor]:
        wide = self._read(z)
        prediction = Prediction(self, wide, context, guidance)

        def step(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            log_scale, shift = prediction(x)
            new = torch.addcmul(shift, wide[:, 1:], log_scale.exp())
            return torch.cat((wide[:, :1], new), dim=1), log_scale.flatten(1).sum(1)

        inputs = [t for t in (z, context, *self.net.parameters()) if t is not None]
        if not all(map(is_concrete, inputs)):
            x, log_det = solve_in_fixed_passes(step, torch.zeros_like(wide))
            return self._order(x), log_det
        # The tolerance is that for float32; float64 is finer by the ratio of their precisions.
        finer = min(1.0, torch.finfo(z.dtype).eps / torch.finfo(torch.float32).eps)
        tol = self.tol * finer
        with torch.inference_mode():  # an eighth faster than no_grad for small batches
            cached = CachedPrediction(self, wide, context, guidance)
            x, log_scales, cost = sample_in_windows(cached, wide, method=method, tol=tol)
            log_det = log_scales.flatten(1).sum(1)
        x, log_det = x.clone(), log_det.clone()  # which are ordinary tensors again
        self.last_calls = cost.calls
        self.last_passes = cost.patches / (self.num_patches - 1)
        if torch.is_grad_enabled():
            order = torch.arange(self.num_patches, device=z.device)
            x, log_det = with_implicit_gradients(step, x, log_det, order, tol)
        return self._order(x), log_det

    def _read(self, x: Tensor) -> Tensor:
        """Patches in the order of reading, in the net's precision or at least float32."""
        dtype = self.net.positions.dtype
        return self._order(x).to(torch.promote_types(dtype, torch.float32))

    def _order(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x
