"""The learning rate of each step."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["Schedule"]


class Schedule(LambdaLR):
    """A learning rate that is a function of the step, for runs that may be resumed."""

    # torch's LinearLR and CosineAnnealingLR in a SequentialLR would need more code: checkpoints
    # restore their lengths and rates, each of which a run with other settings has to replace,
    # and the length of a cosine must be known before Lightning has computed it.

    @classmethod
    def of_warmup_and_cosine(
        cls, optimizer: Optimizer, warmup_steps: int, count_steps: Callable[[], float]
    ) -> "Schedule":
        """A linear warm-up, and a cosine to zero.

        Args:
            optimizer: has the peak learning rate.
            warmup_steps: steps of the warm-up.
            count_steps: returns the number of steps of the run; not called at step 0, since
                Lightning counts the steps of epochs by making the loader, which must not be
                before a checkpoint has told it where to go on.
        """

        def factor(step: int) -> float:
            warmup = min(1.0, (step + 1) / max(1, warmup_steps))
            if not step:
                return warmup
            return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / count_steps())))

        return cls(optimizer, factor)

    def go_on_with(self, lr: float, **settings: Any) -> None:
        """Give the optimizer settings of this run.

        A checkpoint restores those of the run that has written it.

        Args:
            lr: the learning rate that the function of the step is a factor of.
            settings: other settings of the optimizer.
        """
        self.base_lrs = [lr for _ in self.base_lrs]
        for group, factor in zip(self.optimizer.param_groups, self.lr_lambdas):
            group |= settings | {"initial_lr": lr, "lr": lr * factor(self.last_epoch)}
