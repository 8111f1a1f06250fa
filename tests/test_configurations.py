"""Configurations, of the package and of users, and what goes on top of them."""

import re

import pytest
import yaml
from commands import CONFIGS, FLOW, call, fit, step_of, task


def test_options_hold_before_a_config_as_well_as_after(short_run, tmp_path):
    root = ("--trainer.default_root_dir", tmp_path)
    call("fit", *root, "--trainer.max_steps", 1, "--config", short_run / "config.yaml")
    assert step_of(tmp_path) == 1, "in place of the two of the config"


def test_the_checkpoint_is_the_one_that_is_named(short_run, tmp_path):
    """Not one that a config after it names, such as what its run had gone on from."""
    config = yaml.safe_load((short_run / "config.yaml").read_text())
    config["ckpt_path"] = str(tmp_path / "other.ckpt")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    checkpoint = short_run / "checkpoints" / "last.ckpt"
    output = tmp_path / "scores.csv"
    task("score", checkpoint, output, "--config", tmp_path / "other.yaml")
    assert output.exists()


def test_the_config_of_a_run_does_not_name_what_it_went_on_from(tmp_path):
    for steps in (1, 2):
        fit(tmp_path, steps, "--ckpt_path", "last")
    config = yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text())
    assert config["ckpt_path"] is None and config["trainer"]["max_steps"] == 2


def test_configs_go_on_top_of_one_another(short_run, tmp_path, capsys):
    for name in ("torchrun", "slurm", "sharded"):
        overlay = CONFIGS / "cluster" / f"{name}.yaml"
        configs = ("--config", CONFIGS / "photos.yaml", "--config", overlay)
        call("fit", *configs, "--print_config")
        printed = yaml.safe_load(capsys.readouterr().out)
        want = yaml.safe_load(overlay.read_text())["trainer"]
        assert {key: printed["trainer"][key] for key in want} == want
        assert printed["model"]["flow"]["init_args"]["num_layers"] == 4


def printed(capsys, *options):
    call("fit", *options, "--print_config")
    return yaml.safe_load(capsys.readouterr().out)


def classes_of(config):
    return [one["class_path"].rpartition(".")[2] for one in config["trainer"]["callbacks"]]


def test_a_config_of_your_own_goes_on_top_of_the_base(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    flow = {"class_path": "mixer_bijectors.MixerFlow"}
    config = {
        "trainer": {"callbacks+": [{"class_path": "mixer_bijectors.train.Pictures"}]},
        "model": {"flow": flow},
        "data": {"class_path": "mixer_bijectors.train.Digits"},
    }
    mine.write_text(yaml.safe_dump(config))
    base = printed(capsys, "--config", "base", "--config", mine)
    assert classes_of(base) == ["ModelCheckpoint", "LearningRateMonitor", "Pictures"]
    assert base["seed_everything"] == 0 and base["trainer"]["gradient_clip_val"] == 1.0
    alone = printed(capsys, "--config", mine)
    assert classes_of(alone) == ["Pictures"]
    # A packaged one that comes later does not have the base on top of the user's.
    config["trainer"] = {"gradient_clip_val": 3.0}
    mine.write_text(yaml.safe_dump(config))
    both = printed(capsys, "--config", mine, "--config", "photos")
    assert both["trainer"]["gradient_clip_val"] == 3.0
    assert classes_of(both)[2:] == ["LastCheckpoint", "Pictures"]


# What the former files held, which had all of it in each.
CALLBACKS = {
    "photos": ["LastCheckpoint", "Pictures"],
    "digits": ["LastCheckpoint", "Pictures"],
    "cifar10": ["Pictures", "EMAWeightAveraging"],
}


@pytest.mark.parametrize("name", [*CALLBACKS, "tarflow_afhq256"])
def test_configs_of_the_package_stand_on_their_base(name, capsys):
    data = ["--data", "mixer_bijectors.train.Digits"] if name.startswith("tarflow") else []
    config = printed(capsys, "--config", name, *data)
    assert config["seed_everything"] == config["trainer"]["num_sanity_val_steps"] == 0
    if data:
        assert config["trainer"]["callbacks"] is config["trainer"]["gradient_clip_val"] is None
        return
    assert classes_of(config) == ["ModelCheckpoint", "LearningRateMonitor", *CALLBACKS[name]]
    best = config["trainer"]["callbacks"][0]["init_args"]
    assert (best["monitor"], best["filename"]) == ("val/bits_per_dim", "best")
    assert config["trainer"]["gradient_clip_val"] == 1.0


def test_a_config_that_a_run_has_saved_is_whole(short_run, capsys):
    """It holds all settings, as those do that were saved before there was a base."""
    saved = yaml.safe_load((short_run / "config.yaml").read_text())
    again = printed(capsys, "--config", short_run / "config.yaml")
    assert again["trainer"] == saved["trainer"] and again["model"] == saved["model"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"trainer: {max_steps: [3\nmodel: }\n", "mine.yaml is no YAML: .* line 2"),
        (b"\xff\xfe\x00", "mine.yaml is no YAML: "),
        (b"photos\n", "mine.yaml has no keys, such as model and data"),
    ],
)
def test_a_broken_config_is_told_by_its_name(text, told, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(text)
    sentence = call("fit", "--config", "photos", "--config", tmp_path / "mine.yaml", fails=True)
    assert re.search(f"^mixer-bijectors: the config .*{told}", sentence)
    assert "\n" not in sentence


@pytest.mark.parametrize("name", ["photos", "photos.yaml", CONFIGS / "photos.yaml"])
def test_a_config_of_the_package_is_found_by_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call("fit", "--config", name, "--config", "sharded", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["default_root_dir"] == "runs/photos"
    assert printed["trainer"]["strategy"] == "sharded"


def test_a_config_that_is_not_there_is_told_with_those_that_are():
    told = call("fit", "--config", "fotos", fails=True)
    assert told.startswith("mixer-bijectors: there is no config fotos") and "photos," in told


def test_a_config_is_that_of_the_checkpoints_beside_it(tmp_path):
    fit(tmp_path, 2)
    before = (tmp_path / "version_0" / "config.yaml").read_text()
    told = fit(tmp_path, 3, "--ckpt_path", "last", f"{FLOW}hidden_features", 4, fails=True)
    assert "does not fit the model of the config" in told
    assert (tmp_path / "version_0" / "config.yaml").read_text() == before
