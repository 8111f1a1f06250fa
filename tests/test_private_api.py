"""Names that are not public and that the library relies on: upgrades may take them."""

import inspect

import pytest
import torch

from mixer_bijectors._graphs import constant_in_graphs
from mixer_bijectors.running import compiled, faster_linear, faster_splines


def test_torch_marks_constant_functions_as_the_library_does():
    def by_torch():
        return 2

    def by_the_library():
        return 2

    torch.compiler.assume_constant_result(by_torch)
    assert vars(constant_in_graphs(by_the_library)) == vars(by_torch) != {}


@pytest.mark.parametrize(
    ("faster", "name"),
    [
        (faster, name)
        for faster in (*faster_splines.LAYERS, *faster_linear.LAYERS)
        for name in faster.known
        if name in vars(faster)
    ],
)
def test_normflows_and_nflows_call_what_accelerate_replaces(faster, name):
    """Methods of layers, with the arguments that they are called with."""
    arguments = list(inspect.signature(getattr(faster, name)).parameters)
    for function in faster.known[name]:
        assert list(inspect.signature(function).parameters) == arguments


@pytest.mark.parametrize("faster", compiled.MODELS)
def test_normflows_and_nflows_have_the_methods_that_accelerate_compiles(faster):
    assert faster.directions.keys() == faster.known.keys()
    assert all(map(inspect.isfunction, sum(faster.known.values(), ())))
