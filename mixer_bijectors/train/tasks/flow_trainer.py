"""Lightning's trainer with the tasks of trained models."""

from typing import Any

import lightning as L

from ..callbacks.importance_samples import ImportanceSamples
from ..io.errors import RunError
from .embed import embed
from .export import export
from .probe import probe
from .reconstruct import reconstruct
from .sample import sample
from .score import score

__all__ = ["FlowTrainer"]


class FlowTrainer(L.Trainer):
    """Lightning's trainer, and the tasks of a trained model of images as its methods.

    Each task reads the weights of a checkpoint of `fit`, the averaged ones if there are any,
    and computes batch by batch on the trainer's devices. Beside its output it keeps what is
    done, and when it is started again after a crash it goes on from there.

    Public methods of a subclass are tasks as well, and commands of
    `mixer_bijectors.train.cli.main`.
    """

    sample = sample
    embed = embed
    probe = probe
    score = score
    reconstruct = reconstruct
    export = export

    def test(self, *args: Any, importance_samples: int = 0, **options: Any) -> Any:
        """Test a model as Lightning does, and bound its bits by samples of noise if asked to.

        Args:
            importance_samples: number of samples of the noise of dequantisation for each image,
                of which a bound tighter than `test/bits_per_dim` is made; 0 for none. Each one
                takes as long as the test.
        """
        if importance_samples < 0:
            raise RunError(f"importance_samples must not be negative, got {importance_samples}")
        if not importance_samples:
            return super().test(*args, **options)
        trainer: Any = self
        bound = ImportanceSamples(importance_samples)
        trainer.callbacks.append(bound)
        try:
            return super().test(*args, **options)
        finally:
            trainer.callbacks.remove(bound)

    @classmethod
    def tasks(cls) -> list[str]:
        """The names of the tasks."""
        methods = (name for name in dir(cls) if not hasattr(L.Trainer, name))
        return [name for name in methods if name[0] != "_" and name != "tasks"]
