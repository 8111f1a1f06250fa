"""Trained models that are compiled ahead of time, for Python and C++."""

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import task
from torch.testing import assert_close

import mixer_bijectors as mb
from mixer_bijectors import presets
from mixer_bijectors.train.io.errors import RunError
from mixer_bijectors.train.tasks import compiled_package
from mixer_bijectors.train.tasks.compiled_package import exported, write_package

IMAGE = (3, 8, 8)
SMALL = {"num_layers": 2, "hidden_features": 8}
TAR = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}
EXAMPLE = Path(__file__).parent.parent / "examples" / "aoti"


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "method"),
    [
        (partial(mb.MixerFlow, IMAGE, 4, num_classes=3, **SMALL), "log_prob"),
        (partial(presets.local, IMAGE, 4, **SMALL), "forward_and_log_det"),
        (partial(mb.TarFlow, IMAGE, 4, num_classes=3, **TAR), "log_prob"),
    ],
    ids=["MixerFlow", "local", "TarFlow"],
)
def test_a_package_computes_what_the_model_does(tmp_path, make, method):
    model = randomised(make())
    path = tmp_path / "model.pt2"
    write_package(path, model, method, {"class_names": '["cat"]'})
    package = torch._inductor.aoti_load_package(path)
    assert package.get_metadata()["class_names"] == '["cat"]'
    shape = model.image_shape if method == "log_prob" else model.latent_shape
    for batch in (1, 4, 9):
        inputs = [torch.rand(batch, *shape)]
        if model.num_classes:
            inputs.append(torch.arange(batch) % 3)
        with torch.no_grad():
            want = getattr(model, method)(*inputs)
        assert_close(package(*inputs), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "method", "message"),
    [
        (partial(mb.TarFlow, IMAGE, 4, **TAR), "forward_and_log_det", "patch to patch"),
        (partial(presets.maf_hybrid, IMAGE, 4, **SMALL), "forward_and_log_det", "no single"),
        (partial(presets.ffjord, IMAGE, 4, **SMALL), "log_prob", "graph: ContinuousFlow"),
    ],
    ids=["TarFlow", "maf_hybrid", "ffjord"],
)
def test_methods_without_a_graph_are_refused(make, method, message):
    with pytest.raises(RunError, match=message):
        exported(make().eval(), method)


def test_a_missing_compiler_is_named_before_anything_runs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_package, "finds_cpp_compiler", lambda: False)
    why = task("export", run, tmp_path / "model.pt2", "--format", "aoti", fails=True)
    assert "no C++ compiler is found" in why


def test_methods_are_for_packages_alone(run, tmp_path):
    options = ("--method", "forward_and_log_det")
    why = task("export", run, tmp_path / "model.safetensors", *options, fails=True)
    assert "needs --format aoti" in why


@pytest.mark.slow
def test_a_package_of_a_run_loads_in_python_and_in_the_example_of_cpp(run, model, tmp_path):
    path = tmp_path / "model.pt2"
    task("export", run, path, "--format", "aoti")
    x = (2 * torch.arange(2 * 64) / (2.0 * 64) - 1).view(2, 1, 8, 8)
    with torch.no_grad():
        want = model.log_prob(x)
    assert_close(torch._inductor.aoti_load_package(path)(x), want, atol=1e-4, rtol=1e-4)
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"the example of C++ is built by {missing[0]}, which is not installed")
    build = tmp_path / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["-S", EXAMPLE, "-B", build, prefix], ["--build", build]):
        subprocess.run(["cmake", *map(str, command)], check=True, capture_output=True)
    numbers = ("2", "1", "8", "8")
    out = subprocess.run(
        [build / "main", path, *numbers], check=True, capture_output=True, text=True
    ).stdout
    got = torch.tensor([float(number) for number in re.findall(r"\S+", out)])
    assert_close(got, want, atol=1e-4, rtol=1e-4)
