"""The tasks as methods of a trainer."""

import numpy as np
import pytest
import torch
from commands import QUIET, call, task
from tiny_runs import make_trainer, table

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, Digits, FlowTrainer, ImageDataModule
from mixer_bijectors.train.tasks.output import Output
from mixer_bijectors.train.tasks.prediction import predict_images


@pytest.mark.parametrize("mode", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tasks_do_not_depend_on_the_inference_mode(conditional, tmp_path, mode):
    flow = mb.TarFlow(
        (1, 8, 8),
        4,
        channels=16,
        num_blocks=2,
        layers_per_block=1,
        head_dim=8,
        num_classes=10,
    )
    module = DensityEstimation(flow, noise=0.1, label_dropout=0.1)
    trainer = make_trainer(inference_mode=mode)
    options = {"model": module, "ckpt_path": str(conditional)}
    output = tmp_path / "embeddings.npz"
    trainer.embed(datamodule=Digits(64), output=str(output), **options)
    split = Digits.splits()["test"]
    with torch.no_grad():
        want = flow.eval().inverse((split.images + 0.5) / 128 - 1, split.labels).flatten(1)
    assert np.allclose(np.load(output)["embeddings"], want.numpy(), atol=1e-5)
    trainer.sample(
        output=str(tmp_path / "s.npz"), num_samples=4, guidance=1.0, seed=0, **options
    )
    given = ("--num_samples", 4, "--guidance", 1, "--seed", 0)
    task("sample", conditional, tmp_path / "t.npz", *given)
    for key, value in np.load(tmp_path / "t.npz").items():
        assert np.allclose(np.load(tmp_path / "s.npz")[key], value, atol=1e-4), key
    trainer.score(datamodule=Digits(64), output=str(tmp_path / "s.csv"), **options)
    task("score", conditional, tmp_path / "t.csv")
    bits = [[float(r["bits_per_dim"]) for r in table(tmp_path / f"{n}.csv")] for n in "st"]
    assert np.allclose(*bits, atol=1e-4)


class Counting(FlowTrainer):
    """A trainer with a task of a user's own."""

    def brightness(
        self,
        model: DensityEstimation,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        output: str | None = None,
    ) -> None:
        """Write the mean of each image."""
        with Output(self, model, ckpt_path, output, "brightness.npz") as out:
            means = predict_images(out, mean_of_images, datamodule)
            if means:
                out.write_npz(means, f"brightness of {len(means['index'])} images")


def mean_of_images(model, batch):
    return {"brightness": batch.images.float().flatten(1).mean(1)}


def test_a_task_of_a_user_is_a_method_of_a_subclass(run, tmp_path, capsys):
    where = ("--ckpt_path", run, "--output", tmp_path / "b.npz")
    call("brightness", *where, *QUIET, trainer_class=Counting)
    want = Digits.splits()["test"].images.float().flatten(1).mean(1)
    assert np.allclose(np.load(tmp_path / "b.npz")["brightness"], want)
    assert capsys.readouterr().out.endswith("b.npz: brightness of 359 images\n")
    assert set(Counting.tasks()) == {*FlowTrainer.tasks(), "brightness"}
