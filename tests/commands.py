"""The command, run in this process or in others."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from importlib.resources import files

import pytest

from mixer_bijectors.train import DensityEstimation, Pictures, load_checkpoint
from mixer_bijectors.train.cli import main
from mixer_bijectors.train.io import checkpoints

CONFIGS = files("mixer_bijectors.train") / "configs"
QUIET = [
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
]
# A model and data with which a fit takes half a second.
FLOW = "--model.flow.init_args."
TINY = [
    *("--model.flow", "mixer_bijectors.MixerFlow", f"{FLOW}image_shape", "[1, 8, 8]"),
    *(f"{FLOW}patch_size", "4", f"{FLOW}num_layers", "1", f"{FLOW}shift_every", "0"),
    *(f"{FLOW}hidden_features", "8", "--data", "mixer_bijectors.train.Digits"),
    *("--data.init_args.batch_size", "256"),
]
LABELLED = ["--data", "mixer_bijectors.train.Digits", "--data.init_args.batch_size", "64"]
SMALL = [
    *("--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false"),
    *("--model.flow.init_args.num_layers", "1"),
    *("--model.flow.init_args.hidden_features", "8"),
    *("--data.init_args.batches_per_epoch", "12"),
    *("--data.init_args.batch_size", "8"),
]


def call(*arguments, fails=False, **options):
    """Run the command in this process, with options of `main`; why it failed, if it did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mixer-bijectors", *map(str, arguments)])
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # are put back afterwards
            patch.setenv(name, "0")
            patch.delenv(name)
        code = None
        try:
            main(**options)
        except SystemExit as end:
            code = end.code
    assert bool(code) == fails, code
    return code


def fit(folder, steps, *options, **how):
    """Fit the tiny model in this process, for so many steps."""
    root = ("--trainer.default_root_dir", folder, "--trainer.max_steps", steps)
    return call("fit", *QUIET, *TINY, *root, *options, **how)


def step_of(folder, version=0):
    """The step at which the last checkpoint of a run was written."""
    path = folder / f"version_{version}" / "checkpoints" / "last.ckpt"
    return load_checkpoint(path)["global_step"]


def task(name, checkpoint, output, *options, fails=False):
    """Run a task in this process."""
    where = ("--ckpt_path", checkpoint, "--output", output)
    return call(name, *where, *QUIET, *options, fails=fails)


def start(*arguments):
    """The command line and the environment of a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "mixer_bijectors.train", *map(str, arguments)], environment


def command(*arguments, fails=False):
    """Run the command in a process of its own."""
    line, environment = start(*arguments)
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert (done.returncode != 0) == fails, done.stderr
    return done


def bits_of_test(printed):
    """The bits per dimension in the table that `test` prints, to all digits."""
    # The table is drawn with lines where the package rich is there.
    return float(re.search(r"test/bits_per_dim[\s│]+(\S+)", printed)[1])


# Where a process may be killed: before a call of one of these.
MOMENTS = {
    "start-up": (DensityEstimation, "setup"),
    "a step": (DensityEstimation, "optimizer_step"),
    "a validation": (DensityEstimation, "validation_step"),
    "the pictures": (Pictures, "_sample"),
    "the last test": (DensityEstimation, "test_step"),
    # What is written then is there in part.
    "the writing of a checkpoint": (checkpoints.torch, "save"),
}


def run_and_be_killed(arguments, moment, calls):
    """Run the command in a process of its own; how it ended.

    The processes are forked from one that has imported everything, so that each takes no longer
    than what it does.

    Args:
        arguments: of the command.
        moment: when to be killed, one of `MOMENTS`, or None.
        calls: at which of its calls.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mixer_bijectors.train.cli", "sklearn.datasets", "pytest"])
    process = context.Process(target=_run, args=([*map(str, arguments)], moment, calls))
    process.start()
    process.join()
    return process.exitcode


def _run(arguments, moment, calls):
    if moment is not None:
        owner, name = MOMENTS[moment]
        original, left = getattr(owner, name), iter(range(calls - 1))

        def call_or_die(*args, **kwargs):
            if next(left, None) is not None:
                return original(*args, **kwargs)
            if moment == "the writing of a checkpoint":
                original(*args, **kwargs)
                args[1].truncate(args[1].tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, call_or_die)
    sys.argv = ["mixer-bijectors", *arguments]
    main()
