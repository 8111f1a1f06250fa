"""The suites of other libraries, in `peers`; `benchmarks/peer_suites.py` counts the checks."""

import pytest
from conftest import LAYERS
from peers import SUITES, load

# What is cheap to import, on layers of every kind; all the rest is slow.
CORE_SUITES = ("normflows", "nflows", "nflows, flows", "torch.distributions")
CORE_LAYERS = ("", "Patchify", "ChannelMixing-context", "Coupling-spline-mlp", "LULinear")
PARAMETERS = [
    pytest.param(
        suite,
        layer,
        id=f"{suite}-{layer or 'alone'}",
        marks=[] if suite in CORE_SUITES and layer in CORE_LAYERS else pytest.mark.slow,
    )
    for suite in SUITES
    for layer in ("", *LAYERS)
]


@pytest.mark.filterwarnings("ignore")  # Of tracing, and of couplings in a row.
@pytest.mark.parametrize(("suite", "layer"), PARAMETERS)
def test_passes_the_checks_of(suite, layer):
    failures = {}
    for check in load(suite).checks:
        if check.layer == layer:
            try:
                check()
            except Exception as error:
                failures[check.name] = repr(error)
    assert not failures


def test_every_suite_names_its_checks_once():
    for suite in CORE_SUITES:
        names = [str(check) for check in load(suite).checks]
        assert len(names) == len(set(names)) > 0
