"""The order of imports, and the names of test files."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mixer_bijectors as mb

PACKAGE = Path(mb.__file__).parent
TESTS = Path(__file__).parent


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


ROOMS = (
    ("univariate", "nets", "images"),
    ("solvers", "bijection"),
    ("declarations",),
    ("flow",),
    ("chain",),
    ("layers",),
    ("bridges", "running"),
    ("models",),
    ("presets", "testing", "hub"),
    ("train",),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}


def imported_rooms(path):
    """Rooms that a module imports, with a room of helpers counting for nothing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.relative_to(PACKAGE).parts[: -node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                room = (*base, *name.split("."))[0]
                if room in RANK:
                    yield room


def test_imports_run_one_way():
    """The order of `docs/design.md`, and what it lets pass."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for other in imported_rooms(path) if room in RANK else ():
            if other != room and RANK[other] >= RANK[room]:
                found.add(f"{path.relative_to(PACKAGE).as_posix()} imports {other}")
    assert found <= {
        "chain.py imports layers",
        "layers/alternation.py imports bridges",
        "running/compiled.py imports bridges",
        "running/equations.py imports bridges",
    }


# Modules without tests of their own, by the test file of what uses them.
COVERED = {
    "test_battery": ["layers/elementwise"],
    "test_transformer_autoregressive": ["layers/patch_prediction", "solvers/patch_windows"],
    "test_flow": ["declarations"],
    "test_patch_grid": ["layers/shift"],
    "test_matrix_coupling": ["layers/matrix_halves"],
    "test_mixerflow": ["layers/mixing_layer"],
    "test_jet": ["models/jet_weights"],
    "test_accelerate": [
        *("running/compiled", "running/exchange", "running/faster_linear"),
        *("running/faster_splines",),
    ],
    "test_reversible": [
        *("running/conditioners", "running/random_state", "running/recomputation"),
        *("running/reversible_chain", "running/round_trip", "running/pull_back"),
        *("running/composite_gradients", "running/glow_gradients"),
        *("running/layer_gradients", "running/spline_gradients"),
    ],
    "test_tarflow": ["models/labels"],
    "test_bare_flow": ["models/density_model"],
    "test_dequantization": ["train/callbacks/importance_samples"],
    "test_bases": ["models/divergences"],
    "test_parallel_inverse": ["running/equations", "solvers/fixed_point"],
    "test_accelerate_sampling": ["running/known_layers", "running/parallel_transform"],
    "test_cli": [
        *("train/arguments", "train/parser", "train/described_module"),
        "train/callbacks/run_config",
    ],
    "test_faults": [
        *("train/callbacks/guard", "train/metrics", "train/io/checkpoints"),
        *("train/io/csv_log", "train/io/files"),
    ],
    "test_resume": ["train/schedule"],
    "test_distributed": ["train/sharding"],
    "test_quiet": ["train/callbacks/bar"],
    "test_findings": ["train/io/names", "train/io/once"],
    "test_sample": ["train/tasks/pictures"],
    "test_export": ["train/tasks/weights"],
}


def test_modules_have_tests_of_their_names():
    """Or of the name of their folder, which goes in front where two share a name."""
    modules = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    modules = [module for module in modules if not module.name.startswith("_")]
    count = Counter(module.name for module in modules)
    files = {path.stem for path in TESTS.glob("test_*.py")}
    missing = set()
    for module in modules:
        *_, folder, name = ("", *module.parts)
        names = {f"test_{folder}", f"test_{folder}_{name}"} if folder else {f"test_{name}"}
        if count[name] == 1:
            names.add(f"test_{name}")
        if not names & files:
            missing.add(module.as_posix())
    assert missing == {module for covered in COVERED.values() for module in covered}
    assert COVERED.keys() <= files


def test_no_test_file_imports_another():
    for path in TESTS.rglob("*.py"):
        assert not re.findall(r"(?m)^ *(?:from|import) test_\w+", path.read_text()), path
