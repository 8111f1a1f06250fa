"""The command `mixer-bijectors`."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.model_helpers import is_overridden

from .. import __version__
from ._lightning import CLIWithoutHyperparameters, forget_average
from .arguments import arranged, last_in
from .callbacks.bar import Bar
from .callbacks.guard import Guard
from .callbacks.run_config import RunConfig
from .changes import changes
from .density_estimation import DensityEstimation
from .help import DESCRIPTION, MORE, ShortHelp
from .io.checkpoints import AtomicCheckpointIO, LastCheckpoint, check_resumable
from .io.csv_log import ResumableCSVLogger
from .io.errors import RunError
from .io.files import expanded
from .io.once import print_once
from .io.reasons import reason_of
from .next_steps import next_steps
from .parser import FlowParser
from .quiet import silence
from .run_folder import RunFolder
from .tasks.flow_trainer import FlowTrainer

__all__ = ["main"]

# Values of `--ckpt_path` that `fit` passes on to Lightning, which finds these checkpoints.
_FOUND_BY_LIGHTNING = re.compile("hpc|registry|.*://.*")


class FlowCLI(CLIWithoutHyperparameters):
    """Lightning's command line: one folder for each run, a test after each fit, and tasks."""

    _folder: RunFolder | None = None

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        # The help has to be chosen here, since its formatter is an argument of the parser.
        if "--help-all" not in sys.argv:
            options |= {"formatter_class": ShortHelp, "epilog": MORE}
        parser = super().init_parser(**options)
        parser.add_argument("--help-all", action="help", help="show every option")
        return parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # Checkpoints are never read in another way, see `AtomicCheckpointIO`.
        lightning = {k: v | {"weights_only"} for k, v in LightningCLI.subcommands().items()}
        del lightning["predict"]  # the tasks do
        trainer_class: Any = self.trainer_class
        return lightning | {task: {"model", "datamodule"} for task in trainer_class.tasks()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Guard, "guard")

    def instantiate_classes(self) -> None:
        with self._nothing_left_of_a_failed_start():
            super().instantiate_classes()
        kept = ("seed_everything", "trainer", "guard", "model", "data")
        settings = self._settings()
        self.model.config = yaml.safe_dump({key: settings.get(key) for key in kept})

    def _settings(self) -> dict[str, Any]:
        """All settings of the command, as a config holds them."""
        text = self.parser.dump(self.config, skip_none=False)
        return yaml.safe_load(text)[str(self.subcommand)]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[str(self.subcommand)]
        plugins = _as_list(config.trainer.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        callbacks = kwargs["callbacks"] = [*_as_list(config.trainer.callbacks)]
        if config.trainer.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in callbacks
        ):
            callbacks.append(Bar())
        if self.subcommand != "fit":
            self.save_config_callback = None
            kwargs["logger"] = False
            self._report_changes(config.ckpt_path)
            self._report_limits()
            return super().instantiate_trainer(**kwargs)
        if config.trainer.default_root_dir:
            config.trainer.default_root_dir = expanded(config.trainer.default_root_dir)
        self._folder = RunFolder(Path(config.trainer.default_root_dir or "runs"))
        root = self._folder.root
        checkpoint = config.ckpt_path = self._checkpoint_to_go_on_from(root)
        self._report_changes(checkpoint)
        if config.trainer.logger is None:
            version = self._folder.version(checkpoint)
            csv = ResumableCSVLogger(
                root, name="", version=version, flush_logs_every_n_steps=10
            )
            # The same version, so that a run is one folder.
            tensorboard = TensorBoardLogger(root, name="", version=csv.version)
            kwargs["logger"] = [csv, tensorboard]
        if config.trainer.enable_checkpointing is not False and not any(
            map(_is_last, callbacks)
        ):
            callbacks.append(LastCheckpoint())
        return super().instantiate_trainer(**kwargs)

    def _checkpoint_to_go_on_from(self, root: Path) -> str | None:
        """Find the checkpoint of `--ckpt_path`; `last` is the newest of the runs in `root`."""
        options = self.config_init["fit"]
        path = options.ckpt_path
        if path == "best":  # which Lightning knows of the same process alone
            raise RunError(
                "fit goes on from last, or from the path of a checkpoint, such as "
                f"{root}/version_N/checkpoints/best.ckpt, got best"
            )
        if path != "last":
            if path is not None and not _FOUND_BY_LIGHTNING.fullmatch(path):
                path = expanded(path)
                check_resumable(path)
            return path
        # A logger or callback of the user's may have its own folders.
        runs = "version_*" if options.trainer.logger is None else "**"
        loggers = [
            Path(logger.save_dir, str(logger.name))
            for logger in _as_list(options.trainer.logger)
            if isinstance(logger, Logger) and logger.save_dir is not None
        ]
        folders = [
            Path(callback.dirpath)
            for callback in _as_list(options.trainer.callbacks)
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None
        ]
        last = last_in(root, runs, loggers, folders)
        if last is None:
            places = ", ".join(map(str, dict.fromkeys((root, *loggers, *folders))))
            print_once(f"there is no checkpoint in {places}: the run starts anew")
        return last

    def _report_changes(self, checkpoint: str | None) -> None:
        """Say which settings are not those of the checkpoint's run."""
        if checkpoint is not None and Path(checkpoint).is_file():
            for line in changes(checkpoint, self._settings(), str(self.subcommand)):
                print_once(line)

    def _report_limits(self) -> None:
        """Say if the task leaves out images, since the config of the fit may limit them."""
        name = {"test": "limit_test_batches", "validate": "limit_val_batches"}
        key = name.get(str(self.subcommand), "limit_predict_batches")
        limit = self.config_init[str(self.subcommand)].trainer[key]
        # The float 1.0 means all batches, and the int 1 means one batch.
        if limit is not None and (isinstance(limit, int) or limit != 1):
            print_once(f"trainer.{key} is {limit}, which leaves out images")

    @contextmanager
    def _nothing_left_of_a_failed_start(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            trainer = getattr(self, "trainer", None)
            if self._folder is not None and not (trainer and trainer.global_step):
                self._folder.remove_failed_start()
            raise

    def fit(self, **arguments: Any) -> None:
        """Train the model, after a line that says what is trained on what."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        device = self.trainer.strategy.root_device.type
        name = type(self.model.flow).__name__
        print_once(f"training a {name} of {parameters:,} parameters on {device}")
        with self._nothing_left_of_a_failed_start():
            self.trainer.fit(**arguments)

    def after_fit(self) -> None:
        trainer: Any = self.trainer
        folder = trainer.log_dir  # asks all processes
        checkpoints = trainer.checkpoint_callback
        # A run that ended before its first validation has no best checkpoint.
        best = getattr(checkpoints, "best_model_path", "") or None
        data = self.datamodule
        has_tests = is_overridden("test_dataloader", data, L.LightningDataModule)
        if has_tests and trainer.limit_test_batches:
            for callback in trainer.callbacks:
                if isinstance(callback, WeightAveraging):
                    # Otherwise Lightning would test the weights that are not averaged.
                    forget_average(callback)
            (metrics,) = trainer.test(
                self.model, datamodule=data, ckpt_path=best, verbose=False
            )
            print_once(
                f"test bits per dimension {metrics['test/bits_per_dim']:.3f}, "
                f"reconstruction error {metrics['test/reconstruction_error']:.1e}, "
                f"of {Path(best).name if best else 'the last weights'}"
            )
        if folder:
            print_once(f"checkpoints, logs and pictures are in {folder}")
        if best:
            print_once(next_steps(self.model.density, best))


def _as_list(value: Any) -> list[Any]:
    """A list of what a config gives as a list, as a single value, or not at all."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _is_last(callback: Any) -> bool:
    """Whether a callback keeps a checkpoint to go on from where `last` looks for it."""
    if isinstance(callback, LastCheckpoint):
        return True
    return isinstance(callback, ModelCheckpoint) and bool(
        callback.save_last and callback.dirpath is None and not callback.save_weights_only
    )


def _parser_options() -> dict[str, Any]:
    options: dict[str, Any] = {"description": DESCRIPTION}
    if Path(sys.argv[0]).name == "__main__.py":  # of python -m
        options["prog"] = "mixer-bijectors"
    told = {
        "fit": "Train a model; test it, and write samples, logs and checkpoints.",
        "validate": "Print the bits per dimension of validation images.",
        "test": "Print the bits per dimension of test images.",
    }
    return options | {name: {"description": text} for name, text in told.items()}


def main(trainer_class: type[FlowTrainer] = FlowTrainer) -> None:
    """Run the command line; an error that a user can correct is printed in one sentence.

    Args:
        trainer_class: a subclass of `FlowTrainer`, whose public methods are tasks as well.

    With `MIXER_BIJECTORS_TRACEBACK` in the environment, where it was found is shown as well.
    """
    silence()
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
            trainer_defaults={"inference_mode": False, "enable_model_summary": False},
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=FlowParser,
            parser_kwargs=_parser_options(),
        )
    except Exception as error:
        reason = reason_of(error)
        if reason is None or "MIXER_BIJECTORS_TRACEBACK" in os.environ:
            raise
        sys.exit(f"mixer-bijectors: {reason}")
