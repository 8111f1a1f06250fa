"""Hides messages of Lightning and torch that ask nothing of the user."""

import logging
import re
import warnings

__all__ = ["silence"]

# Messages about things that the user need not act on or that the run prints itself, and
# advertisements.
_MESSAGES = (
    r"Seed set to \d",
    r"(GPU|TPU|IPU|HPU) available: ",
    r".*Tip: For seamless cloud",
    r".*(litlogger|litmodels)",
    r"You are using a CUDA device .* that has Tensor Cores",
    r"Using (16bit|bfloat16) Automatic Mixed Precision",
    r"`Trainer\(.*=1(\.0)?\)` was configured so",
    r"`Trainer.fit` stopped: `(max_steps|max_epochs)=",
    r"Loading `train_dataloader` to estimate",
    r"LOCAL_RANK: \d",
    r"Initializing distributed: ",
    r"-+\ndistributed_backend=",
    r"Restoring states from the checkpoint",
    r"(Restored all states|Loaded model weights) from the checkpoint",
    r"Found current_model_state in the checkpoint",
    r"SLURM auto-requeueing enabled",
)
_WARNINGS = (
    "You're using the WeightAveraging callback with a model",
    "You're using the WeightAveraging callback, but loading a checkpoint outside",
    "FSDP2-wrapped module .* returned a view tensor",
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    r"The '\w+' does not have many workers",
    r"Consider setting `persistent_workers=True`",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    "The dirpath has changed from ",
    "GPU available but not used",
    "No seed found, seed set to",
)


_PATTERN = re.compile("|".join(_MESSAGES), re.DOTALL)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record is not of Lightning, or begins with none of `_MESSAGES`."""
    of_lightning = record.name.startswith("lightning")
    return not (of_lightning and _PATTERN.match(record.getMessage()))


def silence() -> None:
    """Hide the log messages and warnings that this file lists, and no others."""
    # Lightning passes its messages on to the root logger if that has handlers.
    for name in ("", "lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_wanted)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
