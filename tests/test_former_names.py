"""Import paths from before the modules lay in folders."""

import importlib
import subprocess
import sys

import pytest

import mixer_bijectors as mb


@pytest.mark.parametrize(
    ("module", "name", "today"),
    [
        ("flow", "Chain", "flow"),
        ("actnorm", "ActNorm", "layers.actnorm"),
        ("attention", "Guidance", "layers.transformer_autoregressive"),
        ("inversion", "ParallelInverse", "running"),
        ("interop", "to_nflows", "bridges"),
        ("models.hybrid", "HybridClassifier", "models.hybrid_classifier"),
        ("train.decode", "resize", "train.data.decode"),
        ("train.data", "Photos", "train.data"),
        ("train.photos", "load_photos", "train.data.bundled"),
        ("train.data.photos", "load_photos", "train.data.bundled"),
        ("train.tasks", "FlowTrainer", "train.tasks"),
        ("train.errors", "DataError", "train.io.errors"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_former_names_are_the_modules_of_today(module, name, today):
    former = importlib.import_module(f"mixer_bijectors.{module}")
    assert former is importlib.import_module(f"mixer_bijectors.{today}")
    assert hasattr(former, name)


def test_a_former_name_is_told_once():
    with pytest.warns(DeprecationWarning, match=r"kan is now mixer_bijectors.layers.kan_layer"):
        assert importlib.import_module("mixer_bijectors.kan").KANLayer is mb.KANLayer


def test_no_other_name_is_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mixer_bijectors.nothing")


def test_train_is_imported_when_it_is_asked_for():
    program = """
import sys
import mixer_bijectors as mb
assert "lightning" not in sys.modules and not hasattr(mb, "nothing")
assert callable(mb.train.load) and "lightning" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_train_names_the_extra_that_it_needs():
    program = """
import sys
import mixer_bijectors as mb
sys.modules["lightning"] = None
try:
    mb.train
except ImportError as error:
    assert "mixer_bijectors[train]" in str(error), error
else:
    raise SystemExit("it was imported")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
