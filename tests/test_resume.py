"""A run that is cut off and resumed ends with the same weights, to the last bit."""

import os
import signal
from datetime import timedelta
from functools import partial

import kill_resume
import lightning as L
import pytest
from commands import QUIET, SMALL, TINY, run_and_be_killed
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from noise_runs import Noise, assert_same, make_flow

from mixer_bijectors.train import (
    AtomicCheckpointIO,
    DensityEstimation,
    LastCheckpoint,
    load_checkpoint,
)
from mixer_bijectors.train.io.csv_log import ResumableCSVLogger

STEPS = 12


class CutError(Exception):
    """What ends a run at some moment."""


class At(L.Callback):
    """Does something in a hook, when so many batches have been begun."""

    def __init__(self, hook, batches, act):
        self.begun = 0
        self.batches = batches
        self.act = act
        setattr(self, hook, self.check)

    def on_train_batch_start(self, *_):
        self.begun += 1

    def check(self, *_):
        if self.begun == self.batches:
            self.act()


def cut():
    raise CutError


def fit(
    folder,
    kind="conditional",
    ckpt_path=None,
    num_workers=0,
    every=1,
    more_callbacks=(),
    settings=None,
    **options,
):
    settings = {"warmup_steps": 2, "label_dropout": 0.3} | (settings or {})
    module = DensityEstimation(make_flow(kind), **settings)
    callbacks = [
        ModelCheckpoint(
            folder,
            filename="{step}",
            save_top_k=-1,
            every_n_train_steps=every,
        ),
        ModelCheckpoint(folder, "best", monitor="val/bits_per_dim"),
    ]
    callbacks += more_callbacks
    if options.pop("average", False):
        callbacks.append(EMAWeightAveraging(decay=0.9, use_buffers=False))
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=ResumableCSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_steps": STEPS} | options),
    )
    trainer.fit(module, datamodule=Noise(num_workers), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": True},
        {"kind": "residual"},
        {"kind": "reversible"},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
        {"max_steps": -1, "max_epochs": 3},
        {"check_val_every_n_epoch": 2, "gradient_clip_val": 1.0},
        pytest.param({"num_workers": 2, "average": True}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(map(str, options)) or "plain",
)
def test_resumes_exactly_from_every_step(tmp_path, options):
    seen = fit(tmp_path / "whole", **options)
    for step in range(1, STEPS):
        path = tmp_path / "whole" / f"step={step}.ckpt"
        resumed = fit(tmp_path / f"from-{step}", ckpt_path=path, **options)
        assert_same(resumed, seen)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conditional", "reversible"])
def test_compiled_runs_resume_exactly(tmp_path, kind):
    options = {"settings": {"compile": True}, "max_steps": 6}
    seen = fit(tmp_path / "whole", kind, **options)
    path = tmp_path / "whole" / "step=3.ckpt"
    assert_same(fit(tmp_path / "on", kind, ckpt_path=path, **options), seen)


@pytest.mark.parametrize(
    ("changed", "lr", "others"),
    [
        ({}, 4e-3 * 0.75, (0.0, (0.9, 0.999))),
        ({"learning_rate": 0.1}, 0.1 * 0.75, (0.0, (0.9, 0.999))),
        ({"weight_decay": 0.2}, 4e-3 * 0.75, (0.2, (0.9, 0.999))),
        ({"betas": (0.5, 0.6)}, 4e-3 * 0.75, (0.0, (0.5, 0.6))),
        ({"warmup_steps": 10}, 4e-3 * 0.75 / 2, (0.0, (0.9, 0.999))),
        ({"max_steps": 8}, 4e-3 * 0.5, (0.0, (0.9, 0.999))),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_run_goes_on_with_the_settings_that_it_is_given(tmp_path, changed, lr, others):
    """Not with those of the checkpoint; at step 4 of 12 the cosine has come to 0.75."""
    groups = []
    watch = At("on_before_optimizer_step", 1, lambda: None)
    watch.on_before_optimizer_step = lambda *a: groups.append(dict(a[-1].param_groups[0]))
    fit(tmp_path, max_steps=4)
    options = {key: changed[key] for key in changed.keys() & {"max_steps"}}
    settings = {key: changed[key] for key in changed.keys() - {"max_steps"}}
    path = tmp_path / "step=4.ckpt"
    fit(tmp_path / "on", ckpt_path=path, more_callbacks=[watch], settings=settings, **options)
    assert groups[0]["lr"] == pytest.approx(lr)
    assert (groups[0]["weight_decay"], groups[0]["betas"]) == others


def last_checkpoint(folder, **when):
    callback = LastCheckpoint(**when)
    callback.dirpath = str(folder)
    return callback


@pytest.mark.parametrize("every", [1, 5])
def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path, every):
    values = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            bits = float(trainer.callback_metrics["val/bits_per_dim"])
            values.append((trainer.global_step, bits))

    options = {"num_sanity_val_steps": 0, "every": 100}
    seen = fit(tmp_path / "whole", more_callbacks=[Watch()], **options)
    whole, values = values, []
    folder = tmp_path / "cut"
    last = last_checkpoint(folder, every_n_train_steps=every)
    with pytest.raises(CutError):
        fit(
            folder,
            more_callbacks=[Watch(), last, At("on_validation_start", 10, cut)],
            **options,
        )
    assert load_checkpoint(folder / "last.ckpt")["global_step"] < 10
    last = last_checkpoint(folder, every_n_train_steps=every)
    resumed = fit(
        folder, more_callbacks=[Watch(), last], ckpt_path=folder / "last.ckpt", **options
    )
    assert_same(resumed, seen)
    assert values == whole and [step for step, _ in whole] == [5, 10]


def test_no_checkpoint_between_the_batches_of_a_step(tmp_path):
    options = {"accumulate_grad_batches": 3, "every": 100}
    seen = fit(tmp_path / "whole", **options)
    for batches in (4, 6, 7):
        folder = tmp_path / f"cut-{batches}"
        last = last_checkpoint(folder, train_time_interval=timedelta(hours=1))
        later = At(
            "on_before_backward", batches, partial(setattr, last, "_last_time_checked", -1e9)
        )
        end = At("on_before_backward", batches + 3, cut)
        with pytest.raises(CutError):
            fit(folder, more_callbacks=[last, later, end], **options)
        resumed = fit(folder, ckpt_path=folder / "last.ckpt", **options)
        assert_same(resumed, seen)


def test_a_job_of_slurm_that_ends_is_saved_and_queued_again(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    seen = fit(tmp_path / "whole", every=100)
    handler = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    try:
        last = last_checkpoint(tmp_path, train_time_interval=timedelta(hours=1))
        ends = At("on_before_backward", 8, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        killed = At("on_before_backward", 10, cut)
        with pytest.raises(CutError):
            fit(tmp_path / "cut", every=100, more_callbacks=[last, ends, killed])
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 8
    monkeypatch.delenv("SLURM_JOB_ID")
    assert_same(fit(tmp_path / "on", every=100, ckpt_path=tmp_path / "last.ckpt"), seen)


# Of 26 steps in epochs of four, with a checkpoint after every third.
KILLS = [
    ("start-up", 1),
    ("a step", 3),  # before there is a checkpoint
    ("a step", 8),
    ("a validation", 1),
    ("the writing of a checkpoint", 1),
    ("the writing of a checkpoint", 4),
    ("the pictures", 1),
    ("a step", 9),
    ("the last test", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("reversible", ["false", "true"], ids=["plain", "reversible"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path, reversible):
    callbacks = "lightning.pytorch.callbacks"
    options = [
        *("fit", *QUIET, *TINY, "--trainer.max_steps", 26, "--ckpt_path", "last"),
        *("--model.flow.init_args.reversible", reversible),
        f"--trainer.callbacks+={callbacks}.ModelCheckpoint",
        *("--trainer.callbacks.monitor", "val/bits_per_dim"),
        *("--trainer.callbacks.filename", "best"),
        *("--trainer.callbacks.enable_version_counter", "false"),
        "--trainer.callbacks+=mixer_bijectors.train.LastCheckpoint",
        *("--trainer.callbacks.every_n_train_steps", 3),
        "--trainer.callbacks+=mixer_bijectors.train.Pictures",
        f"--trainer.callbacks+={callbacks}.EMAWeightAveraging",
        *("--trainer.callbacks.use_buffers", "false"),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options_of_whole = [*options, "--trainer.default_root_dir", whole]
    assert run_and_be_killed(options_of_whole, None, 0) == 0
    options += ["--trainer.default_root_dir", killed]
    for moment, calls in KILLS:
        assert run_and_be_killed(options, moment, calls) == -signal.SIGKILL, moment
        for path in killed.glob("*/checkpoints"):
            for checkpoint in kill_resume.complete(path):
                load_checkpoint(checkpoint)
    assert run_and_be_killed(options, None, 0) == 0
    folders = [kill_resume.last(folder).parent for folder in (whole, killed)]
    assert load_checkpoint(folders[1] / "last.ckpt")["global_step"] == 26
    assert kill_resume.differences(*folders) == []


@pytest.mark.slow
def test_the_benchmark_of_kills(tmp_path):
    options = [*SMALL, "--trainer.limit_val_batches", "2", "--trainer.limit_test_batches", "2"]
    row = kill_resume.compare(tmp_path, kills=1, steps=60, options=options, seed=1)
    assert row["steps"] == 60 and row["checkpoints unreadable"] == 0
    assert row["tensors that differ"] == 0
