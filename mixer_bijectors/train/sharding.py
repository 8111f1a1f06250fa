"""Models whose parameters are spread over processes, by PyTorch's `fully_shard`."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from ..models import HybridClassifier

__all__ = ["Sharded", "shard"]

# What is called on models of images and their layers besides `forward`.
_METHODS = (
    "inverse",
    "log_prob",
    "sample",
    "embed",
    "inverse_and_log_det",
    "forward_and_log_det",
)


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, over all processes, with checkpoints in one file.

    Each process keeps a part of the parameters, gradients and states of the optimiser; a layer
    is put together while it is used. Checkpoints are those of any other run.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; whatever `weights_only` is, of tensors and plain values alone."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)


# So that `--trainer.strategy sharded` names it.
StrategyRegistry.register("sharded", Sharded, description="fully_shard over all processes")


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the parameters of a model of images over the processes of `mesh`, layer by layer.

    Flows run by methods other than `forward`, which have to be made known. The first batch of
    `ActNorm` must have been seen, as what it writes into a layer in use would be lost.
    """
    classifies = isinstance(model, HybridClassifier)
    density: Any = model.flow if classifies else model
    for module in (*density.flows, density, *([model] if classifies else [])):
        fully_shard(module, mesh=mesh)
        for method in _METHODS:
            if hasattr(module, method):
                register_fsdp_forward_method(module, method)
