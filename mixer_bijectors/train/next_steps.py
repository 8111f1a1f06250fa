"""The advice that a fit prints at its end."""

import shlex
from typing import Any

from ..models import ImageFlow

__all__ = ["next_steps"]


def next_steps(flow: Any, checkpoint: str) -> str:
    """The command that draws samples, what samples to expect, and how to improve them.

    Args:
        flow: the model of images.
        checkpoint: where its weights are.
    """
    where = f"--ckpt_path {shlex.quote(checkpoint)}"
    if not isinstance(flow, ImageFlow):
        return f"score images with: mixer-bijectors score {where}"
    return (
        f"draw samples with: mixer-bijectors sample {where}\n"
        "samples of a model that was trained for minutes show its grid of patches: train it "
        "longer (--trainer.max_steps), make it larger (--model.flow.init_args), or try a "
        "TarFlow (--config photos_tarflow)"
    )
