"""The checks of other libraries' test suites, run on the layers of this one.

normflows ships its tests, which are run as they are but for the constructors. Those of nflows,
torch, zuko and others are written anew, with the tolerances that they have there.
"""

import importlib

from .suite import Check, Suite

__all__ = ["SUITES", "Check", "Suite", "load"]

# Names of the suites, and where they are: importing them takes the libraries that they are of.
SUITES = {
    "normflows": "normflows_suite.SUITE",
    "nflows": "nflows_suite.SUITE",
    "nflows, flows": "nflows_flow_suite.SUITE",
    "torch.distributions": "torch_suite.SUITE",
    "zuko": "zuko_suite.SUITE",
    "torchflows": "other_suites.TORCHFLOWS",
    "pyro": "other_suites.PYRO",
    "sbi": "other_suites.SBI",
    "FrEIA": "other_suites.FREIA",
}


def load(name: str) -> Suite:
    """The suite of that name."""
    module, attribute = SUITES[name].split(".")
    suite: Suite = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return suite
