"""Ends a fit whose loss or gradient is not finite, or whose loss is too large."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed

from ..data.batches import Batch
from ..io.checkpoints import load_checkpoint
from ..io.errors import RunError

__all__ = ["Guard"]

# So many bad steps in a row end the run, even with `on_bad_loss: skip`.
_PATIENCE = 20


class Guard(L.Callback):
    """Ends a fit before a loss that is not finite, or exploded, reaches the weights.

    It reads the loss and the norm of the gradient before each step of the optimiser, in all
    processes together, which is a host synchronisation.

    Args:
        limit: a loss of this size or larger counts as exploded. The loss of a density is in
            bits per dimension, and a uniform density has 8.
        on_bad_loss: `raise` ends the run, with the step, the images of the batch and the last
            checkpoint named; `skip` leaves out the step, and counts, unless 20 in a row are
            bad.

    Raises:
        ValueError: `on_bad_loss` is neither.
        RunError: in the fit, a bad loss.
    """

    def __init__(self, limit: float = 100.0, on_bad_loss: str = "raise") -> None:
        super().__init__()
        if on_bad_loss not in ("raise", "skip"):
            raise ValueError(
                f"Guard: on_bad_loss must be 'raise' or 'skip', got {on_bad_loss!r}"
            )
        self.limit = limit
        self.on_bad_loss = on_bad_loss
        self.skipped = self._in_a_row = 0
        self._losses: list[Tensor] = []
        self._indices: list[int] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, Batch):
            self._indices += batch.indices

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        # Lightning divides the loss by the number of batches that make a step.
        self._losses.append(loss.detach() * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        losses, indices = torch.stack(self._losses), self._indices
        self._losses, self._indices = [], []
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # of gradients that are sharded over processes
            norm = norm.full_tensor()
        fine = losses < self.limit
        # In float16 gradients may overflow; Lightning's scaler leaves out such steps itself.
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            fine = fine & norm.isfinite()
        good = bool(fine.all())
        if trainer.strategy.reduce_boolean_decision(good, all=True):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self.on_bad_loss == "skip" and self._in_a_row < _PATIENCE:
            self.skipped += 1
            # Without gradients the optimiser leaves weights and its own state as they are.
            optimizer.zero_grad(set_to_none=True)
            return
        # The first loss that is not finite, or else the largest.
        worst = float(losses[losses.nan_to_num(nan=math.inf).argmax()])
        reports: list[Any] = [(worst, float(norm), indices)]
        if trainer.world_size > 1:
            mine, reports = reports[0], [None] * trainer.world_size
            distributed.all_gather_object(reports, mine)
        raise RunError(self._message(trainer, reports))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.skipped and trainer.is_global_zero:
            print(f"steps skipped, as their loss or gradient was bad: {self.skipped}")

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]

    def _message(
        self, trainer: L.Trainer, reports: list[tuple[float, float, list[int]]]
    ) -> str:
        bad = [r for r in reports if not r[0] < self.limit] or reports
        loss, norm, _ = bad[0]
        what = f"the loss is {loss:.4g}"
        if loss < self.limit and not math.isfinite(norm):
            what = f"the norm of the gradient is {norm}"
        images = sorted(index for report in bad for index in report[2])
        batch = f", for the batch of images {', '.join(map(str, images))}" if images else ""
        advice = "try a smaller learning_rate, or on_bad_loss: skip"
        if self.on_bad_loss == "skip":
            advice = (
                f"{_PATIENCE} steps in a row were bad; go back, with a smaller learning_rate"
            )
        return f"step {trainer.global_step}: {what}{batch}; {_last_good(trainer)}; {advice}"


def _last_good(trainer: L.Trainer) -> str:
    """Name the newest checkpoint from before this step, whose weights may be the bad ones."""
    named = {
        Path(getattr(callback, f"{kind}_model_path", ""))
        for callback in trainer.checkpoint_callbacks
        for kind in ("best", "last")
    }
    paths = [path for path in named if path.is_file()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        if load_checkpoint(path)["global_step"] < trainer.global_step:
            return f"the last good checkpoint is {path}"
    if paths:
        return f"there is no checkpoint but of this very step, {', '.join(map(str, paths))}"
    return "there is no checkpoint yet"
