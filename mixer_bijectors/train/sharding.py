"""Models whose parameters are spread over processes, by PyTorch's `fully_shard`."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from ._lightning import set_data_parallel_size
from .io.checkpoints import load_checkpoint

__all__ = ["Sharded", "broadcast_values", "shard"]

# What is called on models of images and their layers besides `forward`.
_METHODS = (
    "inverse",
    "log_prob",
    "loss_and_metrics",
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
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; whatever `weights_only` is, of tensors and plain values alone."""
        try:
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        except Exception:
            # Lightning reads the file itself; this reports what is wrong with it.
            load_checkpoint(checkpoint_path)
            raise


# So that `--trainer.strategy sharded` names it.
StrategyRegistry.register("sharded", Sharded, description="fully_shard over all processes")


def broadcast_values(module: nn.Module, device: torch.device) -> None:
    """Give all processes the values of the first, as DDP does and `fully_shard` does not."""
    for tensor in chain(module.parameters(), module.buffers()):
        shared = tensor.detach().to(device)
        distributed.broadcast(shared, 0)
        tensor.data.copy_(shared)


def shard(model: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Spread the parameters of a model over the processes of `mesh`, layer by layer.

    Flows run by methods other than `forward`, which have to be made known. The first batch of
    `ActNorm` must have been seen, as what it writes into a layer in use would be lost.

    Args:
        model: a model of images.
        layers: the flows inside, each put together while it runs.
        mesh: the processes.
    """
    # A reversible model runs its layers again by their parameters, which must be whole until
    # all of them are done.
    layers = [] if hasattr(layers, "whole") else list(layers)
    inside = {part for layer in layers for part in layer.modules()}
    # What is in no layer, a base or a head, belongs to the model, and to the flow inside of it;
    # both are used after the layers have returned.
    holders = [
        module
        for module in model.modules()
        if module not in inside and not inside.isdisjoint(module.modules())
    ]
    models = [holder for holder in holders if not isinstance(holder, nn.ModuleList)]
    for module in (*layers, *reversed(models)):
        fully_shard(module, mesh=mesh, reshard_after_forward=module in layers)
        for method in _METHODS:
            if hasattr(module, method):
                register_fsdp_forward_method(module, method)
