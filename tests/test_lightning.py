"""The names of Lightning in `train/_lightning.py`: upgrades may take them away."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from mixer_bijectors.train import _lightning
from mixer_bijectors.train.sharding import Sharded


class Module(L.LightningModule):
    """A weight that is fitted to nothing."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, *callbacks, **options):
    """A fit of six batches, with a validation after every second one."""
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        **({"max_steps": 6, "val_check_interval": 2, "num_sanity_val_steps": 0} | options),
    )
    module, loader = Module(), DataLoader(torch.ones(6, 1))
    trainer.fit(module, loader, loader)
    return trainer, module


def test_the_command_line_does_not_look_into_checkpoints():
    hook = _lightning.LightningCLI._parse_ckpt_path
    assert _lightning.CLIWithoutHyperparameters._parse_ckpt_path is not hook
    assert "_parse_ckpt_path" in _lightning.LightningCLI.__init__.__code__.co_names


def test_a_csv_log_begins_with_columns(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,step\n1,0\n")
    writer = _lightning.ContinuedWriter(str(tmp_path), ["a", "step"])
    writer.log_metrics({"a": 2}, 1)
    writer.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["a,step", "1,0", "2,1"]


@pytest.mark.parametrize("answer", [False, True])
def test_whether_buffers_are_averaged(answer):
    assert _lightning.averages_buffers(EMAWeightAveraging(use_buffers=answer)) is answer


def test_an_average_is_forgotten(tmp_path):
    average = EMAWeightAveraging(use_buffers=False)
    trainer, module = fit(tmp_path, average)
    current = {name: value.clone() for name, value in module.state_dict().items()}
    weights = {name: value + 1 for name, value in current.items()}
    checkpoint = {"state_dict": weights, "current_model_state": current}
    checkpoint["averaging_state"] = {"n_averaged": torch.tensor(1)}
    for forgotten in (False, True):
        if forgotten:
            _lightning.forget_average(average)
        module.load_state_dict(weights)
        average.on_load_checkpoint(trainer, module, checkpoint)
        assert torch.equal(module.layer.weight, weights["layer.weight"]) == forgotten


def test_whether_a_checkpoint_is_written(tmp_path):
    answers = {}

    class Watch(ModelCheckpoint):
        def on_train_batch_end(self, trainer, *arguments):
            before = _lightning.has_saved(self, trainer)
            super().on_train_batch_end(trainer, *arguments)
            answers[trainer.global_step] = (before, _lightning.has_saved(self, trainer))

    fit(tmp_path, Watch(tmp_path, every_n_train_steps=3))
    assert answers == {step: (False, step in (3, 6)) for step in range(1, 7)}


def test_batches_are_shared_out_over_all_processes():
    asked, strategy = ModelParallelStrategy(data_parallel_size=3), Sharded()
    assert vars(asked)["_data_parallel_size"] == 3
    _lightning.set_data_parallel_size(strategy, 3)
    assert vars(strategy)["_data_parallel_size"] == 3


def test_a_module_knows_its_trainer(tmp_path):
    assert _lightning.trainer_of(Module()) is None
    trainer, module = fit(tmp_path, max_steps=1)
    assert _lightning.trainer_of(module) is trainer


def test_the_loader_of_a_fit(tmp_path):
    class Watch(L.Callback):
        def setup(self, trainer, pl_module, stage):
            self.loader = _lightning.training_loader(trainer)

    watch = Watch()
    fit(tmp_path, watch)
    assert isinstance(watch.loader, DataLoader) and len(watch.loader) == 6


def test_whether_a_validation_follows(tmp_path):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(_lightning.validation_follows(trainer))

    fit(tmp_path, Watch())
    assert seen == [False, True] * 3
