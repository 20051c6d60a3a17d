"""One process at a time, and none that outlives its parent: real processes, killed."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import psutil
import pytest

from lora_ops.processes import InUse, locked, only_one
from tests.conftest import ROOT, run
from tests.test_notebooks import write

HOLD = """
import sys, time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from lora_ops.processes import locked, only_one
with only_one(Path(sys.argv[1]), "training 'finance'"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_only_one_names_the_process_that_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "finance.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InUse, match=rf"^Process {holder.pid} on .* is training 'finance' already"),
            only_one(lock, "training 'finance'"),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with only_one(lock, "training 'finance'"):  # its death released it
        pass


def wait_for(happened: Callable[[], object], of: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline and (of is None or of.poll() is None)
        time.sleep(0.05)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_only_one_holds_where_its_name_can_not_be_written(tmp_path: Path) -> None:
    """The disk is full."""
    lock = tmp_path / "lock"
    lock.touch()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        busy = pytest.raises(InUse, match="another process is training already")
        with only_one(lock, "training"), busy, only_one(lock, "training"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can do it")
@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_kernel_dies_with_a_killed_dvc(tmp_path: Path, shell: str) -> None:
    """C5: the kernel went on training beside the second `dvc repro`. DVC runs a stage in the user's shell."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    for name in ("params.yaml", "owners.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    write(
        tmp_path / "slow.ipynb",
        "tenant = 'finance'",
        "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))",
        "time.sleep(600)",
    )
    command = "lora-ops run slow.ipynb --tenant finance"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{slow: {{cmd: {command}}}}}\n")
    assert run("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path).returncode == 0
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SHELL": found, "PYTHONPATH": str(ROOT)}
    environment.pop("LORA_OPS_ROOT", None)
    dvc = subprocess.Popen(["dvc", "repro"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), dvc)
        kernel = int((tmp_path / "pid").read_text())
        assert not gone(kernel)
    finally:
        dvc.send_signal(signal.SIGKILL)
        dvc.wait()
    wait_for(lambda: gone(kernel))


NAMES_GRAMMARS = """
import sys
from lora_ops.processes import {0}
{0}({1})
import jsonschema
print("lark" in sys.modules)
"""


def test_commands_that_run_notebooks_compile_no_url_grammars(tmp_path: Path) -> None:
    """It took more than a second at each start, of a command and of its kernel."""
    for call, argument in (("leave_out_url_grammars", ""), ("load_ipython_extension", "None")):
        ran = run(sys.executable, "-c", NAMES_GRAMMARS.format(call, argument), cwd=tmp_path)
        assert ran.stdout == "False\n"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("hold", [partial(locked, seconds=0), partial(only_one, what="training 'finance'")])
def test_a_lock_is_taken_whatever_stands_in_its_place(
    tmp_path: Path, make: Callable[[Path], None], hold: Callable[[Path], AbstractContextManager[None]]
) -> None:
    lock = tmp_path / "finance.lock"
    make(lock)
    with hold(lock):
        assert lock.is_file() and len(list(tmp_path.glob("finance.lock.*.odd"))) == 1
        with pytest.raises(BlockingIOError), locked(lock, seconds=0):
            pass
