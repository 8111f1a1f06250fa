"""Names of torch that are not public and that the library relies on: upgrades may take them."""

import torch

from mixer_bijectors._graphs import constant_in_graphs


def test_torch_marks_constant_functions_as_the_library_does():
    def by_torch():
        return 2

    def by_the_library():
        return 2

    torch.compiler.assume_constant_result(by_torch)
    assert vars(constant_in_graphs(by_the_library)) == vars(by_torch) != {}


def test_torch_leaves_functions_to_python_without_importing_the_compiler():
    import torch._compile

    seen = []
    function = torch._compile._disable_dynamo(
        lambda: seen.append(torch.compiler.is_compiling())
    )
    torch.compile(function, backend="eager")()
    assert seen == [False]
