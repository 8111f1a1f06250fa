"""Lightning's trainer with the tasks of trained models."""

import lightning as L

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

    @classmethod
    def tasks(cls) -> list[str]:
        """The names of the tasks."""
        methods = (name for name in dir(cls) if not hasattr(L.Trainer, name))
        return [name for name in methods if name[0] != "_" and name != "tasks"]
