"""The benchmarks' site of a gateway, which registers adapters of its own; `make nightly` runs them whole."""

import sys

from tests.conftest import ROOT, run
from tests.serving.conftest import Clone


def test_neighbours_run_on_a_registry_of_their_own(clone: Clone) -> None:
    script = ROOT / "benchmarks/neighbours.py"
    shown = run(sys.executable, script, "--runs", "1", "unload", cwd=clone.root, COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    row = [cell.strip() for cell in shown.stdout.splitlines()[-2].strip("│").split("│")]
    assert row[0] == "unload" and float(row[-1]) > 0
