"""A flow in the place of a transform of nflows; imported only where nflows is used."""

from nflows.transforms import Transform
from torch import Tensor

from ..flow import Flow, apply_flow

__all__ = ["FlowAsTransform"]


class FlowAsTransform(Transform):
    """Runs a flow from data to latent in `forward`, as nflows does."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.flow, inputs, context, inverse=True)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return apply_flow(self.flow, inputs, context)
