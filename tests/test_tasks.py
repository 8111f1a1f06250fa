"""What a trained model is for, each task once on tiny data, in this process."""

import csv
import re
import shutil

import lightning as L
import numpy as np
import pytest
import torch
from commands import FLOW, QUIET, TINY, bits_of_test, call, task
from PIL import Image
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

import mixer_bijectors as mb
from mixer_bijectors.images import quantize
from mixer_bijectors.train import (
    DataError,
    DensityEstimation,
    Digits,
    FlowTrainer,
    ImageDataModule,
    Images,
    RunError,
    load,
    load_checkpoint,
)
from mixer_bijectors.train.data.batches import TensorSource
from mixer_bijectors.train.tasks.fingerprint import digest_of_model
from mixer_bijectors.train.tasks.output import Output
from mixer_bijectors.train.tasks.prediction import BatchWriter, predict_images

REPLACE = ("--overwrite", "true")
AVERAGES = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    *("--trainer.callbacks.decay", "0.5", "--trainer.callbacks.use_buffers", "false"),
]
CONDITIONAL = [
    *("--model.flow", "mixer_bijectors.TarFlow", f"{FLOW}image_shape", "[1, 8, 8]"),
    *(f"{FLOW}patch_size", "4", f"{FLOW}channels", "16", f"{FLOW}num_blocks", "2"),
    *(f"{FLOW}layers_per_block", "1", f"{FLOW}head_dim", "8", f"{FLOW}num_classes", "10"),
    *("--model.noise", "0.1", "--model.label_dropout", "0.1"),
    *("--data", "mixer_bijectors.train.Digits", "--data.init_args.batch_size", "256"),
]


def fit(folder, *options):
    root = ("--trainer.default_root_dir", folder, "--trainer.max_steps", 6)
    call("fit", *QUIET, *options, *root, "--model.learning_rate", 0.05)
    return folder / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The checkpoint of a MixerFlow with averaged weights."""
    return fit(tmp_path_factory.mktemp("run"), *TINY, *AVERAGES)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """The checkpoint of a class-conditional TarFlow of noisy images."""
    return fit(tmp_path_factory.mktemp("conditional"), *CONDITIONAL)


def make_flow():
    return mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0, hidden_features=8)


@pytest.fixture
def model(run, tmp_path):
    """The model of the run, put together by hand from its exported weights."""
    task("export", run, tmp_path / "model.safetensors")
    flow = make_flow()
    flow.load_state_dict(load_file(tmp_path / "model.safetensors"))
    return flow.eval()


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_weights_that_are_exported_are_the_averaged_ones(run, model):
    saved = load_checkpoint(run)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][f"flow.{key}"])
    assert any(
        not torch.equal(value, saved["current_model_state"][f"flow.{key}"])
        for key, value in model.state_dict().items()
    )


@pytest.mark.parametrize("form", ["run", "all runs", "checkpoint", "exported"])
def test_a_trained_run_loads_in_one_line(form, run, model, tmp_path):
    """From its folder, or from a file alone wherever it lies."""
    path = {"run": run.parents[1], "all runs": run.parents[2]}.get(form)
    if form == "checkpoint":
        path = shutil.copy(run, tmp_path / "alone.ckpt")
    elif form == "exported":
        path = tmp_path / "model.safetensors"
    trained = load(path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[key])
    assert not trained.model.training and trained.classes is None
    assert trained.data["class_path"] == "mixer_bijectors.train.Digits"
    assert trained.datamodule(batch_size=3).batch_size == 3
    assert trained.config["trainer"]["max_steps"] == 6


def test_a_checkpoint_alone_serves_the_command_and_lightning(run, model, tmp_path):
    path = shutil.copy(run, tmp_path / "alone.ckpt")
    assert isinstance(torch.load(path, weights_only=True)["config"], str)
    task("sample", path, tmp_path / "s.npz", "--num_samples", 2)
    assert np.load(tmp_path / "s.npz")["images"].shape == (2, 1, 8, 8)
    for options in ({}, {"flow": make_flow()}):
        module = DensityEstimation.load_from_checkpoint(path, learning_rate=0.5, **options)
        assert module.learning_rate == 0.5
        assert torch.equal(module.flow.q0.loc, model.q0.loc)


def test_a_run_knows_its_classes_by_name(tmp_path):
    for index, image in enumerate(Digits.splits()["test"].images[:20, 0].numpy()):
        folder = tmp_path / "data" / ("train", "val", "test")[index % 3] / "ba"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    data = ("--data", "mixer_bijectors.train.Images", "--data.init_args.path")
    options = (*data, tmp_path / "data", "--data.init_args.image_shape", "[1, 8, 8]")
    splits = ("--data.init_args.val_split", "validation", "--data.init_args.batch_size", 3)
    path = fit(tmp_path / "runs", *TINY[:12], f"{FLOW}num_classes", 2, *options, *splits)
    trained = load(path)
    assert trained.classes == ("a", "b") and trained.label("b") == 1
    task("export", path, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").classes == ("a", "b")
    with pytest.raises(RunError, match="has no class 'c'"):
        trained.label("c")


def test_what_cannot_be_loaded_is_told(run, tmp_path):
    bare = load_checkpoint(run)
    del bare["config"]
    torch.save(bare, tmp_path / "bare.ckpt")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty").mkdir()
    for name, told in {
        "bare.ckpt": "holds no configuration",
        "text.safetensors": "is damaged, or no safetensors file",
        "empty": "there is no checkpoint in",
        "none": "there is no run or checkpoint",
    }.items():
        with pytest.raises(RunError, match=told):
            load(tmp_path / name)


def test_samples_are_seeded(run, tmp_path, capsys):
    def sample(name, *options):
        options = ("--num_samples", 5, "--batch_size", 2, *options)
        task("sample", run, tmp_path / "new" / f"{name}.npz", *options)
        return np.load(tmp_path / "new" / f"{name}.npz")

    first = sample("first", "--seed", 0)
    assert first["images"].shape == (5, 1, 8, 8) and first["images"].dtype == np.uint8
    assert first["log_prob"].shape == (5,) and np.isfinite(first["log_prob"]).all()
    assert len(np.unique(first["log_prob"])) == 5
    with Image.open(tmp_path / "new" / "first.png") as grid:
        assert grid.size == (8 * (3 * 10 + 2), 8 * (2 * 10 + 2)) and grid.mode == "L"
    assert np.array_equal(first["images"], sample("again", "--seed", 0)["images"])
    capsys.readouterr()
    new = sample("new")
    seed = re.search(r"new.npz: 5 images, drawn with --seed (\d+)\n", capsys.readouterr().out)[
        1
    ]
    assert np.array_equal(new["images"], sample("known", "--seed", seed)["images"])
    for other in (new, sample("other", "--seed", 1), sample("newer")):
        assert not np.array_equal(first["images"], other["images"])
    assert len(list((tmp_path / "new").iterdir())) == 12, "nothing else is left"


@pytest.mark.filterwarnings("ignore:.*guide is now an argument of Guidance")
def test_samples_of_classes_with_guidance(conditional, tmp_path):
    spelled = {
        "arguments": ("--guidance.weight", 1.0, "--guidance.guide", "shift"),
        "mapping": ("--guidance", '{"weight": 1.0, "guide": "shift"}'),
        "former": ("--guidance", 1.0, "--options", '{"guide": "shift"}'),
        "other": ("--guidance", 1.0),
    }
    drawn = {}
    for name, guidance in spelled.items():
        options = ("--num_samples", 5, "--classes", "[3, 7]", "--seed", 0, *guidance)
        task("sample", conditional, tmp_path / f"{name}.npz", *options)
        samples = np.load(tmp_path / f"{name}.npz")
        assert samples["labels"].tolist() == [3, 7, 3, 7, 3]
        drawn[name] = samples["log_prob"]
    assert np.array_equal(drawn["arguments"], drawn["mapping"])
    assert np.array_equal(drawn["arguments"], drawn["former"])
    assert not np.array_equal(drawn["arguments"], drawn["other"])


def test_scores_are_those_of_test(run, tmp_path, capsys):
    task("score", run, tmp_path / "scores.csv")
    rows = table(tmp_path / "scores.csv")
    assert [int(row["index"]) for row in rows] == list(range(359))
    mean = np.mean([float(row["bits_per_dim"]) for row in rows])
    assert f"{mean:.4f} bits per dimension, mean of 359 images" in capsys.readouterr().out
    call("test", "--ckpt_path", run, *QUIET)
    assert bits_of_test(capsys.readouterr().out) == pytest.approx(mean, abs=1e-5)
    call("validate", "--ckpt_path", run, *QUIET)
    assert "val/bits_per_dim" in capsys.readouterr().out


def test_scores_of_a_part_are_told_to_be_that(run, tmp_path, capsys):
    few = ("--data.init_args.batch_size", 8, "--trainer.limit_predict_batches", 2)
    task("score", run, tmp_path / "scores.csv", *few)
    printed = capsys.readouterr().out
    assert "mean of 16 of 359 images" in printed
    assert "trainer.limit_predict_batches is 2" in printed and "leaves out images" in printed
    call("test", "--ckpt_path", run, *QUIET, "--trainer.limit_test_batches", 0)
    assert "trainer.limit_test_batches is 0" in capsys.readouterr().out


def test_anomalies_are_told_from_a_second_folder(run, tmp_path, capsys):
    (tmp_path / "others").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    for index, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / "others" / f"{index}.png")
    task("score", run, tmp_path / "scores.csv", "--anomalies", tmp_path / "others")
    told = re.findall(r"AUROC by (\w+) (\S+)", capsys.readouterr().out)
    assert [name for name, _ in told] == ["bits_per_dim", "ratio", "typicality"]
    sets = [row["set"] for row in table(tmp_path / "scores.csv")]
    assert sets == ["test"] * 359 + ["anomalies"] * 6


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_embeddings_are_the_latents_of_the_images(run, model, tmp_path, suffix):
    output = tmp_path / f"embeddings.{suffix}"
    task("embed", run, output, "--split", "val")
    loaded = np.load(output) if suffix == "npz" else load_arrays(output)
    split = Digits.splits()["val"]
    with torch.no_grad():
        want = model.inverse((split.images + 0.5) / 128 - 1).flatten(1)
    assert np.allclose(loaded["embeddings"], want.numpy(), atol=1e-5)
    assert loaded["labels"].tolist() == split.labels.tolist()


def test_a_probe(run, tmp_path, capsys):
    task("probe", run, tmp_path / "probe.npz")
    told = float(re.search(r"linear probe (\S+)", capsys.readouterr().out)[1])
    assert told > 0.9
    assert float(np.load(tmp_path / "probe.npz")["accuracy"]) == pytest.approx(told, abs=1e-4)


def test_reconstructions_hold_the_latents_themselves(run, model, tmp_path):
    task("reconstruct", run, tmp_path / "r.npz", "--num_images", 5)
    result = np.load(tmp_path / "r.npz")
    assert result["latents"].dtype == np.float32
    with torch.no_grad():
        back = model(torch.from_numpy(result["latents"]))
    assert np.array_equal(quantize(back).numpy(), result["reconstructions"])
    levels = result["images"].astype(int) - result["reconstructions"]
    assert np.abs(levels).max() <= 1, "noise may lie at the edge of its level"
    assert result["error"].max() < 1e-4
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.size == (8 * (5 * 10 + 2), 8 * (3 * 10 + 2))


class Cut(Exception):  # noqa: N818
    """What ends a task before its results are put together."""


OTHERS = {
    "another model, whose weights are of the same shapes": (f"{FLOW}patch_size", "[2, 8]"),
    "other data": ("--data.init_args.permute_seed", 3),
    "another seed": ("--seed_everything", 3),
    "another precision": ("--trainer.precision", "64-true"),
}


@pytest.mark.parametrize(
    "kind",
    [next(iter(OTHERS)), *(pytest.param(k, marks=pytest.mark.slow) for k in [*OTHERS][1:])],
)
def test_a_task_goes_on_but_not_with_results_of(kind, run, tmp_path, monkeypatch):
    parts, output = tmp_path / "scores.csv.parts" / "test", tmp_path / "scores.csv"

    def cut(*_):
        raise Cut

    monkeypatch.setattr(BatchWriter, "read", cut)
    for options in (OTHERS[kind], ()):
        with pytest.raises(Cut):
            task("score", run, output, *options)
    monkeypatch.undo()
    first = dict(np.load(parts / "000000000.npz"))
    np.savez(parts / "000000000.npz", **{**first, "bits_per_dim": first["bits_per_dim"] * 0})
    task("score", run, output)
    resumed = [float(row["bits_per_dim"]) for row in table(output)]
    assert not any(resumed[:256]), "what was there is not computed again"
    task("score", run, tmp_path / "whole.csv")
    whole = [float(row["bits_per_dim"]) for row in table(tmp_path / "whole.csv")]
    assert resumed[256:] == whole[256:] and not parts.parent.exists()


MODELS = {
    "spline": lambda patch: mb.MixerFlow(
        (1, 8, 8), patch, 1, univariate=mb.RationalQuadratic()
    ),
    "B-spline": lambda patch: mb.MixerFlow(
        (1, 8, 8), patch, 1, univariate=mb.MonotoneBSpline()
    ),
    "TarFlow": lambda patch: mb.TarFlow(
        (1, 8, 8), patch, channels=8, num_blocks=1, layers_per_block=1, head_dim=8
    ),
    "residual": lambda patch: mb.presets.residual((1, 8, 8), patch, 1, hidden_features=8),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_digest_is_that_of_the_model_alone(kind):
    prints = [digest_of_model(MODELS[kind](patch)) for patch in ((4, 4), (4, 4), (2, 8))]
    assert prints[0] == prints[1] != prints[2]


def test_another_model_is_told(run, tmp_path, capsys):
    task("score", run, tmp_path / "scores.csv", f"{FLOW}patch_size", "[2, 8]")
    told = "model.flow.init_args.patch_size is [2, 8], and was 4 in the run of the checkpoint"
    assert told in capsys.readouterr().out
    task("score", run, tmp_path / "scores.csv", "--model.learning_rate", 1, *REPLACE)
    assert "was" not in capsys.readouterr().out


class Constant(ImageDataModule):
    """Images as they are given, in all splits."""

    def __init__(self, images, labels=None):
        super().__init__(8)
        self.sources = dict.fromkeys(("train", "val", "test"), TensorSource(images, labels))


def make_trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return FlowTrainer(accelerator="cpu", **quiet, **options)


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


IMAGES = torch.rand(8, 1, 8, 8)
NOT_IMAGES = {
    "in [0, 1]": (IMAGES, "must be uint8 .* got torch.float32"),
    "floats up to 255": (255 * IMAGES, "must be uint8 .* got torch.float32"),
    "integers": ((255 * IMAGES).long(), "must be uint8 .* got torch.int64"),
    "without channels": ((255 * IMAGES).byte()[:, 0], r"got torch.uint8 of shape \(8, 8, 8\)"),
    "a dictionary": ({"image": IMAGES}, "or a pair of images and labels, got a dict"),
}


class Given(L.LightningDataModule):
    """The same batch in all splits."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def train_dataloader(self):
        return torch.utils.data.DataLoader([self.batch], batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_batches_of_anything_but_8_bit_images_are_refused(kind, tmp_path):
    batch, told = NOT_IMAGES[kind]
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    for run in (trainer.fit, trainer.validate, trainer.test):
        with pytest.raises(DataError, match=told):
            run(module, datamodule=Given(batch))


NOT_LABELS = {
    "floats": (torch.rand(8), r"got torch.float32 of shape \(8,\)"),
    "one-hot": (torch.eye(8).long(), r"got torch.int64 of shape \(8, 8\)"),
    "words": (["cat"] * 8, "got list"),
}


@pytest.mark.parametrize("kind", NOT_LABELS)
def test_labels_that_are_no_integers_are_refused_where_they_are_read(kind, tmp_path):
    labels, told = NOT_LABELS[kind]
    data = Given([(255 * IMAGES).byte(), labels])
    flow = mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0, hidden_features=8, num_classes=3)
    for reader in (flow, mb.HybridClassifier(make_flow(), 3, weight=1.0)):
        trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
        with pytest.raises(
            DataError, match=rf"labels must be integers of shape \(8,\), {told}"
        ):
            trainer.fit(DensityEstimation(reader), datamodule=data)
    make_trainer(max_steps=1, default_root_dir=tmp_path).fit(
        DensityEstimation(make_flow()), datamodule=data
    )


def test_tasks_refuse_images_that_are_not_8_bit(run, tmp_path):
    module = DensityEstimation(make_flow())
    options = {"ckpt_path": str(run), "output": str(tmp_path / "e.npz")}
    with pytest.raises(DataError, match="images must be uint8"):
        make_trainer().embed(module, Constant(IMAGES), **options)


def test_images_without_a_bright_pixel_are_warned_of(tmp_path):
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="no pixel of the first batch is above 1"):
        trainer.fit(module, datamodule=Given((IMAGES > 0.5).byte()))


def test_a_model_that_was_never_trained_is_warned_of(tmp_path):
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    images = Given((255 * IMAGES).byte())
    told = "never trained: 2 of its 2 layers of activation normalisation have seen no batch"
    for run in (trainer.test, trainer.validate):
        with pytest.warns(UserWarning, match=told):
            run(module, datamodule=images)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "new.ckpt")
    options = {"ckpt_path": str(tmp_path / "new.ckpt"), "output": str(tmp_path / "s.npz")}
    with pytest.warns(UserWarning, match=told):
        trainer.sample(module, num_samples=1, **options)


def test_a_trained_model_is_not_warned_of(tmp_path, recwarn):
    module = DensityEstimation(make_flow())
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    images = Given((255 * IMAGES).byte())
    trainer.fit(module, datamodule=images)
    trainer.test(module, datamodule=images)
    assert not [w for w in recwarn if "trained" in str(w.message)]


def test_images_without_labels_are_told_to_be_of_the_null_class(tmp_path):
    flow = mb.MixerFlow((1, 8, 8), 4, 1, shift_every=0, hidden_features=8, num_classes=3)
    trainer = make_trainer(default_root_dir=tmp_path)
    images = Given((255 * IMAGES).byte())
    with pytest.warns(UserWarning, match="have no labels and get -1, the null class"):
        trainer.test(DensityEstimation(flow), datamodule=images)


def test_values_that_are_not_finite_are_counted(run, tmp_path, capsys):
    checkpoint = load_checkpoint(run)
    checkpoint["state_dict"]["flow.q0.loc"][:] = torch.nan
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    module = DensityEstimation(make_flow())
    options = {"ckpt_path": str(tmp_path / "bad.ckpt"), "output": str(tmp_path / "s.npz")}
    make_trainer().sample(module, num_samples=3, **options)
    assert "log_prob: 3 of 3 images have values that are not finite" in capsys.readouterr().out


def test_a_probe_needs_a_label_for_each_image(run, tmp_path):
    module = DensityEstimation(make_flow())
    data = Constant((255 * IMAGES).byte(), torch.tensor([0, 0, 0, 1, 1, 1, -1, -1]))
    options = {"ckpt_path": str(run), "output": str(tmp_path / "p.npz")}
    with pytest.raises(RunError, match="2 of the train images have none"):
        make_trainer().probe(module, data, **options)


class Listed(ImageDataModule):
    """Grey images of a folder, of a user's own reading."""

    def __init__(self, folder):
        super().__init__(2)
        self.folder = folder

    def setup(self, stage):
        files = sorted(self.folder.glob("*.png"))
        pixels = [torch.from_numpy(np.array(Image.open(path))) for path in files]
        source = _Named(torch.stack(pixels)[:, None], files)
        self.sources = {"test": source}


class _Named(TensorSource):
    """Images whose pixels are asked for by their file."""

    def __init__(self, images, files):
        super().__init__(images)
        self.files = files
        self.read = lambda index, rng: (images[index], None)
        del self.images  # so that files alone tell them from others

    def __len__(self):
        return len(self.files)

    def name(self, index):
        return self.files[index].name


def write_images(folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def leave_parts(folder, output, monkeypatch, run, make):
    """Score images, with parts that stay as if the process had been killed at the end."""
    with monkeypatch.context() as patch:
        patch.setattr(Output, "__exit__", lambda *_: None)
        options = {"ckpt_path": str(run), "output": str(output), "overwrite": True}
        make_trainer().score(DensityEstimation(make_flow()), make(folder), **options)
    return [row["bits_per_dim"] for row in table(output)]


def read_folder(folder):
    return Images(folder, (1, 8, 8), batch_size=2, test_split="all")


def read_relative(folder):
    return Images("./imgs", (1, 8, 8), batch_size=2, test_split="all")


@pytest.mark.parametrize("change", ["other files", "another folder", "another working folder"])
@pytest.mark.parametrize("make", [read_folder, Listed])
def test_parts_of_other_images_are_not_used(run, tmp_path, monkeypatch, change, make):
    first, second = tmp_path / "1" / "imgs", tmp_path / "2" / "imgs"
    if change == "other files":
        second = first
    elif change == "another working folder" and make is read_folder:
        make = read_relative
    wanted = leave_parts(
        write_images(second, 1),
        tmp_path / "want.csv",
        monkeypatch,
        run,
        read_folder if make is read_relative else make,
    )
    write_images(first, 0)
    monkeypatch.chdir(first.parent)
    left = leave_parts(first, tmp_path / "s.csv", monkeypatch, run, make)
    assert (tmp_path / "s.csv.parts").is_dir() and left != wanted
    write_images(second, 1)
    monkeypatch.chdir(second.parent)
    assert leave_parts(second, tmp_path / "s.csv", monkeypatch, run, make) == wanted


def test_parts_of_the_same_images_are_used(run, tmp_path, monkeypatch):
    folder, output = write_images(tmp_path / "imgs", 0), tmp_path / "s.csv"
    leave_parts(folder, output, monkeypatch, run, read_folder)
    part = tmp_path / "s.csv.parts" / "test" / "000000001.npz"
    arrays = dict(np.load(part))
    np.savez(part, **arrays | {"bits_per_dim": arrays["bits_per_dim"] * 0 - 1})
    bits = leave_parts(folder, output, monkeypatch, run, read_folder)
    assert [float(b) == -1 for b in bits] == [False, False, True, True, False]


def test_anomalies_are_looked_for_before_anything_is_computed(run, tmp_path):
    told = task("score", run, tmp_path / "s.csv", "--anomalies", "./mistyped", fails=True)
    assert "there is no folder or file ./mistyped" in told
    assert not list(tmp_path.iterdir())
    folder = write_images(tmp_path / "imgs", 0)
    (folder / "3.png").write_text("no image")
    options = ("--data", "mixer_bijectors.train.Images", "--data.init_args.path", folder)
    options += (
        "--data.init_args.image_shape",
        "[1, 8, 8]",
        "--data.init_args.test_split",
        "all",
    )
    told = task(
        "score", run, tmp_path / "s.csv", *options, "--data.init_args.batch_size", 1, fails=True
    )
    assert "3.png" in told and not (tmp_path / "s.csv.parts").exists()


def write_classes(folder, *names):
    """Images of classes of their own, in both splits."""
    for split in ("train", "test"):
        for name in names:
            write_images(folder / split / name, int(name[1:]))
    return folder


CLASSES = [
    *(CONDITIONAL[:-4]),
    *("--data", "mixer_bijectors.train.Images", "--data.init_args.batch_size", "2"),
    *("--data.init_args.image_shape", "[1, 8, 8]"),
]


def test_classes_are_those_of_the_fit_by_their_names(tmp_path):
    path = "--data.init_args.path"
    both = write_classes(tmp_path / "both", "n01", "n02")
    only = write_classes(tmp_path / "only", "n02")
    three = write_classes(tmp_path / "three", "n00", "n01", "n02")
    checkpoint = fit(tmp_path / "run", *CLASSES, f"{FLOW}num_classes", "2", path, both)
    for name, folder in (("both", both), ("only", only)):
        task("embed", checkpoint, tmp_path / f"{name}.npz", path, folder)
    want, found = (np.load(tmp_path / f"{name}.npz") for name in ("both", "only"))
    assert found["labels"].tolist() == [1] * 5
    of = want["labels"] == 1
    assert np.allclose(found["embeddings"], want["embeddings"][of], atol=1e-5)
    told = "not trained on the class n00, but on n01, n02"
    assert told in task("score", checkpoint, tmp_path / "s.csv", path, three, fails=True)
    assert told in call("test", "--ckpt_path", checkpoint, *QUIET, path, three, fails=True)
    again = ("fit", *QUIET, *CLASSES, f"{FLOW}num_classes", "2", path, three)
    root = ("--trainer.default_root_dir", tmp_path / "more", "--trainer.max_steps", 8)
    assert told in call(*again, *root, "--ckpt_path", checkpoint, fails=True)


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


def test_outputs_lie_in_the_folder_of_the_run_and_are_not_overwritten(run, tmp_path, capsys):
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    shutil.copy(run, path)
    few = ("sample", "--ckpt_path", path, *QUIET, "--num_samples", 2)
    call(*few)
    written = path.parents[1] / "results" / "samples.npz"
    first = written.read_bytes()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")]
    assert lines[0].startswith(f"wrote {written}: 2 images, drawn with --seed ")
    assert lines[1:] == [f"wrote {written.with_suffix('.png')}: 2 images"]
    told = call(*few, fails=True)
    assert f"{written} is there already; pass --overwrite true" in told
    assert "or another name with --output" in told and written.read_bytes() == first
    call(*few, *REPLACE)
    assert written.read_bytes() != first
    written.unlink()
    assert "samples.png is there already" in call(*few, fails=True)


def test_the_home_folder_is_found_in_output(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    call("export", "--ckpt_path", run, *QUIET, "--output", "~/model.safetensors")
    assert (tmp_path / "model.safetensors").is_file()


def test_a_task_that_fails_leaves_nothing(run, tmp_path):
    bad = write_images(tmp_path / "bad", 0)
    (bad / "3.png").write_text("no image")
    output = tmp_path / "new" / "s.csv"
    assert "3.png" in task("score", run, output, "--anomalies", bad, fails=True)
    assert not output.parent.exists()
    module = DensityEstimation(make_flow())
    labels = torch.tensor([0, 0, 0, 1, 1, 1, -1, -1])
    for known in (None, labels, torch.zeros(8).long()):
        data = Constant((255 * IMAGES).byte(), known)
        with pytest.raises((RunError, ValueError), match="needs"):
            make_trainer().probe(module, data, str(run), str(tmp_path / "new" / "p.npz"))
    assert not output.parent.exists()


def test_a_probe_that_was_cut_off_goes_on(run, tmp_path, monkeypatch):
    def cut(*_):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("mixer_bijectors.train.tasks.probe.linear_probe", cut)
        with pytest.raises(Cut):
            task("probe", run, tmp_path / "p.npz")
    parts = tmp_path / "p.npz.parts"
    assert sorted(path.name for path in parts.iterdir()) == ["test", "train"]
    with monkeypatch.context() as patch:
        patch.setattr("mixer_bijectors.train.tasks.probe.embeddings", None)
        patch.setattr("mixer_bijectors.train.tasks.prediction.as_text", text_of_embeddings)
        task("probe", run, tmp_path / "p.npz")
    assert not parts.exists()


def text_of_embeddings(_):
    """What tells the computation of a probe from others."""
    return "<function embeddings>"


def test_a_sample_that_was_cut_off_goes_on_with_its_seed(run, tmp_path, monkeypatch):
    few = ("--num_samples", 3, "--batch_size", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Output, "write_npz", lambda *_: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            task("sample", run, tmp_path / "s.npz", *few)
    first = np.load(tmp_path / "s.npz.parts" / "test" / "000000000.npz")["log_prob"]
    task("sample", run, tmp_path / "s.npz", *few)
    assert np.array_equal(np.load(tmp_path / "s.npz")["log_prob"][:2], first)


CHOSEN = {"3": [3], "[3, 7]": [3, 7], "two": [2], "[two, 7]": [2, 7], "-1": [-1]}
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def named(conditional, tmp_path_factory):
    """A checkpoint of classes with names."""
    checkpoint = load_checkpoint(conditional) | {"class_names": NAMES}
    path = tmp_path_factory.mktemp("named") / "named.ckpt"
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("given", CHOSEN)
def test_classes_are_given_by_label_or_by_name(given, named, tmp_path, capsys):
    task("sample", named, tmp_path / "s.npz", "--num_samples", 4, f"--classes={given}")
    labels = np.load(tmp_path / "s.npz")["labels"].tolist()
    assert labels == CHOSEN[given] * (4 // len(CHOSEN[given]))
    shown = ", ".join(f"{k} {NAMES[k]}" if k >= 0 else "-1" for k in CHOSEN[given])
    assert f"s.png: columns are the classes {shown}, in turn" in capsys.readouterr().out


def test_columns_of_a_grid_are_classes(named, tmp_path):
    task("sample", named, tmp_path / "s.npz", "--num_samples", 25)
    with Image.open(tmp_path / "s.png") as grid:
        assert grid.size == (8 * (10 * 10 + 2), 8 * (3 * 10 + 2)) and grid.mode == "L"


@pytest.mark.parametrize(
    ("options", "told"),
    {
        ("--classes", "cat"): "has no class cat, but 10 from 0, named zero, one, two and 7 oth",
        ("--classes", "10"): "has no class 10, but 10 from 0",
        (
            "--options",
            '{"nope": 1}',
        ): "has no nope; leave it out, its options of sampling are",
        ("--seed", "-1"): "sample: seed must not be negative, got -1",
        ("--options", '{"trace": true}'): "the model has no trace",
    }.items(),
)
def test_what_a_model_has_not_is_told(options, told, named, tmp_path):
    assert told in task("sample", named, tmp_path / "s.npz", *options, fails=True)
    assert not list(tmp_path.iterdir())
