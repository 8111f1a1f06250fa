"""The images of a split."""

import pickle

import pytest
from image_folders import everything, make

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_a_split_of_files_can_be_sent_to_a_process(tmp_path):
    data = everything(make(tmp_path, "cat/0.png", "dog/1.png"))
    data.setup("fit")
    images = pickle.loads(pickle.dumps(data._splits["train"]))
    assert images[1].name == str(tmp_path / "dog" / "1.png") and len(images) == 2
