"""The task `export`: the weights of a model alone."""

import json

import lightning as L

from ..density_estimation import DensityEstimation
from .output import Output

__all__ = ["export"]


def export(
    trainer: L.Trainer,
    model: DensityEstimation,
    datamodule: L.LightningDataModule | None = None,
    ckpt_path: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the weights of the model as safetensors, with its configuration, for `load`.

    Args:
        trainer: not looked at.
        model: the model, from the config.
        datamodule: not looked at.
        ckpt_path: a checkpoint of `fit`.
        output: the safetensors file; by default `results/model.safetensors` in the folder of
            the run.
        overwrite: replace a file that is there.
    """
    from safetensors.torch import save

    name = "model.safetensors"
    with Output(trainer, model, ckpt_path, output, name, overwrite=overwrite) as out:
        state = {key: value.clone() for key, value in model.flow.state_dict().items()}
        about = {} if model.config is None else {"config": model.config}
        if model.class_names is not None:
            about["class_names"] = json.dumps(model.class_names)
        if trainer.is_global_zero:
            out.write(
                lambda draft: draft.write_bytes(save(state, metadata=about)),
                f"{sum(value.numel() for value in state.values()):,} numbers",
            )
