"""The photographs and the training command."""

import csv
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from random import Random

import lightning as L
import normflows as nf
import pytest
import torch
import yaml
from commands import call
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import mixer_bijectors as mb
from mixer_bijectors.train import DensityEstimation, Digits, MNIST5k, Pictures
from mixer_bijectors.train.data import bundled as photographs

CONFIG = files("mixer_bijectors.train") / "configs" / "photos.yaml"


def striped(width, height=50, size=8):
    """A photo whose pixels say which column of the grid they lie in."""
    columns = torch.arange(width) // size
    return columns.to(torch.uint8).expand(3, height, width).contiguous()


@pytest.fixture(scope="module")
def photos():
    return photographs.load_photos()


def test_ten_photographs_are_in_the_wheels(photos):
    assert len(photos) == 10
    assert all(photo.dtype == torch.uint8 and photo.shape[0] == 3 for photo in photos)
    assert all(photo.float().std() > 10 for photo in photos)


def draw(crops):
    """Crops as training draws them."""
    return [crops.read(index, Random(index))[0] for index in range(len(crops))]


def test_training_crops_never_touch_another_split():
    size = 8
    widths = [40, 95, 160, 163]
    stripes = [striped(width) for width in widths]
    crops = photographs.Crops(stripes, size, length=3000)
    touched = torch.cat([crop.unique() for crop in draw(crops)]).unique()
    splits = {photographs.column_split(int(column)) for column in touched}
    assert splits == {"train"}
    # and they reach every column of training that is whole
    assert {c for c in range(163 // size) if photographs.column_split(c) == "train"} <= set(
        touched.tolist()
    )


@pytest.mark.parametrize("size", [8, 32, 64])
def test_positions_are_all_that_keep_clear(size):
    for width in (size, 5 * size, 451, 1000):
        got = set(photographs.crop_positions(width, size))
        for left in range(width - size + 1):
            columns = {x // size for x in range(left, left + size)}
            clear = all(photographs.column_split(column) == "train" for column in columns)
            assert (left in got) == clear


def test_splits_are_disjoint_and_whole():
    stripe = striped(160)
    for split in ("val", "test"):
        patches = photographs.grid_patches([stripe], 8, split)
        columns = patches.flatten(1).unique(dim=0)
        assert (columns == columns[:, :1]).all(), "a patch lies in one column"
        expected = [c for c in range(20) if photographs.column_split(c) == split]
        assert sorted(columns[:, 0].tolist()) == expected
        assert len(patches) == len(expected) * (50 // 8)
    assert [c for c in range(20) if photographs.column_split(c) == "test"] == [4, 9, 14, 19]


def test_crops_come_from_everywhere_and_are_mirrored():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 40, 64).contiguous()
    crops = photographs.Crops([ramp, ramp[:, :20]], 8, length=500)
    lefts = {int(crop.min()) for crop in draw(crops)}
    mirrored = [bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in draw(crops)]
    assert lefts == set(photographs.crop_positions(64, 8))
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6


def test_crops_too_large_for_every_photo():
    with pytest.raises(ValueError, match="no photo is large enough for crops of 99 x 99"):
        photographs.Crops([striped(64)], 99, length=1)


def test_seeded_crops_repeat(photos):
    crops = photographs.Crops(photos, 32, length=5)
    assert torch.equal(torch.stack(draw(crops)), torch.stack(draw(crops)))


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


def test_digits_are_split_into_disjoint_parts():
    parts = [Digits.splits()[split] for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [1258, 180, 359]
    images = torch.cat([part.images for part in parts])
    labels = torch.cat([part.labels for part in parts])
    assert images.dtype == torch.uint8 and images.max() == 255
    assert torch.bincount(labels).tolist() == torch.bincount(_digits()[1]).tolist()
    whole = {tuple(image.flatten().tolist()) for image in images}
    assert len(whole) == len({tuple(image.flatten().tolist()) for image in _digits()[0]})
    assert torch.equal(Digits.splits()["test"].images, parts[2].images)


def test_mnist5k_is_split_into_disjoint_parts():
    parts = [MNIST5k.splits()[split] for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3500, 500, 1000]
    images = torch.cat([part.images for part in parts])
    assert images.shape == (5000, 1, 28, 28) and images.max() == 255
    assert torch.bincount(torch.cat([part.labels for part in parts])).tolist() == [500] * 10


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.as_tensor(digits.images), torch.as_tensor(digits.target)


def test_noise_and_label_dropout_reach_the_flow():
    flow = mb.TarFlow(
        (1, 8, 8), 4, channels=8, num_blocks=1, layers_per_block=1, head_dim=8, num_classes=3
    )
    module = DensityEstimation(flow, noise=0.3, label_dropout=0.5)
    seen = []
    flow.log_prob = lambda x, labels: seen.append((x, labels)) or x.sum((1, 2, 3))
    module.log = lambda *_, **__: None
    images = torch.full((400, 1, 8, 8), 128, dtype=torch.uint8)
    labels = torch.arange(400) % 3
    module.training_step((images, labels), 0)
    x, given = seen[0]
    dropped = given == -1
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(given[~dropped], labels[~dropped])
    assert abs(x.std().item() - 0.3) < 0.01 and abs(x.mean().item()) < 0.02
    assert torch.equal(module.prepare((images, labels))[1][0], labels)


@pytest.mark.parametrize("options", [{"noise": -0.1}, {"label_dropout": 1.5}])
def test_the_module_refuses(options):
    with pytest.raises(ValueError, match=f"DensityEstimation: {next(iter(options))} must"):
        DensityEstimation(mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0), **options)


def test_the_core_imports_no_extra():
    code = (
        "import sys, mixer_bijectors; "
        "print({'lightning', 'PIL', 'skimage', 'sklearn', 'jsonargparse', 'torch._dynamo'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # nflows imports matplotlib, which imports Pillow, whatever we do
    assert eval(done.stdout) <= {"PIL"}


def test_without_lightning_the_message_names_the_extra():
    code = "import sys; sys.modules['lightning'] = None; import mixer_bijectors.train"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "mixer_bijectors[train]"' in done.stderr.splitlines()[-1]


def test_the_readme_s_run_command_names_a_config_that_exists():
    root = Path(__file__).parents[1]
    command_line = re.search(
        r"mixer-bijectors fit --config (\S+)", (root / "README.md").read_text()
    )
    assert command_line[1] == CONFIG.stem


class LabelledNoise(L.LightningDataModule):
    """Eight images with labels, for a class-conditional model."""

    def train_dataloader(self):
        x = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
        return DataLoader(TensorDataset(x, torch.arange(8) % 3), batch_size=4)

    val_dataloader = test_dataloader = train_dataloader


KINDS = ["conditional", "float64", "bfloat16", "normflows", "residual", "ffjord"]
PRECISIONS = {"float64": "64-true", "bfloat16": "bf16-mixed"}


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_module_trains_other_models(tmp_path, kind):
    if kind in ("normflows", "compiled"):
        patchify = mb.Patchify((1, 8, 8), 4)
        base = nf.distributions.DiagGaussian((4, 16))
        flow = nf.NormalizingFlow(base, [mb.ChannelMixing(mb.LULinear(16)), patchify])
    elif kind in ("residual", "ffjord"):
        flow = getattr(mb.presets, kind)((1, 8, 8), 2, 1, hidden_features=8)
    else:
        classes = 3 if kind == "conditional" else 0
        flow = mb.MixerFlow((1, 8, 8), 2, num_layers=1, hidden_features=8, num_classes=classes)
    data = LabelledNoise()
    if kind != "conditional":
        images = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
        data.train_dataloader = data.val_dataloader = lambda: DataLoader(images, batch_size=4)
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        precision=PRECISIONS.get(kind, "32-true"),
        default_root_dir=tmp_path,
        logger=CSVLogger(tmp_path),
        callbacks=[Pictures(num_samples=4)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = DensityEstimation(flow, warmup_steps=0, compile=kind == "compiled")
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 3
    assert trainer.callback_metrics["train/bits_per_dim"].isfinite()
    assert (Path(trainer.log_dir) / "reconstructions.png").exists()
