"""Import paths from before the modules lay in folders; they work, with a warning, until 0.3."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install"]

_PACKAGE = "mixer_bijectors."
_MODULES = {
    "actnorm": "layers.actnorm",
    "attention": "layers.transformer_autoregressive",
    "autoregressive": "layers.autoregressive",
    "continuous": "layers.continuous",
    "coupling": "layers.coupling",
    "denoising": "models.denoising",
    "elementwise": "layers.elementwise",
    "interop": "bridges",
    "inversion": "running",
    "kan": "layers.kan_layer",
    "linear": "layers.lu_linear",
    "mixing": "layers.mixing",
    "models.hybrid": "models.hybrid_classifier",
    "nets.mlp": "nets.residual_mlp",
    "patches": "layers.patch_grid",
    "train.anomaly": "train.tasks.anomaly",
    "train.batches": "train.data.batches",
    "train.checkpoints": "train.io.checkpoints",
    "train.decode": "train.data.decode",
    "train.errors": "train.io.errors",
    "train.files": "train.io.files",
    "train.formats": "train.data.cifar_imagenet",
    "train.guard": "train.callbacks.guard",
    "train.images": "train.data.images",
    "train.logs": "train.io.csv_log",
    "train.module": "train.density_estimation",
    "train.parts": "train.tasks.prediction",
    "train.data.photos": "train.data.bundled",
    "train.photos": "train.data.bundled",
    "train.pickles": "train.data.pickles",
    "train.pictures": "train.callbacks.sample_pictures",
    "train.probe": "train.tasks.probe",
}

# Names that have moved out of a module which is still there.
_NAMES = {
    ("flow", "Chain"): "chain",
    ("layers.patch_grid", "CyclicShift"): "layers.shift",
    ("layers.patch_grid", "Shift"): "layers.shift",
}


class _FormerNames(MetaPathFinder, Loader):
    """Imports a module by its former name."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        known = fullname.startswith(_PACKAGE) and fullname[len(_PACKAGE) :] in _MODULES
        return ModuleSpec(fullname, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the one that is being made."""
        former = module.__name__
        name = _PACKAGE + _MODULES[former[len(_PACKAGE) :]]
        _warn(former, name)
        sys.modules[former] = importlib.import_module(name)


def install() -> None:
    """Let former names be imported; last, so that it costs nothing where there is a module."""
    sys.meta_path.append(_FormerNames())
    for module, _ in _NAMES:
        vars(importlib.import_module(_PACKAGE + module))["__getattr__"] = partial(_get, module)


def _get(module: str, name: str) -> object:
    """A name of a module that is in another one today."""
    if (module, name) not in _NAMES:
        raise AttributeError(f"module {_PACKAGE + module!r} has no attribute {name!r}")
    today = _PACKAGE + _NAMES[module, name]
    _warn(f"{_PACKAGE}{module}.{name}", f"{today}.{name}")
    return getattr(importlib.import_module(today), name)


def _warn(former: str, name: str) -> None:
    warnings.warn(
        f"{former} is now {name}; public names hang off mixer_bijectors and "
        "mixer_bijectors.train",
        DeprecationWarning,
        stacklevel=3,
    )
