"""Counts of the checks of other libraries' test suites that the layers pass.

Those of normflows are the ones in its wheel, with nothing but the constructors changed; those
of nflows, torch.distributions, zuko, torchflows, pyro, sbi and FrEIA are written anew in
`tests/peers`, with the tolerances that they have there. What applies to no layer is not
counted, and listed with its reason.

    python benchmarks/peer_suites.py --json peer_suites.json
"""

import argparse
import importlib
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from common import print_table, write_json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
peers = importlib.import_module("peers")


def run_suite(name: str, layer: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The row of one suite, and the errors of what failed."""
    suite = peers.load(name)
    checks = [check for check in suite.checks if layer is None or check.layer == layer]
    failed = {}
    start = time.perf_counter()
    for check in checks:
        try:
            check()
        except Exception as error:
            failed[str(check)] = repr(error)
    row = {
        "suite": name,
        "kinds of checks": len({check.name.split("-")[0] for check in checks}),
        "layers": len({check.layer for check in checks if check.layer}),
        "checks run": len(checks),
        "passed": len(checks) - len(failed),
        "seconds": round(time.perf_counter() - start),
    }
    return row, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suites", nargs="+", default=list(peers.SUITES), help="which ones")
    parser.add_argument("--layer", help="only this one of the registry")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    rows, failed = [], {}
    for name in arguments.suites:
        row, failures = run_suite(name, arguments.layer)
        rows.append(row)
        failed.update(failures)
    print_table(rows)
    for check, error in failed.items():
        print(f"failed: {check}: {error}")
    for name in arguments.suites:
        for check, reason in peers.load(name).left_out.items():
            print(f"not counted: {name}, {check}: {reason}")
    write_json(arguments.json, {"rows": rows, "failed": failed})


if __name__ == "__main__":
    main()
