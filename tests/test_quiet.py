"""What a run prints, and what is left out."""

import re
import warnings

from commands import TINY, command
from lightning.pytorch.utilities import rank_zero_info

from mixer_bijectors.train.quiet import silence

UNWANTED = [
    *("litlogger", "Tip", "available:", "Seed set", "Tensor Cores", "num_workers", "workers"),
    *("was configured so", "Restoring", "Loaded model", "stopped:", "LeafSpec", "hparams"),
    *("log_every_n_steps", "Modules in train mode", "Be aware", "dirpath has changed"),
]


def test_a_run_prints_its_own_lines_alone(tmp_path):
    """In a process of its own, whose standard error Lightning writes its messages to."""
    options = ["--trainer.accelerator", "cpu", "--trainer.max_steps", 4]
    options += ["--trainer.default_root_dir", tmp_path, "--trainer.limit_val_batches", "1.0"]
    done = command("fit", *TINY, *options)
    assert not [word for word in UNWANTED if word in done.stdout + done.stderr]
    assert not done.stderr.strip()
    bars = re.sub("[^\r\n]*\r", "", done.stdout)  # what is left on the screen of each line
    assert "Epoch 0: 100%" in bars and "v_num" not in bars
    assert "training a MixerFlow of " in bars
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert f"mixer-bijectors sample --ckpt_path {last}\n" in bars


def test_what_is_not_named_is_still_told(caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence()
        rank_zero_info("GPU available: False, used: False")
        rank_zero_info("the loss is high")
        warnings.warn("Checkpoint directory runs exists and is not empty", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)
    assert [str(one.message) for one in caught] == ["another warning"]
    assert "the loss is high" in caplog.text and "available" not in caplog.text
