"""The command, from end to end, in processes of its own."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import kill_resume
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file

from mixer_bijectors.train import Digits, Photos, load_checkpoint

pytestmark = pytest.mark.slow

CONFIGS = files("mixer_bijectors.train") / "configs"
SMALL = [
    *("--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false"),
    *("--model.flow.init_args.num_layers", "1"),
    *("--model.flow.init_args.hidden_features", "8"),
    *("--data.init_args.batches_per_epoch", "12"),
    *("--data.init_args.batch_size", "8"),
]


def start(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "mixer_bijectors.train", *map(str, arguments)], environment


def command(*arguments, fails=False):
    line, environment = start(*arguments)
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert (done.returncode != 0) == fails, done.stderr
    return done


def fit(folder, steps, *options):
    config = CONFIGS / "photos.yaml"
    root = ("--trainer.default_root_dir", folder)
    return command(
        "fit", "--config", config, *root, *SMALL, "--trainer.max_steps", steps, *options
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(folder, 24)
    return folder / "version_0"


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    options = ["--trainer.default_root_dir", folder, "--trainer.max_steps", 4]
    options += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    command("fit", "--config", CONFIGS / "digits.yaml", *options)
    return folder / "version_0"


def task(name, run, output, *options, fails=False):
    return command(
        *(name, "--ckpt_path", run / "checkpoints" / "last.ckpt", "--output", output),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *options,
        fails=fails,
    )


def test_samples_are_seeded_and_do_not_depend_on_processes(run, tmp_path):
    def sample(name, *options):
        options = ("--num_samples", 11, "--batch_size", 3, "--temperature", 0.7, *options)
        task("sample", run, tmp_path / f"{name}.npz", *options)
        return np.load(tmp_path / f"{name}.npz")

    first = sample("first")
    assert first["images"].shape == (11, 3, 32, 32) and first["images"].dtype == np.uint8
    assert first["log_prob"].shape == (11,)
    with Image.open(tmp_path / "first.png") as grid:
        assert grid.size[0] == 2 * (4 * 34 + 2)
    again = sample("two", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    assert np.array_equal(first["images"], again["images"])
    assert not np.array_equal(
        first["images"], sample("other", "--seed_everything", 1)["images"]
    )
    sharded = sample("three", "--trainer.devices", 2, "--trainer.strategy", "sharded")
    assert np.array_equal(first["images"], sharded["images"])
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz"] * 4 + [".png"] * 4


def test_samples_of_classes_with_guidance(conditional, tmp_path):
    options = ("--num_samples", 5, "--classes", "[3, 7]", "--guidance", 1.0)
    options += ("--options", '{"guide": "shift"}')
    task("sample", conditional, tmp_path / "s.npz", *options)
    samples = np.load(tmp_path / "s.npz")
    assert samples["labels"].tolist() == [3, 7, 3, 7, 3]
    assert samples["images"].shape == (5, 1, 8, 8)


def test_scores_are_those_of_test_and_go_on_after_a_crash(run, tmp_path):
    done = task("score", run, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = Photos(32, 8)
    data.setup("test")
    assert len(rows) == len(data.sources["test"])
    assert [int(row["index"]) for row in rows] == list(range(len(rows)))
    bits = [float(row["bits_per_dim"]) for row in rows]
    assert f"{np.mean(bits):.4f} bits per dimension" in done.stdout
    tested = command(
        *("test", "--ckpt_path", run / "checkpoints" / "last.ckpt"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
    )
    assert float(re.search(r"bits_per_dim\s+(\S+)", tested.stdout)[1]) == pytest.approx(
        np.mean(bits), abs=1e-5
    )

    # Killed as soon as there are some results, it goes on with the others.
    output = tmp_path / "killed.csv"
    line, environment = start(
        *("score", "--ckpt_path", run / "checkpoints" / "last.ckpt", "--output", output),
        *("--trainer.accelerator", "cpu", "--data.init_args.batch_size", 1),
    )
    process = subprocess.Popen(line, env=environment, start_new_session=True)
    parts = tmp_path / "killed.csv.parts"
    while process.poll() is None and len(list(parts.glob("*.npz"))) < 5:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in sorted(parts.glob("[0-9]*.npz"))[:5]}
    assert kept and not output.exists()
    marked = next(iter(kept))
    arrays = dict(np.load(marked))
    np.savez(marked, **{**arrays, "bits_per_dim": arrays["bits_per_dim"] * 0 - 1.0})
    task("score", run, output, "--data.init_args.batch_size", 1)
    with output.open(newline="") as file:
        resumed = [float(row["bits_per_dim"]) for row in csv.DictReader(file)]
    assert resumed[0] == -1, "what was there is not computed again"
    assert resumed[1:] == pytest.approx(bits[1:], abs=1e-4)
    assert not parts.exists()


def test_anomalies_are_told_from_a_second_folder(run, tmp_path):
    folder = tmp_path / "others"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 50, 3), dtype=np.uint8)
    for index, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"{index}.png")
    done = task("score", run, tmp_path / "scores.parquet", "--anomalies", folder)
    auroc = re.findall(r"AUROC by (\w+) (\S+)", done.stdout)
    assert [name for name, _ in auroc] == ["bits_per_dim", "ratio", "typicality"]
    assert float(auroc[0][1]) > 0.99
    from datasets import Dataset

    rows = Dataset.from_parquet(str(tmp_path / "scores.parquet"), cache_dir=str(tmp_path / "c"))
    outside = rows.filter(lambda row: row["set"] == "anomalies")
    assert len(outside) == 12 and outside[0]["image"].endswith("0.png")


def test_a_conditional_model_tells_anomalies_without_labels(conditional, tmp_path):
    images = Digits.splits()["test"].images[:20, 0].numpy()
    folders = [tmp_path / "flat", tmp_path / "classes"]
    for index, image in enumerate(images):
        for folder in (folders[0], folders[1] / "ab"[index % 2]):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:02d}.png")
    bits = []
    for folder in folders:
        output = tmp_path / f"{folder.name}.csv"
        task("score", conditional, output, "--anomalies", folder)
        with output.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["set"] == "anomalies"]
        rows.sort(key=lambda row: Path(row["image"]).name)
        bits.append([float(row["bits_per_dim"]) for row in rows])
    # The noise of an image depends on its place in the folder.
    assert np.allclose(bits[0], bits[1], atol=0.5) and len(bits[0]) == 20


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_embeddings(conditional, tmp_path, suffix):
    output = tmp_path / f"embeddings.{suffix}"
    task("embed", conditional, output, "--split", "val")
    loaded = np.load(output) if suffix == "npz" else load_file(output)
    want = Digits.splits()["val"]
    assert loaded["embeddings"].shape == (len(want), 64)
    assert loaded["labels"].tolist() == want.labels.tolist()
    assert np.isfinite(loaded["embeddings"]).all()


def test_reconstructions(run, tmp_path):
    done = task("reconstruct", run, tmp_path / "r.npz", "--num_images", 5)
    assert float(re.search(r"largest difference (\S+)", done.stdout)[1]) < 1e-3
    result = np.load(tmp_path / "r.npz")
    levels = result["images"].astype(int) - result["reconstructions"]
    assert np.abs(levels).max() <= 1, "noise may lie at the edge of its level"
    assert result["images"].shape == (5, 3, 32, 32) and (tmp_path / "r.png").exists()


def test_a_classifier_and_a_probe(tmp_path):
    options = ["--trainer.default_root_dir", tmp_path, "--trainer.max_steps", 55]
    options += ["--trainer.check_val_every_n_epoch", 1]
    options += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    command("fit", "--config", CONFIGS / "mnist5k.yaml", *options)
    with (tmp_path / "version_0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {key: value for row in rows for key, value in row.items() if value}
    assert float(last["test/accuracy"]) > 0.6
    assert 0 <= float(last["val/calibration_error"]) < 0.5
    assert float(last["test/bits_per_dim"]) < 6
    done = task("probe", tmp_path / "version_0", tmp_path / "probe.npz")
    assert float(re.search(r"linear probe (\S+)", done.stdout)[1]) > 0.7


REFUSED = {
    "a patch that does not fit": (
        ["fit", "--config", "CONFIG", "--model.flow.init_args.patch_size", "5"],
        "not divisible by patch height 5",
    ),
    "no images in a batch": (
        ["fit", "--config", "CONFIG", "--data.init_args.batch_size", "0"],
        "batch_size must be at least 1",
    ),
    "images of another shape": (
        [
            *("fit", "--config", "CONFIG", "--data.init_args.size", "16"),
            *("--trainer.default_root_dir", "ROOT"),
        ],
        "expected shape (batch, 3, 32, 32)",
    ),
    "no such split": (
        ["score", "--ckpt_path", "LAST", "--split", "exam", "--output", "OUTPUT"],
        "no split 'exam'",
    ),
    "a test of random weights": (["test", "--config", "CONFIG"], "which weights"),
    "no checkpoint": (["sample", "--config", "CONFIG"], "which weights"),
    "a missing one": (
        ["score", "--config", "CONFIG", "--ckpt_path", "none.ckpt"],
        "there is no checkpoint none.ckpt",
    ),
    "another model": (
        ["embed", "--ckpt_path", "LAST", "--model.flow.init_args.hidden_features", "4"],
        "do not fit the model of the config",
    ),
    "a wrong suffix": (
        ["score", "--ckpt_path", "LAST", "--output", "scores.txt"],
        "output must be a name with .csv or .parquet",
    ),
    "classes of no classes": (["sample", "--ckpt_path", "LAST", "--classes", "[1]"], "classes"),
    "guidance of a MixerFlow": (
        ["sample", "--ckpt_path", "LAST", "--guidance", "1"],
        "MixerFlow has no guidance",
    ),
    "an output that cannot be": (
        ["sample", "--ckpt_path", "LAST", "--output", "/proc/s.npz"],
        "/proc cannot be written",
    ),
    "a run that cannot be": (
        ["fit", "--config", "CONFIG", "--trainer.default_root_dir", "/proc/runs"],
        "/proc/runs cannot be written",
    ),
    "no data": (
        [
            *("fit", "--config", "CONFIG", "--data", "mixer_bijectors.train.Images"),
            *("--data.init_args.path", "./none", "--trainer.default_root_dir", "ROOT"),
        ],
        "there is no folder or file ./none",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_errors_are_one_sentence(kind, run, tmp_path):
    arguments, told = REFUSED[kind]
    places = {
        "CONFIG": run / "config.yaml",
        "LAST": run / "checkpoints" / "last.ckpt",
        "ROOT": tmp_path,
        "OUTPUT": tmp_path / "scores.csv",
    }
    done = command(*(places.get(a, a) for a in arguments), fails=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mixer-bijectors: ") and told in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.parts"))


def test_results_of_other_data_or_settings_are_not_mixed_in(run, tmp_path):
    folders = []
    for value, name in ((40, "a"), (200, "b")):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for index in range(6):
            pixels = np.full((32, 32, 3), value, np.uint8)
            Image.fromarray(pixels).save(folders[-1] / f"{index}.png")

    def score(folder, output, *options):
        data = ("--data", "mixer_bijectors.train.Images", "--data.init_args.path", folder)
        data += ("--data.init_args.batch_size", 2, "--data.init_args.test_split", "all")
        task("score", run, tmp_path / output, *data, *options)
        with (tmp_path / output).open(newline="") as file:
            return [float(row["bits_per_dim"]) for row in csv.DictReader(file)]

    want = score(folders[1], "b.csv")
    # What a run over the other folder has left when it was cut off.
    line, environment = start(
        *("score", "--ckpt_path", run / "checkpoints" / "last.ckpt"),
        *("--output", tmp_path / "mixed.csv", "--trainer.accelerator", "cpu"),
        *("--data", "mixer_bijectors.train.Images", "--data.init_args.path", folders[0]),
        *("--data.init_args.batch_size", 2, "--data.init_args.test_split", "all"),
        *("--trainer.limit_predict_batches", 2),
    )
    subprocess.run(line, env=environment, check=True, capture_output=True)
    (tmp_path / "mixed.csv").unlink()
    assert score(folders[1], "mixed.csv") == want


def test_killed_and_resumed_runs_end_with_the_same_weights(tmp_path):
    options = [*SMALL, "--trainer.limit_val_batches", "2", "--trainer.limit_test_batches", "1"]
    row = kill_resume.compare(tmp_path, kills=4, steps=240, options=options, seed=1)
    assert row["steps"] == 240
    assert row["kills"] >= 2, row
    assert row["checkpoints unreadable"] == 0
    assert row["tensors that differ"] == 0


def test_a_config_is_that_of_the_checkpoints_beside_it(tmp_path):
    fit(tmp_path, 3)
    before = (tmp_path / "version_0" / "config.yaml").read_text()
    done = command(
        *("fit", "--config", tmp_path / "version_0" / "config.yaml", "--ckpt_path", "last"),
        *("--model.flow.init_args.hidden_features", 4, "--trainer.max_steps", 6),
        fails=True,
    )
    assert "does not fit the model of the config" in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "version_0" / "config.yaml").read_text() == before


def test_plugins_of_the_config_are_used(tmp_path):
    plugin = "lightning.pytorch.plugins.environments.LightningEnvironment"
    fit(tmp_path, 2, f"--trainer.plugins+={plugin}")
    fit(tmp_path, 2, "--trainer.plugins+=mixer_bijectors.train.AtomicCheckpointIO")


def test_other_data_modules_serve(tmp_path):
    (tmp_path / "others.py").write_text(
        "import lightning as L, torch\n"
        "class Others(L.LightningDataModule):\n"
        "    def train_dataloader(self):\n"
        "        x = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)\n"
        "        return torch.utils.data.DataLoader(x, batch_size=4)\n"
        "    val_dataloader = train_dataloader\n"
    )
    config = CONFIGS / "photos.yaml"
    line, environment = start(
        *("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "runs"),
        *(*SMALL[:8], "--data", "others.Others", "--trainer.max_steps", 2),
    )
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "checkpoints, logs and pictures are in" in done.stdout


def test_averaged_weights_are_tested_after_a_fit(tmp_path):
    averages = "lightning.pytorch.callbacks.EMAWeightAveraging"
    done = fit(
        *(tmp_path, 24, f"--trainer.callbacks+={averages}"),
        *("--trainer.callbacks.decay", "0.9", "--trainer.callbacks.use_buffers", "false"),
    )
    run = tmp_path / "version_0"
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")
    assert any(
        not torch.equal(weight, best["current_model_state"][key])
        for key, weight in best["state_dict"].items()
    )
    again = command("test", "--ckpt_path", run / "checkpoints" / "best.ckpt")
    tested = re.search(r"test/bits_per_dim\D+(\d\S+)", again.stdout)[1]
    assert f"{float(tested):.3f}" == re.search(r"per dimension (\S+),", done.stdout)[1]


def test_last_starts_afresh_where_there_is_nothing(tmp_path):
    fit(tmp_path, 3, "--ckpt_path", "last")
    assert load_checkpoint(tmp_path / "version_0/checkpoints/last.ckpt")["global_step"] == 3
    fit(tmp_path, 5, "--ckpt_path", "last")
    assert load_checkpoint(tmp_path / "version_0/checkpoints/last.ckpt")["global_step"] == 5
    fit(tmp_path, 3)
    assert (tmp_path / "version_1").exists(), "without it, a new run"


@pytest.mark.parametrize(
    "path", sorted(Path(str(CONFIGS)).glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_configuration_parses(path):
    config = yaml.safe_load(path.read_text())
    options = [] if "data" in config else ["--data", "mixer_bijectors.train.Digits"]
    command("fit", "--config", path, *options, "--print_config")


@pytest.mark.parametrize("name", ["torchrun", "slurm", "sharded"])
def test_settings_of_a_cluster_go_on_top(name):
    overlay = CONFIGS / "cluster" / f"{name}.yaml"
    configs = ("--config", CONFIGS / "photos.yaml", "--config", overlay)
    printed = yaml.safe_load(command("fit", *configs, "--print_config").stdout)
    want = yaml.safe_load(overlay.read_text())["trainer"]
    assert {key: printed["trainer"][key] for key in want} == want
    assert printed["model"]["flow"]["init_args"]["num_layers"] == 4


def test_a_model_is_exported(run, tmp_path):
    task("export", run, tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    state = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert set(weights) == {key.removeprefix("flow.") for key in state}
    assert all(
        torch.equal(torch.from_numpy(weights[k.removeprefix("flow.")]), state[k]) for k in state
    )
