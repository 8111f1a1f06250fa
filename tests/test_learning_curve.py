"""The figure of bits per dimension over steps."""

import numpy as np

from mixer_bijectors.train.callbacks.learning_curve import learning_curve


def test_a_learning_curve_says_what_it_shows(tmp_path):
    folder = tmp_path / "photos" / "version_3"
    folder.mkdir(parents=True)
    log = ["step,train/bits_per_dim,val/bits_per_dim"]
    log += [f"{step},{4 - step / 100}," for step in range(60)] + ["59,,3.5"]
    (folder / "metrics.csv").write_text("\n".join(log))
    (axis,) = learning_curve(folder / "metrics.csv", 3.25).axes
    assert axis.get_title() == "photos/version_3"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "bits per dimension")
    shown = [text.get_text() for text in axis.get_legend().get_texts()]
    assert shown == ["training, mean of 3 logged steps", "validation", "test 3.250"]
    mean = axis.lines[1]
    assert np.allclose(mean.get_ydata(), 4 - np.arange(1, 59) / 100)
    assert mean.get_xdata().tolist() == list(range(2, 60))


def test_a_learning_curve_of_nothing_does_not_warn(tmp_path, recwarn):
    (tmp_path / "metrics.csv").write_text("step,lr\n1,0.1\n")
    (axis,) = learning_curve(tmp_path / "metrics.csv").axes
    assert axis.get_legend() is None and not list(recwarn)
