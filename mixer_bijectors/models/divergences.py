"""Divergences of a model from a target density, estimated from samples of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import normflows as nf
from torch import Tensor

from .bases import Base

__all__ = ["TargetDivergences"]


class TargetDivergences(nf.NormalizingFlow):
    """The losses of normflows that fit a model to its target `p`, with classes."""

    num_classes: int
    _check_labels: Any

    def reverse_kld(
        self,
        num_samples: int = 1,
        beta: float = 1.0,
        score_fn: bool = True,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Divergence of the model from its target `p`, estimated from samples.

        Args:
            num_samples: number of samples.
            beta: weight of the target's log-density.
            score_fn: let the gradient run through the parameters of the log-density too, not
                only through the samples.
            labels: classes of the samples, for a class-conditional model.
        """
        x, log_q = self.sample(num_samples, labels)
        if not score_fn:
            with self._fixed_parameters():
                log_q = self.log_prob(x, labels)
        return log_q.mean() - beta * self._target_log_prob(x, labels).mean()

    def reverse_alpha_div(
        self,
        num_samples: int = 1,
        alpha: float = 1,
        dreg: bool = False,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Alpha divergence between the target `p` and the model, estimated from samples.

        Args:
            num_samples: number of samples.
            alpha: order of the divergence.
            dreg: take the gradient by the doubly reparametrised estimator.
            labels: classes of the samples, for a class-conditional model.
        """
        x, log_q = self.sample(num_samples, labels)
        log_p = self._target_log_prob(x, labels)
        if not dreg:
            sign = (alpha > 1) - (alpha < 1)
            return sign * (alpha * (log_p - log_q)).logsumexp(0)
        share = num_samples * (alpha * (log_p - log_q).detach()).softmax(0)
        with self._fixed_parameters():
            log_ratio = log_p - self.log_prob(x, labels)
        return -alpha * (((1 - alpha) * share + alpha * share.square()) * log_ratio).mean()

    def _target_log_prob(self, x: Tensor, labels: Tensor | None) -> Tensor:
        name = type(self).__name__
        if self.p is None:
            raise ValueError(
                f"{name}: the model has no target; set its attribute p to a distribution with "
                "log_prob(x)"
            )
        target = Base(name, self.p, None, self.num_classes)
        return target.log_prob(x, self._check_labels(labels, x.shape[0]))

    @contextmanager
    def _fixed_parameters(self) -> Iterator[None]:
        """Take parameters as constants; those that are trained are trained again afterwards."""
        trained = [p for p in self.parameters() if p.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_()
