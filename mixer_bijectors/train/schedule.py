"""The learning rate of each step."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

__all__ = ["Schedule"]


class Schedule(LambdaLR):
    """A learning rate that is a function of the step, for runs that may be resumed."""

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
