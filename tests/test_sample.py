"""The task `sample`."""

import re

import numpy as np
import pytest
import torch
from commands import task
from PIL import Image
from tiny_runs import Cut, make_flow, make_trainer

from mixer_bijectors.train import DensityEstimation, load_checkpoint
from mixer_bijectors.train.tasks.output import Output


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


def test_values_that_are_not_finite_are_counted(run, tmp_path, capsys):
    checkpoint = load_checkpoint(run)
    checkpoint["state_dict"]["flow.q0.loc"][:] = torch.nan
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    module = DensityEstimation(make_flow())
    options = {"ckpt_path": str(tmp_path / "bad.ckpt"), "output": str(tmp_path / "s.npz")}
    make_trainer().sample(module, num_samples=3, **options)
    assert "log_prob: 3 of 3 images have values that are not finite" in capsys.readouterr().out


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


def test_a_number_that_is_the_name_of_a_class_means_that_class(conditional, tmp_path):
    names = sorted(str(number) for number in range(1, 11))
    torch.save(load_checkpoint(conditional) | {"class_names": names}, tmp_path / "n.ckpt")
    options = ("--num_samples", 4, "--classes", "[10, 3, 0, -1]")
    task("sample", tmp_path / "n.ckpt", tmp_path / "s.npz", *options)
    labels = np.load(tmp_path / "s.npz")["labels"].tolist()
    assert labels == [names.index("10"), names.index("3"), 0, -1]


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
