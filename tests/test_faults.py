"""What goes wrong in a run is told in a sentence, and costs no more than it must."""

import csv
import errno
import os
import pickle
import re
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from noise_runs import Noise, assert_same, make_flow

import mixer_bijectors as mb
from mixer_bijectors.train import (
    AtomicCheckpointIO,
    DensityEstimation,
    Guard,
    LastCheckpoint,
    Pictures,
    RunError,
    load_checkpoint,
)
from mixer_bijectors.train.io import files as written
from mixer_bijectors.train.io.files import atomic_write, make_folder


def make_trainer(folder, *callbacks, **options):
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


class Bad(DensityEstimation):
    """A loss that is bad at some steps."""

    def __init__(self, bad=None, value=torch.nan, gradient=False):
        super().__init__(make_flow("conditional"), learning_rate=1e-3, warmup_steps=0)
        self.bad = bad or {}
        self.value = value
        self.gradient = gradient

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step not in self.bad:
            return loss
        self.indices = batch.indices
        if self.gradient:  # the square root has an infinite one at zero
            return loss + (loss - loss).sqrt()
        return loss * self.value


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "the loss is nan"),
        ({"value": torch.inf}, "the loss is inf"),
        ({"value": 1e4}, r"the loss is [\d.e+]+"),
        ({"gradient": True}, "the norm of the gradient is nan"),
    ],
)
def test_a_bad_loss_ends_the_run_before_it_reaches_the_weights(tmp_path, options, told):
    module = Bad({4}, **options)
    last = LastCheckpoint(every_n_train_steps=2)
    last.dirpath = str(tmp_path)
    trainer = make_trainer(tmp_path, Guard(), last, max_steps=8, limit_val_batches=0)
    with pytest.raises(RunError) as caught:
        trainer.fit(module, datamodule=Noise())
    message = str(caught.value)
    images = ", ".join(map(str, sorted(module.indices)))
    assert re.match(rf"step 4: {told}, for the batch of images {images}; ", message)
    # That of step 4 has weights that nothing good is known of.
    assert f"there is no checkpoint but of this very step, {tmp_path}/last.ckpt;" in message
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("when", "bad", "good", "batches"),
    [({"every_n_train_steps": 2}, 5, 4, 0), ({}, 7, 5, 1)],
    ids=["of an interval", "of the first validation"],
)
def test_the_last_good_checkpoint_is_named(tmp_path, when, bad, good, batches):
    last = LastCheckpoint(**when)
    last.dirpath = str(tmp_path)
    trainer = make_trainer(tmp_path, Guard(), last, max_steps=8, limit_val_batches=batches)
    with pytest.raises(RunError, match=rf"checkpoint is {tmp_path}/last.ckpt"):
        trainer.fit(Bad({bad}), datamodule=Noise())
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == good


def test_bad_steps_are_skipped_and_counted(tmp_path, capsys):
    module = Bad({2, 5})
    guard = Guard(on_bad_loss="skip")
    before = {}

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before[trainer.global_step] = [p.detach().clone() for p in pl_module.parameters()]

    trainer = make_trainer(
        tmp_path, guard, Spy(), max_steps=8, limit_val_batches=0, gradient_clip_val=1.0
    )
    trainer.fit(module, datamodule=Noise())
    assert guard.skipped == 2 and guard.state_dict() == {"skipped": 2}
    assert "gradient was bad: 2" in capsys.readouterr().out
    for step in range(7):
        same = all(map(torch.equal, before[step], before[step + 1]))
        assert same == (step in module.bad)


def test_weights_that_are_bad_themselves_are_not_skipped_for_ever(tmp_path):
    trainer = make_trainer(
        tmp_path, Guard(on_bad_loss="skip"), max_steps=100, limit_val_batches=0
    )
    with pytest.raises(RunError, match=r"step 22: .* 20 steps in a row were bad"):
        trainer.fit(Bad(set(range(3, 100))), datamodule=Noise())


def test_the_guard_looks_at_all_batches_of_a_step(tmp_path):
    module = Bad({0})
    trainer = make_trainer(tmp_path, Guard(), max_steps=2, accumulate_grad_batches=3)
    with pytest.raises(
        RunError, match=r"step 0: the loss is nan, for the batch of images"
    ) as e:
        trainer.fit(module, datamodule=Noise())
    assert len(re.search(r"images ([\d, ]+);", str(e.value))[1].split(",")) == 12


def test_the_guard_refuses():
    with pytest.raises(ValueError, match="on_bad_loss must be 'raise' or 'skip', got 'stop'"):
        Guard(on_bad_loss="stop")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("before")

    def fail():
        with atomic_write(path) as draft:
            draft.write_text("half of")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    with atomic_write(path) as draft:
        assert draft.suffix == ".txt"
        draft.write_text("after")
    assert path.read_text() == "after" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENOSPC, "the disk is full: .* what was there before is intact"),
        (errno.EROFS, "cannot be written: Read-only file system"),
        (errno.EACCES, "cannot be written: Permission denied"),
    ],
)
def test_what_cannot_be_written_is_told(tmp_path, monkeypatch, code, told):
    path = tmp_path / "last.ckpt"
    path.write_text("before")

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(written.os, "fsync", fail)
    with pytest.raises(RunError, match=told), atomic_write(path) as draft:
        draft.write_text("after")
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_checkpoint_on_a_full_disk(tmp_path, monkeypatch):
    """The real error of the system, which torch hides behind one of its own."""
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"a": torch.ones(3), "pytorch-lightning_version": "2.6.0"}, path)
    monkeypatch.setattr(Path, "with_name", lambda self, name: full)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"the disk is full: .*last.ckpt"):
        io.save_checkpoint({"a": torch.zeros(1 << 16)}, path)
    assert torch.equal(io.load_checkpoint(path)["a"], torch.ones(3))


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs the file system /proc")
def test_a_folder_that_cannot_be_written_to():
    """Where even the superuser may not write."""
    with pytest.raises(RunError, match=r"^/proc/runs cannot be written: "):
        make_folder("/proc/runs")


class Malicious:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("wrapped", [True, False], ids=["in torch's zip", "bare"])
def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path, wrapped):
    sentinel, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    payload = {"state_dict": {}, "evil": Malicious(sentinel)}
    if wrapped:
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    trainer = make_trainer(tmp_path, max_steps=1)
    for load in (
        lambda: load_checkpoint(path),
        lambda: AtomicCheckpointIO().load_checkpoint(path, weights_only=False),
        lambda: trainer.fit(Bad(), datamodule=Noise(), ckpt_path=path),
    ):
        with pytest.raises(RunError, match="more than tensors and plain values"):
            load()
    assert not sentinel.exists()
    torch.load(path, weights_only=False) if wrapped else pickle.loads(path.read_bytes())
    assert sentinel.exists(), "the file would have been made"


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "a list": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, path)
    DAMAGE[damage](path)
    with pytest.raises(RunError, match=r"last.ckpt is (damaged|no checkpoint)") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_no_checkpoint():
    with pytest.raises(RunError, match=r"there is no checkpoint nowhere.ckpt"):
        load_checkpoint("nowhere.ckpt")


def test_averaged_buffers_are_refused_as_indices_would_be_ruined(tmp_path):
    trainer = make_trainer(tmp_path, EMAWeightAveraging(), max_steps=1)
    with pytest.raises(RunError, match="EMAWeightAveraging: set use_buffers to false"):
        trainer.fit(Bad(), datamodule=Noise())


def test_averaged_weights_keep_indices_and_are_what_is_evaluated(tmp_path):
    module = Bad()
    average = EMAWeightAveraging(decay=0.5, use_buffers=False)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/bits_per_dim")
    make_trainer(tmp_path, average, best, max_steps=10).fit(module, datamodule=Noise())
    saved = load_checkpoint(tmp_path / "best.ckpt")
    assert set(saved["state_dict"]) == set(saved["current_model_state"])
    other = Bad()
    other.load_state_dict(saved["state_dict"])
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, saved["current_model_state"][name]), name
    (metrics,) = make_trainer(tmp_path).test(other, datamodule=Noise(), verbose=False)
    assert metrics["test/bits_per_dim"] == pytest.approx(float(best.best_model_score), abs=1e-6)
    assert metrics["test/reconstruction_error"] < 1e-4


def test_pictures_come_before_averages(tmp_path):
    callbacks = (EMAWeightAveraging(use_buffers=False), Pictures())
    with pytest.raises(RunError, match="list the callback Pictures before EMAWeightAveraging"):
        make_trainer(tmp_path, *callbacks, max_steps=1).fit(Bad(), datamodule=Noise())


def test_a_run_that_ends_within_an_epoch_leaves_its_last_weights(tmp_path):
    last = LastCheckpoint(every_n_train_steps=100)
    last.dirpath = str(tmp_path)
    module = Bad()
    make_trainer(tmp_path, last, max_steps=7).fit(module, datamodule=Noise())
    saved = load_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == 7
    other = Bad()
    other.load_state_dict(saved["state_dict"])
    assert_same(module, other)


def test_a_classifier_needs_labels(tmp_path):
    flow = mb.MixerFlow((1, 4, 6), 2, num_layers=1, shift_every=0, hidden_features=8)
    module = DensityEstimation(mb.HybridClassifier(flow, 3, weight=1.0))
    images = torch.zeros(4, 1, 4, 6, dtype=torch.uint8)
    module.log = lambda *_, **__: None
    with pytest.raises(RunError, match="is trained with labels, and the images have none"):
        module.training_step(images, 0)


def test_metrics_do_not_depend_on_the_order():
    from mixer_bijectors.train.metrics import MeanOverImages

    values = torch.from_numpy(np.random.default_rng(0).normal(size=1000)).float()
    means = set()
    for seed in range(5):
        mean = MeanOverImages()
        order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
        for part in values[order].split(7 + seed):
            mean.update(part)
        means.add(mean.compute().item())
    assert len(means) == 1


def test_a_log_goes_on_where_the_run_does(tmp_path):
    from mixer_bijectors.train.io.csv_log import ResumableCSVLogger

    def log(steps, name="train/bits_per_dim"):
        logger = ResumableCSVLogger(tmp_path, name="", version="")
        for step in steps:
            logger.log_metrics({name: float(step), "epoch": 0}, step)
        logger.save()

    def steps():
        with (tmp_path / "metrics.csv").open(newline="") as file:
            return [int(row["step"]) for row in csv.DictReader(file)]

    log(range(8))
    log([8], "test/bits_per_dim")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("0,1")  # cut off in its second field
    log(range(5, 10))
    assert steps() == list(range(10))
    log([10], "test/bits_per_dim")
    assert steps() == [*range(10), 10], "a test drops nothing"
