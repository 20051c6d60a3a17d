"""The benchmark of rollouts, with few runs; each part prints its tables."""

import shutil
import sys
from pathlib import Path

from tests.conftest import ROOT, run, small_clone


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


def test_no_answer_is_decided_by_the_route_before(tiny_base: Path, tmp_path: Path) -> None:
    """Two gateways, and requests that are sent once a change is committed."""
    clone = small_clone(tmp_path / "clone")
    shutil.copytree(tiny_base, clone / "models/base")
    shown = run(
        sys.executable, ROOT / "benchmarks/rollout.py", "switch", "--changes", "6", cwd=clone, COLUMNS="200"
    )
    assert shown.returncode == 0, shown.stderr
    assert "0 answers to requests that were sent after a commit did not know it" in shown.stdout


def test_looks_of_both_checkouts_say_the_same() -> None:
    given = ("look", "--events", "600", "--looks", "2", "--beside", ROOT)
    shown = run(sys.executable, ROOT / "benchmarks/rollout.py", *given, cwd=ROOT, COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert "verdicts: the same" in shown.stdout and shown.stdout.count("each one after it") == 2
