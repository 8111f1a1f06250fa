"""Couplings on the mixer matrix."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .._checks import check_builder, check_univariate
from ..nets import PatchConv
from ..nets._inputs import patch_count, patch_grid
from ..univariate import Affine, Univariate
from .coupling import HalvesCoupling
from .matrix_halves import FeatureHalves, PatchHalves

__all__ = ["MatrixCoupling"]


class MatrixCoupling(HalvesCoupling):
    r"""Transforms one half of the mixer matrix with parameters computed from the other half.

    .. math:: X_1 = Z_1, \qquad X_2 = f(Z_2; \mathrm{net}(Z_1, \mathrm{context}))

    The halves are the features of every patch, or the patches on a checkerboard or in stripes.
    Unlike in a `Coupling` inside `ChannelMixing` or `PatchMixing`, the net sees the whole half:
    the parameters of a patch may depend on its neighbours, or on all other patches. Both
    directions are one pass of the net.

    Args:
        num_patches: number of patches, or the (rows, columns) of their grid, which nets and
            masks need where the number is not square.
        features: size of a patch.
        univariate: the elementwise bijection :math:`f`; `Additive()` preserves volume.
        axis: 'features' to transform half of the features of every patch; the first half stays,
            the larger one if odd. 'patches' to transform half of the patches, all of their
            features.
        net: builds the conditioner, called as `net(num_patches, in_features, out_features,
            context_features=...)`: `nets.PatchConv`, `nets.Mixer`, `nets.Transformer`, or one
            of them with options, as in `partial(nets.PatchConv, hidden_features=64)`. With
            axis='patches' it gets the (rows, columns) of the half. Its output holds for each
            patch the first parameter of all features, then the second, and starts at zero for
            the layer to start as the identity.
        mask: which patches stay, for axis='patches': 'checkerboard', the default, 'columns' for
            every other column, or 'rows'; the first patch stays.
        context_features: size of the context; 0 for an unconditional layer, which ignores any.
        reverse: transform the half that would stay, by the other one.

    Shapes: (batch, num_patches, features) in and out, context (batch, context_features),
    log_det (batch,).

    Raises:
        TypeError: the input is not floating point, or of higher precision than the net;
            `univariate` is a class, or `net` a module instead of what builds one.
        ValueError: another axis or mask, a mask for features; fewer than 2 features; a grid
            that the mask does not halve; an input of another shape; a context that is missing
            or not of shape (batch, context_features).

    References:
        Kolesnikov et al., Jet: a modern Transformer-based normalizing flow, 2024
        (https://arxiv.org/abs/2412.15129)

    Example:
        >>> layer = MatrixCoupling(64, 48, net=mb.nets.Mixer, axis="patches", mask="rows")
        >>> z, log_det = layer.inverse(torch.randn(5, 64, 48))
        >>> z.shape, log_det.shape
        (torch.Size([5, 64, 48]), torch.Size([5]))
    """

    def __init__(
        self,
        num_patches: int | Sequence[int],
        features: int,
        univariate: Univariate = Affine(),
        *,
        axis: str = "features",
        net: Callable[..., nn.Module] = PatchConv,
        mask: str | None = None,
        context_features: int = 0,
        reverse: bool = False,
    ) -> None:
        name = type(self).__name__
        count = patch_count(name, num_patches)
        super().__init__((count, features), context_features=context_features)
        check_univariate(name, univariate)
        check_builder(name, "net", net)
        self.num_patches = count
        self.features = features
        self.univariate = univariate
        self.axis = axis
        self.mask = mask
        self.reverse = reverse
        self.halves = _halves(name, num_patches, features, axis, mask)
        seen, sizes = num_patches, (features, features)
        if isinstance(self.halves, PatchHalves):
            seen = self.halves.half_grid
        else:
            sizes = self.halves.sizes
        kept, transformed = sizes[::-1] if reverse else sizes
        self.net = net(
            seen, kept, transformed * univariate.num_params, context_features=context_features
        )

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.halves.split(x)
        return (second, first) if self.reverse else (first, second)

    def join(self, kept: Tensor, transformed: Tensor) -> Tensor:
        return self.halves.join(*((transformed, kept) if self.reverse else (kept, transformed)))


def _halves(
    name: str, num_patches: int | Sequence[int], features: int, axis: str, mask: str | None
) -> FeatureHalves | PatchHalves:
    if axis == "patches":
        return PatchHalves(name, patch_grid(name, num_patches), mask or "checkerboard")
    if axis != "features":
        raise ValueError(f"{name}: axis must be 'features' or 'patches', got {axis!r}")
    if mask is not None:
        raise ValueError(f"{name}: mask is for axis='patches', got {mask!r} for features")
    if features < 2:
        raise ValueError(
            f"{name}: features must be at least 2, one half for the other, got {features}"
        )
    return FeatureHalves(features)
