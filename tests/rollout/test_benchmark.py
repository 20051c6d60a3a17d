"""The benchmark of rollouts, with few runs; each part prints its tables."""

import sys

from tests.conftest import ROOT, run


def test_equal_versions_are_rolled_back_by_z_tests_only() -> None:
    """The claim of the first table, with 100 runs: ours at most alpha, the test at each look far more."""
    shown = run(
        sys.executable, ROOT / "benchmarks/rollout.py", "sequential", "--runs", "100", cwd=ROOT, COLUMNS="200"
    )
    assert shown.returncode == 0, shown.stderr
    row = next(line for line in shown.stdout.splitlines() if line.startswith("│ 2 %  "))
    with_margin, edge, each_look, *_ = (float(cell) for cell in row.strip("│").split("│")[1:])
    assert with_margin <= edge <= 0.12 < 0.2 < each_look
    assert "80%: 296" in shown.stdout and "P95" in shown.stdout


def test_bets_are_compared() -> None:
    shown = run(sys.executable, ROOT / "benchmarks/rollout.py", "bets", "--runs", "20", cwd=ROOT, COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert "plug-in" in shown.stdout
