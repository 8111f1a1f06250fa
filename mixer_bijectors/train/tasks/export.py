"""The task `export`: a trained model alone, as weights or as compiled code."""

import json
from typing import Literal

import lightning as L

from ..density_estimation import DensityEstimation
from ..io.errors import RunError
from .compiled_package import Method, check_compiler, write_package
from .output import Output

__all__ = ["export"]


def export(
    trainer: L.Trainer,
    model: DensityEstimation,
    datamodule: L.LightningDataModule | None = None,
    ckpt_path: str | None = None,
    output: str | None = None,
    format: Literal["safetensors", "aoti"] = "safetensors",
    method: Method = "log_prob",
    overwrite: bool = False,
) -> None:
    """Write the weights as safetensors for `load`, or a compiled model for Python and C++.

    Args:
        trainer: where a compiled model will run: on its device.
        model: the model, from the config.
        datamodule: not looked at.
        ckpt_path: a checkpoint of `fit`.
        output: the file; by default `results/model.safetensors` or `results/METHOD.pt2` in the
            folder of the run.
        format: safetensors for the weights with the configuration; aoti to compile the model
            ahead of time to a package of AOTInductor, which takes batches of any size and
            needs the C++ compiler of this machine.
        method: what a package computes: log_prob of images, or forward_and_log_det of latents,
            with labels as a second input for a class-conditional model.
        overwrite: replace a file that is there.
    """
    compiles = format == "aoti"
    if method != "log_prob" and not compiles:
        raise RunError(f"export: method {method} needs --format aoti")
    if compiles:
        check_compiler()
    name = f"{method}.pt2" if compiles else "model.safetensors"
    with Output(trainer, model, ckpt_path, output, name, overwrite=overwrite) as out:
        about = {} if model.config is None else {"config": model.config}
        if model.class_names is not None:
            about["class_names"] = json.dumps(model.class_names)
        if trainer.is_global_zero:
            (_write_compiled if compiles else _write_weights)(out, about, method)


def _write_weights(out: Output, about: dict[str, str], _: Method) -> None:
    from safetensors.torch import save

    state = {key: value.clone() for key, value in out.model.flow.state_dict().items()}
    out.write(
        lambda draft: draft.write_bytes(save(state, metadata=about)),
        f"{sum(value.numel() for value in state.values()):,} numbers",
    )


def _write_compiled(out: Output, about: dict[str, str], method: Method) -> None:
    device = out.trainer.strategy.root_device
    model = out.model.to(device).eval().density
    out.write(
        lambda draft: write_package(draft, model, method, about),
        f"{method} of a {type(model).__name__}, compiled for {device.type}",
    )
