"""The sentence on the images that were found."""

from types import SimpleNamespace

import pytest
from image_folders import SHAPE, everything, make, read

from mixer_bijectors.train import Images

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_the_line_is_printed_once_in_the_first_process(tmp_path, capsys):
    counts = {"train": 20, "validation": 3, "test": 6}
    make(tmp_path, *(f"{s}/{'ab'[i % 2]}/{i}.png" for s, n in counts.items() for i in range(n)))
    data = Images(tmp_path, SHAPE, val_split=0.2)
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    assert capsys.readouterr().out == (
        f"{tmp_path}: 16 training, 4 validation and 6 test images; "
        "2 classes: 0 a (13), 1 b (13); "
        "not used: validation (3)\n"
    )
    other = Images(tmp_path, SHAPE)
    other.trainer = SimpleNamespace(is_global_zero=False)
    other.setup("fit")
    assert capsys.readouterr().out == ""


def test_many_classes_are_counted(tmp_path, capsys):
    make(
        tmp_path, *(f"{label:02d}/{i}.png" for label in range(12) for i in range(1 + label % 2))
    )
    read(everything(tmp_path))
    assert "; 12 classes of 1 to 2 images\n" in capsys.readouterr().out
