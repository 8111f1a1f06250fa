"""The base of a model: its log-densities and samples, with classes and a temperature."""

import functools
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import normflows as nf
import numpy as np
import torch
from torch import Tensor, nn

from .._checks import check_number, is_readable
from .._dependencies import constant_in_graphs, uncompiled
from .labels import class_weights

__all__ = ["Base", "reads_class_weights", "reads_classes", "use_python_numbers"]

# Their samples or densities are of something else than one event.
_NO_BASES = (
    type,
    nf.distributions.BaseEncoder,
    nf.distributions.BaseDecoder,
    nf.distributions.MHProposal,
    nf.NormalizingFlow,
    nf.MultiscaleFlow,
)
_CONDITIONAL = (
    nf.distributions.base.ConditionalDiagGaussian,
    nf.distributions.target.ConditionalDiagGaussian,
)
# Their events are points of the plane, but they declare no shape.
_PLANAR = (
    nf.distributions.CircularGaussianMixture,
    nf.distributions.ImagePrior,
    nf.distributions.PriorDistribution,
)
# They take rows of weights in place of labels, and so they know the null class.
_READ_WEIGHTS = (
    nf.distributions.ClassCondDiagGaussian,
    nf.distributions.GlowBase,
    nf.distributions.AffineGaussian,
)


def use_python_numbers(model: Any) -> None:
    """Replace numbers of numpy, which torch.compile cannot guard in inference mode.

    normflows keeps the number of dimensions of its distributions as such.
    """
    for part in model.modules() if isinstance(model, nn.Module) else ():
        for name, value in list(vars(part).items()):
            if isinstance(value, np.generic):
                setattr(part, name, value.item())


def reads_classes(base: Any) -> bool:
    """Whether a distribution says that it is class-conditional.

    It says so by `num_classes` or `context_features`; one that has neither, by a `y` among the
    arguments of its `log_prob`.
    """
    base = uncompiled(base)
    if isinstance(base, _CONDITIONAL):
        return True
    names = ("num_classes", "context_features")
    if any(hasattr(base, name) for name in names):
        return any(getattr(base, name, None) for name in names)
    return "y" in _arguments(type(base), "log_prob")


def reads_class_weights(base: Any) -> bool:
    """Whether a distribution of normflows takes weights of the classes in place of labels."""
    return isinstance(base, _READ_WEIGHTS)


@dataclass
class Base:
    """The base of a model, or its target, run by the conventions of this library.

    Args:
        model: name of the model, for messages.
        distribution: any of normflows, or what has their `log_prob` and `forward`.
        event: the shape of one event; None for any.
        num_classes: number of classes of the model.
    """

    model: str
    distribution: Any
    event: tuple[int, ...] | None
    num_classes: int

    def check(self) -> None:
        """Refuse a base of other events or of other classes than the model's."""
        base = uncompiled(self.distribution)
        if isinstance(base, _NO_BASES) or not hasattr(base, "log_prob"):
            kind = base if isinstance(base, type) else type(base)
            raise TypeError(
                f"{self.model}: the base must be a distribution of the latents, got "
                f"{kind.__name__}; take one such as normflows.distributions.DiagGaussian(shape)"
            )
        shape = _event_shape(base)
        if self.event is not None and shape not in (None, self.event):
            raise ValueError(
                f"{self.model}: the base must have the shape {self.event} of the latents, "
                f"(num_patches, features), got {type(base).__name__} of shape {shape}; take "
                "one such as normflows.distributions.DiagGaussian(shape)"
            )
        if isinstance(base, nf.distributions.AffineGaussian):
            self._check_affine_shape(shape, base.transform.s.shape[1:])
        classes = getattr(base, "num_classes", None)
        if (classes and classes != self.num_classes) or (
            not self.num_classes and reads_classes(base)
        ):
            raise ValueError(
                f"{self.model}: the base {type(base).__name__} is for {classes or 'some'} "
                f"classes, but the model for num_classes={self.num_classes}; build both for "
                "the same number"
            )

    def check_temperature(self, temperature: float) -> None:
        """Refuse a temperature that is not positive, or that the base cannot be set to."""
        check_number(self.model, "temperature", temperature)
        if not 0 < temperature < math.inf:
            raise ValueError(f"{self.model}: temperature must be positive, got {temperature}")
        if temperature != 1.0 and not hasattr(self.distribution, "temperature"):
            raise ValueError(
                f"{self.model}: {self._kind} has no temperature; use temperature=1.0"
            )

    def log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Log-densities (batch,) of events, in their dtype."""
        self.check()
        given = self._given("log_prob", labels, z)
        log_prob = self.distribution.log_prob(z, **given)
        self._check_shape("log-densities", log_prob, z.shape[:1])
        return _without_null(log_prob.to(z.dtype), given, labels)

    def draw(
        self,
        num_samples: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Events (num_samples, *event) at a temperature, and their log-densities."""
        self.check()
        # A target of normflows is a module that inherits the forward which raises.
        forward = getattr(type(uncompiled(self.distribution)), "forward", None)
        if not callable(self.distribution) or forward is nn.Module.forward:
            raise TypeError(
                f"{self.model}: {self._kind} cannot be called for samples; take a "
                "distribution of normflows, whose forward(num_samples) returns samples and "
                "their log-densities"
            )
        like = self._like(torch.empty(0))
        given = self._given("forward", labels, like)
        with self.tempered(temperature), self._drawing_from(generator, like.device):
            z, log_prob = self.distribution(num_samples, **given)
        self._check_shape("latents", z, (num_samples, *(self.event or z.shape[1:])))
        self._check_shape("log-densities", log_prob, (num_samples,))
        log_prob = _without_null(log_prob.to(z.dtype), given, labels)
        return _without_null(z, given, labels), log_prob

    @property
    def _kind(self) -> str:
        return type(uncompiled(self.distribution)).__name__

    def _given(self, method: str, labels: Tensor | None, like: Tensor) -> dict[str, Tensor]:
        """The labels as the distribution takes them: as `y`, as `context`, or not at all."""
        if labels is None:
            return {}
        base = uncompiled(self.distribution)
        names = _arguments(type(base), method)
        name = next((name for name in ("y", "context") if name in names), None)
        if name is None:
            return {}
        if name == "context" or reads_class_weights(base):
            return {name: class_weights(labels, self.num_classes, self._like(like))}
        if is_readable(labels) and bool((labels < 0).any()):
            raise ValueError(
                f"{self.model}: the base {type(base).__name__} takes integers as classes, and "
                "knows no null class; leave out the label -1"
            )
        return {name: labels.clamp(min=0).to(like.device)}

    def _like(self, default: Tensor) -> Tensor:
        """A tensor of the dtype and on the device that it computes in."""
        base = self.distribution
        tensors = (*base.parameters(), *base.buffers()) if isinstance(base, nn.Module) else ()
        return next((t for t in tensors if t.is_floating_point()), default)

    def _check_shape(self, what: str, got: Any, want: tuple[int, ...]) -> None:
        if isinstance(got, Tensor) and got.shape == want:
            return
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise ValueError(
            f"{self.model}: {self._kind} gave {what} of shape {shape}, "
            f"expected {tuple(want)}; take a distribution of whole events, which gives one "
            "log-density for each"
        )

    def _check_affine_shape(self, event: Any, got: tuple[int, ...]) -> None:
        """Refuse scales whose number for each event normflows would count wrongly."""
        if len(got) != len(event) or any(n not in (1, m) for n, m in zip(got, event)):
            raise ValueError(
                f"{self.model}: the affine_shape of AffineGaussian must have the sizes of its "
                f"shape {tuple(event)}, or 1 where all share a scale, got {tuple(got)}"
            )

    @contextmanager
    def tempered(self, temperature: float) -> Iterator[None]:
        """Multiply the temperature that it has of its own."""
        base = uncompiled(self.distribution)
        self.check_temperature(temperature)
        if temperature == 1.0:
            yield
            return
        before = base.temperature
        base.temperature = temperature if before is None else temperature * before
        try:
            yield
        finally:
            base.temperature = before

    @contextmanager
    def _drawing_from(
        self, generator: torch.Generator | None, device: torch.device
    ) -> Iterator[None]:
        """Put a generator in the place of the global one: bases take none as an argument."""
        if generator is None:
            yield
            return
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"{self.model}: generator must be a torch.Generator, got {generator!r}; make "
                "one with torch.Generator().manual_seed(seed)"
            )
        kind = generator.device.type
        if device.type not in (kind, "meta"):
            raise ValueError(
                f"{self.model}: the generator is on {kind}, but the base on {device.type}; "
                f"make one with torch.Generator({device.type!r})"
            )
        random: Any = torch.random if kind == "cpu" else torch.get_device_module(kind)
        where = (device,) if kind in ("cuda", "xpu") and device.type == kind else ()
        before = random.get_rng_state(*where)
        random.set_rng_state(generator.get_state(), *where)
        try:
            yield
            generator.set_state(random.get_rng_state(*where))
        finally:
            random.set_rng_state(before, *where)


def _event_shape(base: Any) -> tuple[int, ...] | None:
    """The shape of an event of a distribution, where it is known."""
    shape: Any = (2,) if isinstance(base, _PLANAR) else getattr(base, "shape", None)
    if shape is None and type(base).__module__.startswith("normflows."):
        # Distributions of vectors have a number of dimensions in place of a shape.
        names = ("dim", "ndim", "n_dims")
        shape = next((getattr(base, name) for name in names if hasattr(base, name)), None)
    return (shape,) if isinstance(shape, int) else None if shape is None else tuple(shape)


def _without_null(result: Tensor, given: dict[str, Tensor], labels: Tensor | None) -> Tensor:
    """NaN for the null class where a base takes integers, whose values nobody looked at."""
    if labels is None or "y" not in given or given["y"].is_floating_point():
        return result
    known = (labels >= 0).to(result.device).view(-1, *[1] * (result.dim() - 1))
    return result.where(known, torch.nan)


@constant_in_graphs
def _arguments(kind: type, method: str) -> tuple[str, ...]:
    return _names(getattr(kind, method, None))


@functools.cache
def _names(function: Any) -> tuple[str, ...]:
    if not callable(function):
        return ()
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return (*parameters, "context") if takes_any else tuple(parameters)
