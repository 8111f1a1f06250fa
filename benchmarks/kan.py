"""One layer of a Kolmogorov-Arnold network: `nets.KAN` against pykan and efficient-kan.

48 -> 128, batch 4096, grid of 5 cells, cubic splines; forward, and forward and backward.
pykan also returns the value of every edge, and computes on its own grid; both sides have the
same numbers of splines. efficient-kan is not on the package index: give the path of a checkout.

    python benchmarks/kan.py --efficient-kan PATH --json kan.json
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import peak_memory, print_table, time_in_turn, timing_parser, write_json
from torch import Tensor

from mixer_bijectors import nets

BATCH, IN, OUT, GRID, ORDER = 4096, 48, 128, 5, 3


def main() -> None:
    parser = timing_parser(__doc__)
    parser.add_argument("--efficient-kan", help="a checkout of efficient-kan")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    layer = nets.KAN(IN, OUT, num_layers=1, grid_size=GRID, order=ORDER)
    models: dict[str, Callable[[Tensor], Tensor]] = {"mixer_bijectors": layer}
    # pykan's package has the name of this script, whose folder comes first in the path.
    sys.path.remove(str(Path(__file__).parent))
    try:
        from kan.KANLayer import KANLayer
    except ImportError:
        print("pykan is not installed")
    else:
        edges = KANLayer(IN, OUT, num=GRID, k=ORDER, grid_range=[-3, 3])
        models["pykan"] = lambda x: edges(x)[0]
    if arguments.efficient_kan:
        sys.path.insert(0, f"{arguments.efficient_kan}/src")
        from efficient_kan import KANLinear

        models["efficient-kan"] = KANLinear(IN, OUT, GRID, ORDER, grid_range=[-3, 3])

    x = torch.randn(BATCH, IN, requires_grad=True)
    cotangent = torch.randn(BATCH, OUT)

    def infer(model: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return model(x)

    sides: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, model in models.items():
        sides[f"{name}, eager"] = model
        if not arguments.no_compile:
            compiled: Callable[[Tensor], Tensor] = torch.compile(model)
            try:
                compiled(x).backward(cotangent)
                infer(compiled)
            except Exception as error:
                print(f"{name} does not compile: {type(error).__name__}")
            else:
                sides[f"{name}, compiled"] = compiled

    tasks: dict[str, Callable[[Callable[[Tensor], Tensor]], object]] = {
        "forward": infer,
        "forward + backward": lambda model: model(x).backward(cotangent),
    }
    rows: list[dict[str, Any]] = [{"side": name} for name in sides]
    for task, run in tasks.items():
        repeats = arguments.repeats
        seconds = time_in_turn(
            {name: partial(run, model) for name, model in sides.items()}, repeats
        )
        for row in rows:
            mode = row["side"].split(", ")[1]
            reference = seconds[f"mixer_bijectors, {mode}"]
            row[f"{task}, ms"] = f"{1e3 * seconds[row['side']]:.1f}"
            row[f"{task}: this / mixer_bijectors, same mode"] = (
                f"{seconds[row['side']] / reference:.1f}"
            )
    for row in rows:
        peak = peak_memory(partial(tasks["forward + backward"], sides[row["side"]]))
        row["peak MB"] = f"{peak / 2**20:.0f}"
    print_table(rows)
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
