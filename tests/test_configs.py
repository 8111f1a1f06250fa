"""The configurations of the package."""

import csv
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from commands import call

import mixer_bijectors as mb

CONFIG = files("mixer_bijectors.train") / "configs" / "photos.yaml"


SMALL = [
    *("--model.flow.init_args.num_layers", 1),
    *("--model.flow.init_args.hidden_features", 8),
    *("--data.init_args.batches_per_epoch", 3),
    *("--trainer.enable_progress_bar", "false"),
]


@pytest.mark.slow
def test_fit_writes_everything_and_resumes(tmp_path, capsys):
    options = ["--config", CONFIG, "--trainer.default_root_dir", tmp_path, *SMALL]
    call("fit", *options, "--trainer.max_steps", 6)
    assert "of best.ckpt" in capsys.readouterr().out
    folder = tmp_path / "version_0"
    for name in (
        "samples.png",
        "reconstructions.png",
        "curve.png",
        "metrics.csv",
        "config.yaml",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert len(list((folder / "samples").glob("step-*.png"))) == 2
    assert list(folder.glob("events.out.tfevents.*"))
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [
        float(r["val/reconstruction_error"]) for r in rows if r["val/reconstruction_error"]
    ]
    assert len(errors) == 2 and max(errors) < 1e-3

    last = folder / "checkpoints" / "last.ckpt"
    for path in (last, folder / "checkpoints" / "best.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        flow = yaml.safe_load((folder / "config.yaml").read_text())["model"]["flow"]
        model = mb.MixerFlow(
            **{k: v for k, v in flow["init_args"].items() if k != "univariate"}
        )
        model.load_state_dict({k.removeprefix("flow."): v for k, v in state.items()})

    call("fit", *options, "--trainer.max_steps", 9, "--ckpt_path", last)
    assert torch.load(last, weights_only=True)["global_step"] == 9, "in the same folder"
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len([r for r in rows if r["val/bits_per_dim"]]) == 3, "the log goes on"


LARGE = {
    "imagenet64": (1024, 466_286_784),
    "imagenet64_likelihood": (1024, 460_142_784),
    "imagenet128": (1024, 823_927_552),
    "afhq256": (1024, 463_481_856),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_settings_of_the_paper_build(name):
    """On the meta device, where half a billion parameters take no memory."""
    config = yaml.safe_load((CONFIG.parent / f"tarflow_{name}.yaml").read_text())
    options = config["model"]["flow"]["init_args"]
    with torch.device("meta"):
        model = mb.TarFlow(**options)
        x = torch.zeros(2, *options["image_shape"])
        labels = torch.zeros(2, dtype=torch.long) if options["num_classes"] else None
        log_prob = model.log_prob(x, labels)
    assert log_prob.shape == (2,)
    patches, parameters = LARGE[name]
    assert model.latent_shape[0] == patches
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert f"{parameters:,} parameters" in (CONFIG.parent / f"tarflow_{name}.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "photos_tarflow"])
def test_the_small_presets_of_tarflow_fit(name, tmp_path, capsys):
    options = ["--config", CONFIG.parent / f"{name}.yaml", "--trainer.max_steps", 2]
    options += [
        "--trainer.default_root_dir",
        tmp_path,
        "--trainer.enable_progress_bar",
        "false",
    ]
    options += ["--trainer.limit_val_batches", 1, "--trainer.limit_test_batches", 1]
    options += ["--trainer.check_val_every_n_epoch", 1, "--trainer.limit_train_batches", 2]
    call("fit", *options)
    error = float(re.search(r"reconstruction error (\S+),", capsys.readouterr().out)[1])
    assert error < 1e-3
    assert (tmp_path / "version_0" / "samples.png").stat().st_size > 0


def test_the_readme_s_run_command_names_a_config_that_exists():
    root = Path(__file__).parents[1]
    command_line = re.search(
        r"mixer-bijectors fit --config (\S+)", (root / "README.md").read_text()
    )
    assert command_line[1] == CONFIG.stem
