"""The command `mixer-bijectors`."""

import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden

from .. import __version__
from .arguments import arranged, last_in, need_file
from .callbacks.guard import Guard
from .density_estimation import DensityEstimation
from .io.checkpoints import AtomicCheckpointIO, LastCheckpoint
from .io.configurations import configuration_of
from .io.csv_log import ResumableCSVLogger
from .io.files import expanded, make_folder
from .io.reasons import reason_of
from .parser import FlowParser
from .tasks.flow_trainer import FlowTrainer

__all__ = ["main"]

# What `fit` passes on to Lightning, which knows how to find them.
_FOUND_BY_LIGHTNING = re.compile("best|hpc|registry|.*://.*")


class FlowCLI(LightningCLI):
    """Lightning's command line: one folder for each run, a test after each fit, and tasks."""

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # Checkpoints are never read in another way, see `AtomicCheckpointIO`.
        lightning = {k: v | {"weights_only"} for k, v in LightningCLI.subcommands().items()}
        del lightning["predict"]  # the tasks do
        trainer_class: Any = self.trainer_class
        return lightning | {task: {"model", "datamodule"} for task in trainer_class.tasks()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Guard, "guard")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint holds no hyperparameters: the config says what the model is."""

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        subcommand = str(self.subcommand)
        config = yaml.safe_load(
            self._parser(subcommand).dump(self.config[subcommand], skip_none=False)
        )
        kept = ("seed_everything", "trainer", "guard", "model", "data")
        self.model.config = yaml.safe_dump({key: config.get(key) for key in kept})

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[str(self.subcommand)]
        plugins = config.trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if self.subcommand != "fit":
            self.save_config_callback = None
            kwargs["logger"] = False
            self._report_changes(config.ckpt_path)
            self._report_limits()
            return super().instantiate_trainer(**kwargs)
        if config.trainer.default_root_dir:
            config.trainer.default_root_dir = expanded(config.trainer.default_root_dir)
        root = make_folder(config.trainer.default_root_dir or "runs")
        checkpoint = config.ckpt_path = self._checkpoint_to_go_on_from(root)
        self._report_changes(checkpoint)
        if config.trainer.logger is None:
            version = self._version(root, checkpoint)
            csv = ResumableCSVLogger(
                root, name="", version=version, flush_logs_every_n_steps=10
            )
            # The same version, so that a run is one folder.
            tensorboard = TensorBoardLogger(root, name="", version=csv.version)
            kwargs["logger"] = [csv, tensorboard]
        callbacks = config.trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if config.trainer.enable_checkpointing is not False and not any(
            map(_is_last, callbacks)
        ):
            kwargs["callbacks"] = [*callbacks, LastCheckpoint()]
        return super().instantiate_trainer(**kwargs)

    def _checkpoint_to_go_on_from(self, root: Path) -> str | None:
        """What `--ckpt_path` names, with `last` the newest of what runs in `root` have left."""
        options = self.config_init["fit"]
        path = options.ckpt_path
        if path != "last":
            if path is not None and not _FOUND_BY_LIGHTNING.fullmatch(path):
                path = expanded(path)
                need_file(path)
            return path
        # A logger of the user's may have its own folders.
        runs = "version_*" if options.trainer.logger is None else "**"
        last = last_in(root, runs)
        if last is None:
            _print_once(f"there is no checkpoint in {root}: the run starts anew")
        return last

    def _version(self, root: Path, checkpoint: str | None) -> int:
        """The number of the run, new or to go on with."""
        if checkpoint is not None:
            path = Path(checkpoint).resolve()
            if path.exists() and path.parent.parent.parent == root.resolve():
                return _version(path.parents[1])
        versions = [_version(path) for path in root.glob("version_*")]
        return self._claim(root, max(versions, default=-1) + 1)

    def _report_changes(self, checkpoint: str | None) -> None:
        """Say where the model, and in a fit the data, are not those of the checkpoint's run."""
        if checkpoint is None or not Path(checkpoint).is_file():
            return
        then = yaml.safe_load(configuration_of(checkpoint) or "") or {}
        config = self.config[str(self.subcommand)].as_dict()
        now = json.loads(json.dumps(config, default=str))  # with lists for tuples, as in yaml
        is_fit = self.subcommand == "fit"
        for part in ("model", "data"):
            changes = _differences(then.get(part), now.get(part), part)
            for key, (old, new) in changes.items():
                if not (is_fit or key.startswith(("model.flow", "model.noise"))):
                    continue
                _print_once(f"{key} is {new}, and was {old} in the run of the checkpoint")

    def _report_limits(self) -> None:
        """Say that a test is of a part of the images, as the config of a fit may have it."""
        name = {"test": "limit_test_batches", "validate": "limit_val_batches"}
        key = name.get(str(self.subcommand), "limit_predict_batches")
        limit = self.config_init[str(self.subcommand)].trainer[key]
        # As a share 1.0 is all of them, and as a number 1 is one batch.
        if limit is not None and (isinstance(limit, int) or limit != 1):
            _print_once(f"trainer.{key} is {limit}, which leaves out images")

    def _claim(self, root: Path, version: int) -> int:
        """Make the folder of a new run, which no other run that starts now can then take."""
        if getattr(rank_zero_only, "rank", 0):
            return version  # what the first process says counts
        while True:
            try:
                (root / f"version_{version}").mkdir()
            except FileExistsError:
                version += 1
            else:
                return version

    def after_fit(self) -> None:
        trainer: Any = self.trainer
        folder = trainer.log_dir  # asks all processes
        data = self.datamodule
        has_tests = is_overridden("test_dataloader", data, L.LightningDataModule)
        if has_tests and trainer.limit_test_batches:
            checkpoints = trainer.checkpoint_callback
            # A run that ended before its first validation has no best checkpoint.
            best = getattr(checkpoints, "best_model_path", "") or None
            for callback in trainer.callbacks:
                if isinstance(callback, WeightAveraging):
                    # Else Lightning would load the weights that are not averaged.
                    callback._average_model = None
            (metrics,) = trainer.test(
                self.model, datamodule=data, ckpt_path=best, verbose=False
            )
            if trainer.is_global_zero:
                print(
                    f"test bits per dimension {metrics['test/bits_per_dim']:.3f}, "
                    f"reconstruction error {metrics['test/reconstruction_error']:.1e}, "
                    f"of {Path(best).name if best else 'the last weights'}"
                )
        if trainer.is_global_zero and folder:
            print(f"checkpoints, logs and pictures are in {folder}")


class _ConfigOfRun(SaveConfigCallback):
    """Writes `config.yaml` once the checkpoint that a run goes on from has been accepted.

    It says then which checkpoint that is. The config does not, as it serves for others too.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **options: Any) -> None:
        config = config.clone()
        config.ckpt_path = None
        super().__init__(parser, config, **options)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write nothing before the checkpoint has been accepted."""

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        step = checkpoint["global_step"]
        over = ", and max_steps is reached" if 0 <= trainer.max_steps <= step else ""
        _print_once(f"the run goes on from {trainer.ckpt_path}, step {step}{over}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


def _print_once(line: str) -> None:
    """Print a line in the first of all processes."""
    if not getattr(rank_zero_only, "rank", 0):
        print(line)


def _is_last(callback: Any) -> bool:
    """Whether a callback keeps a checkpoint to go on from where `last` looks for it."""
    if isinstance(callback, LastCheckpoint):
        return True
    return isinstance(callback, ModelCheckpoint) and bool(
        callback.save_last and callback.dirpath is None
    )


def _differences(old: Any, new: Any, path: str) -> dict[str, tuple[Any, Any]]:
    """Values of keys that both have and that differ, by their path."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {path: (old, new)}
    if old.get("class_path") != new.get("class_path"):
        return {path: (old.get("class_path"), new.get("class_path"))}
    return {
        where: values
        for key in new
        if key in old
        for where, values in _differences(old[key], new[key], f"{path}.{key}").items()
    }


def _version(folder: Path) -> int:
    match = re.fullmatch(r"version_(\d+)", folder.name)
    return int(match[1]) if match else -1


def main(trainer_class: type[FlowTrainer] = FlowTrainer) -> None:
    """Run the command line; what a user can mend is told in one sentence.

    Args:
        trainer_class: a subclass of `FlowTrainer`, whose public methods are tasks as well.

    With `MIXER_BIJECTORS_TRACEBACK` in the environment, where it was found is shown as well.
    """
    warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    if sys.argv[1:] == ["--version"]:
        print(f"mixer-bijectors {__version__}")
        return
    try:
        sys.argv[1:] = arranged(sys.argv[1:], trainer_class.tasks())
        FlowCLI(
            DensityEstimation,
            L.LightningDataModule,
            subclass_mode_data=True,
            trainer_class=trainer_class,
            trainer_defaults={"inference_mode": False},
            save_config_callback=_ConfigOfRun,
            save_config_kwargs={"overwrite": True},
            parser_class=FlowParser,
        )
    except Exception as error:
        reason = reason_of(error)
        if reason is None or "MIXER_BIJECTORS_TRACEBACK" in os.environ:
            raise
        sys.exit(f"mixer-bijectors: {reason}")
