"""Make explains its targets, CI says where the time went, and the quick tests leave out what is slow."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SLOW, run


def test_make_help_explains_every_target() -> None:
    shown = run("make", "help", cwd=ROOT).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    assert re.findall(r"^make (\S+) +\S", shown, re.M) == phony[1].split()


@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_exists(name: str) -> None:
    assert (ROOT / "tests" / name).exists()


def test_fast_tests_leave_out_the_slow_ones() -> None:
    listed = run(
        sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow", "tests/test_cli.py",
        "tests/test_grid.py", cwd=ROOT,
    ).stdout  # fmt: skip
    assert "tests/test_grid.py" in listed and "tests/test_cli.py" not in listed


@pytest.mark.parametrize("script", ["run", "nightly"])
def test_ci_scripts_are_valid_and_time_their_parts(script: str) -> None:
    path = ROOT / ".ci" / script
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert path.stat().st_mode & 0o111
    assert "--durations=20" in path.read_text() and "trap end EXIT" in path.read_text()


def test_seconds_are_printed_up_to_the_part_that_failed() -> None:
    script = "set -e; . .ci/parts.sh; trap print_times EXIT; part one true; part two false; part three true"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    times = done.stdout.split("== seconds per part\n")[1]
    assert re.fullmatch(r"\d+ s  one\n\d+ s  two \(failed\)\n\d+ s  all\n", times)
