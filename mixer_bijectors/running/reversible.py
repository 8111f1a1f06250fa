"""Changes a model so that backward reconstructs the states of its layers and keeps none."""

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import normflows as nf
from torch import Tensor, nn

from .._checks import imported_class
from .._dependencies import child_modules
from ..chain import Chain
from .reversible_chain import Reversal, ReversibleChain, flatten

__all__ = ["reversible"]

_Module = TypeVar("_Module", bound=nn.Module)


class ReversibleLayers(nn.ModuleList):
    """The layers of a model of this library, which `apply_flows` runs as a whole."""

    def __init__(self, layers: nn.ModuleList, reversal: Reversal) -> None:
        super().__init__()
        # The same entries, so that names stay, and a layer that the list holds twice stays one.
        child_modules(self).update(child_modules(layers))
        self.training = layers.training
        self.whole = _Whole(self, reversal)

    @property
    def last_drift(self) -> Tensor | None:
        return self.whole.reversal.drift

    @property
    def kept(self) -> dict[int, str]:
        return self.whole.reversal.kept


class OneReversibleFlow(ReversibleLayers):
    """The layers of a model of normflows or nflows, whose loops see a list of one flow."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter([self.whole])

    def __getitem__(self, index: Any) -> Any:
        return [self.whole][index]

    def add_module(self, name: str, module: nn.Module | None) -> None:
        raise TypeError("reversible: the model runs its layers as one; add layers before")


class _Whole:
    """All layers of a list as one flow."""

    def __init__(self, layers: ReversibleLayers, reversal: Reversal) -> None:
        self.layers = layers
        self.reversal = reversal

    def __call__(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.run(x, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.run(x, context, inverse=True)

    def run(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        flows = list(flatten(self.layers))
        return self.reversal.run(flows, x, context, inverse=inverse)


def reversible(model: _Module, *, keep_every: int | None = None) -> _Module:
    """Make a model's memory in training independent of its number of layers, in place.

    Layers that a model runs one after the other run as `ReversibleChain` runs them: those of
    the models of this library and of normflows (of each level of a `MultiscaleFlow`), of
    `Chain` and of the composites of normflows and nflows, so that density estimators of
    nflows and sbi are made of them too. Values, gradients, names of parameters and the
    state_dict stay. Where layers that follow each other hold such series themselves, these are
    joined with them; a series inside of another layer stays as it is.

    A layer whose other direction is not an exact and cheap inverse keeps its input. The first
    training batch decides which layers these are, and a warning names them. The list of layers
    has them as `kept`, as in `model.flows.kept`, and has `last_drift`. The list of a model of
    normflows or nflows has one entry, which runs all layers; `model.flows.children()` are the
    layers.

    A second call replaces `keep_every`. Warns if there was nothing to change.

    Args:
        model: a model, a layer or any module that holds some.
        keep_every: keep the input of every so manieth layer, see `ReversibleChain`.

    Returns:
        The model.

    Raises:
        TypeError: what is not a module.

    Example:
        >>> flows = [nf.flows.GlowBlock(12, 16) for _ in range(8)]
        >>> base = nf.distributions.DiagGaussian((12, 4, 4))
        >>> model = reversible(nf.NormalizingFlow(base, flows))
        >>> model.forward_kld(torch.randn(5, 12, 4, 4)).backward()
        >>> model.flows.kept
        {}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"reversible: expected a module, got {type(model).__name__}; pass the model or "
            "layer that holds the parameters"
        )
    if not sum(_rewrite(module, keep_every) for module in _outermost(model)):
        warnings.warn(
            f"reversible: {type(model).__name__} holds no series of layers that is known; "
            "compose them with ReversibleChain(flows)",
            stacklevel=2,
        )
    return model


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that run a series of layers, and are in no layer of another one."""
    holders = list(_holders(module))
    if holders and any(len(list(flatten(layers))) > 1 for _, _, layers in holders):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def _rewrite(module: nn.Module, keep_every: int | None) -> int:
    """Replace the lists of layers of a module; their number."""
    name = type(module).__name__
    holders = list(_holders(module))
    for holder, key, layers in holders:
        kind = ReversibleLayers if _hands_on_its_list(type(module)) else OneReversibleFlow
        # Past the hooks that look at new children, as these are not new.
        child_modules(holder)[key] = kind(layers, Reversal(name, keep_every))
    return len(holders)


def _hands_on_its_list(kind: type[nn.Module]) -> bool:
    """Whether a class has the methods of this library, which run a list by `apply_flows`."""
    log_prob = getattr(kind, "log_prob", None)
    package = __name__.partition(".")[0]
    return issubclass(kind, Chain) or (
        log_prob is not None and log_prob.__module__.partition(".")[0] == package
    )


def _holders(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The lists of layers that a module runs in order: who holds them, and by which name."""
    if isinstance(module, nf.MultiscaleFlow):
        for name, level in child_modules(module.flows).items():
            yield module.flows, name, level
        return
    for kinds, name in (
        ((Chain, nf.NormalizingFlow, nf.ClassCondFlow), "flows"),
        (nf.flows.Composite, "_flows"),
        (imported_class("nflows.transforms.base", "CompositeTransform"), "_transforms"),
    ):
        if isinstance(module, kinds) and not isinstance(module, ReversibleChain):
            yield module, name, child_modules(module)[name]
