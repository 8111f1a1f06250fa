"""The weights of a checkpoint, for what is done with a trained model."""

import os
from pathlib import Path

from ..checks import warn_if_untrained
from ..density_estimation import DensityEstimation
from ..io.checkpoints import load_checkpoint, load_state
from ..io.errors import RunError

__all__ = ["NO_CHECKPOINT", "load_weights"]

NO_CHECKPOINT = "which weights? pass --ckpt_path runs/NAME/version_N/checkpoints/best.ckpt"


def load_weights(module: DensityEstimation, ckpt_path: str | os.PathLike[str] | None) -> Path:
    """Load the weights of a checkpoint of `fit`, the averaged ones if there are any.

    Returns:
        Where the checkpoint is.

    Raises:
        RunError: there is none, or they do not fit the model.
    """
    if ckpt_path is None:
        raise RunError(NO_CHECKPOINT)
    checkpoint = load_checkpoint(ckpt_path)
    if "state_dict" not in checkpoint:
        raise RunError(f"{ckpt_path} is no checkpoint of fit: it holds no state_dict")
    load_state(module, checkpoint["state_dict"], ckpt_path)
    module.on_load_checkpoint(checkpoint)
    module.config = module.config or checkpoint.get("config")
    warn_if_untrained(module.flow)
    return Path(ckpt_path)
