"""A forked `lora-ops` does what one that was started does."""

import pytest

from tests.conftest import ROOT, run, run_forked


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (("tenant", "list"), {"COLUMNS": "70"}),
        (("tenant", "check", "nobody"), {}),
        (("tenant", "check", "nobody", "--json"), {}),
        (("registry", "shwo"), {}),
        (("profile", "é"), {"PYTHONIOENCODING": "ascii"}),  # no fork takes it
        (("report",), {"LORA_OPS_ROOT": "/nowhere"}),
        (("profile", "x"), {"FORKED_LORA_OPS": "/nowhere"}),
    ],
)
def test_forked_command_ends_and_prints_as_one_started(
    words: tuple[str, ...], environment: dict[str, str]
) -> None:
    started = run("lora-ops", *words, cwd=ROOT, **environment)
    forked = run_forked("lora-ops", *words, cwd=ROOT, **environment)
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        started.returncode,
        started.stdout,
        started.stderr,
    )


def test_forked_command_has_the_callers_streams() -> None:
    for redirected, code in (("| head -1", 4), (">&- 2>&-", 4), ("2>/dev/full", 4), ("<&-", 4)):
        done = run_forked(
            "bash", "-c", f"lora-ops tenant check x {redirected}; exit ${{PIPESTATUS[0]}}", cwd=ROOT
        )
        assert done.returncode == code, redirected
    assert run_forked("bash", "-c", "lora-ops tenant list >/dev/full", cwd=ROOT).returncode == 5
