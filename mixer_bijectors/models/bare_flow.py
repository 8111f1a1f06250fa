"""Models of normflows as they are, with what training and the tasks ask of a model."""

from contextlib import ExitStack
from typing import Any

import normflows as nf
import torch
from torch import Tensor

from .bases import Base, reads_class_weights
from .density_model import DensityModel
from .labels import class_weights

__all__ = ["BareFlow", "as_density_model"]


def as_density_model(flow: Any) -> Any:
    """A model that answers for itself in training: the flow itself, or one that runs it."""
    if isinstance(flow, DensityModel):
        return flow
    wanted = ("q0", "flows", "log_prob", "sample", "inverse_and_log_det")
    if isinstance(flow, type) or not all(hasattr(flow, name) for name in wanted):
        raise TypeError(
            f"DensityEstimation: {type(flow).__name__} is no model that can be trained; take a "
            "model of images of this library, a NormalizingFlow or MultiscaleFlow of "
            "normflows, or a DensityModel of your own"
        )
    return BareMultiscaleFlow(flow) if isinstance(flow, nf.MultiscaleFlow) else BareFlow(flow)


class BareFlow(DensityModel):
    """Trains and samples a `normflows.NormalizingFlow`, or a model with its methods.

    A model with an attribute `num_classes` other than 0 gets labels after the images. A model
    with an attribute `image_shape` can also score images of other datasets.

    Args:
        flow: the model.
    """

    sampling_options = ()

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self.q0, self.flows = flow.q0, flow.flows
        self.num_classes = getattr(flow, "num_classes", 0)
        self.image_shape = getattr(flow, "image_shape", None)

    @property
    def bases(self) -> list[Any]:
        """The distributions of the latents."""
        return [self.q0]

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.flow.log_prob(x, *self._given(labels))

    def inverse_and_log_det(
        self, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.flow.inverse_and_log_det(x, *self._given(labels))

    def inverse(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inverse_and_log_det(x, labels)[0]

    def __call__(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.flow(z, *self._given(labels))

    def embed(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inverse(x, labels).flatten(1)

    def sample(
        self, num_samples: int = 1, labels: Tensor | None = None, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        with ExitStack() as stack:
            for base in self._wrapped_bases():
                stack.enter_context(base.tempered(temperature))
            return self.flow.sample(num_samples, *self._given(labels))

    def check_temperature(self, temperature: float) -> None:
        for base in self._wrapped_bases():
            base.check_temperature(temperature)

    def _wrapped_bases(self) -> list[Base]:
        return [Base(type(self.flow).__name__, base, None, 0) for base in self.bases]

    def _given(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        return () if labels is None else (labels,)


class BareMultiscaleFlow(BareFlow):
    """Runs a `normflows.MultiscaleFlow`, whose latents of all levels are one vector here.

    Where all bases of a class-conditional one take weights of the classes, it knows the null
    class.
    """

    def __init__(self, flow: nf.MultiscaleFlow) -> None:
        super().__init__(flow)
        # The layers of all levels, as `flows` of other models are.
        self.flows = [layer for level in flow.flows for layer in level]
        classes = {getattr(base, "num_classes", None) or 0 for base in flow.q0} - {0}
        if flow.class_cond and len(classes) > 1:
            raise ValueError(
                "MultiscaleFlow: the bases of its levels are for different numbers of classes, "
                f"{', '.join(map(str, sorted(classes)))}; all of them get the same labels"
            )
        self.num_classes = max(classes, default=0) if flow.class_cond else 0
        self.reads_weights = all(map(reads_class_weights, self.bases))

    @property
    def bases(self) -> list[Any]:
        return list(self.q0)

    @property
    def label_range(self) -> range | None:
        if self.num_classes and not self.reads_weights:
            return range(self.num_classes)
        return super().label_range

    def inverse_and_log_det(
        self, x: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        latents, log_det = self.flow.inverse_and_log_det(x)
        return torch.cat([z.flatten(1) for z in latents], 1), log_det

    def __call__(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        shapes = [torch.Size(base.shape) for base in self.bases]
        parts = z.split([shape.numel() for shape in shapes], 1)
        latents = [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]
        return self.flow.forward_and_log_det(latents)[0]

    def _given(self, labels: Tensor | None) -> tuple[Any, ...]:
        # `log_prob` of normflows has no default for the classes.
        if labels is None or not self.reads_weights:
            return (labels,)
        return (class_weights(labels, self.num_classes, next(self.flow.parameters())),)
