"""`dvc repro` for several tenants at once, with real DVC and stages of a line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lora_ops import pipeline
from lora_ops.errors import LoraOpsError
from lora_ops.pipeline import reproduce

# Each stage of a tenant reads what all share and waits until its file says so.
STAGES = """
stages:
  versions:
    cmd: echo pins > versions.txt
    outs: [versions.txt]
  base_model:
    cmd: mkdir -p base && echo weights > base/model.txt
    deps: [versions.txt]
    outs: [base]
  prepare:
    foreach: [one, two]
    do:
      cmd: cp base/model.txt ${item}.rows
      deps: [base]
      outs: ["${item}.rows"]
  train:
    foreach: [one, two]
    do:
      cmd: sh train.sh ${item}
      deps: [base, "${item}.rows"]
      outs: ["${item}.adapter"]
  summary:
    cmd: cat one.adapter two.adapter > summary.txt
    deps: [one.adapter, two.adapter]
    outs: [summary.txt]
"""
# Two processes that train at the same time see each other; one after the other would wait in vain.
TRAIN = """
touch here-$1
for try in $(seq 300); do [ -e here-one ] && [ -e here-two ] && break; sleep 0.1; done
[ -e here-one ] && [ -e here-two ] || exit 1
echo "$1 $OMP_NUM_THREADS" > $1.adapter
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "train.sh").write_text(TRAIN)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def test_reproduce_trains_two_tenants_at_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce(["one", "two"], project, jobs=2)
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert (project / "summary.txt").read_text() == f"one {threads}\ntwo {threads}\n"
    told = capsys.readouterr().out
    assert "\none | Running stage 'train@one':" in told
    assert "\ntwo | Running stage 'train@two':" in told
    assert "\nRunning stage 'summary':" in told
    reproduce(["one", "two"], project, jobs=2)
    assert "Running stage" not in capsys.readouterr().out


def test_reproduce_ends_the_others_where_one_tenant_fails(project: Path) -> None:
    (project / "train.sh").write_text('[ "$1" = two ] || exit 1\necho two > two.adapter\n')
    with pytest.raises(LoraOpsError, match="`dvc repro` failed for one: what it said stands above"):
        reproduce(["one", "two"], project, jobs=2)
    assert (project / "two.adapter").read_text() == "two\n"
    (project / "train.sh").write_text("echo $1 > $1.adapter\n")  # mended
    reproduce(["one", "two"], project, jobs=1)
    assert (project / "summary.txt").read_text() == "one\ntwo\n"


def test_reproduce_starts_no_tenant_without_the_base(project: Path) -> None:
    (project / "dvc.yaml").write_text(STAGES.replace("echo weights > base/model.txt", "false"))
    with pytest.raises(LoraOpsError, match="before the first tenant's stages"):
        reproduce(["one", "two"], project, jobs=2)
    assert not (project / "one.rows").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_reproduce_takes_dvc_along(project: Path, how: signal.Signals) -> None:
    (project / "train.sh").write_text("touch here-$1\nexec sleep 300\n")
    # Whatever started the tests may ignore Ctrl-C, as a shell does for what runs behind it.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from pathlib import Path; from lora_ops.pipeline import reproduce; "
    code += "reproduce(['one', 'two'], Path(), jobs=2)"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=project, stderr=subprocess.DEVNULL)
    wait_for(lambda: (project / "here-one").exists() and (project / "here-two").exists())
    children = psutil.Process(running.pid).children(recursive=True)
    dvcs = [child for child in children if "dvc" in child.cmdline()]
    assert len(dvcs) == 2
    # A second run would fail at DVC's locks, and make the first one fail, too.
    with pytest.raises(LoraOpsError, match=f"Process {running.pid} on .* is running the pipeline already"):
        reproduce(["one", "two"], project, jobs=2)
    running.send_signal(how)
    running.wait(30)
    wait_for(lambda: not any(psutil.pid_exists(dvc.pid) for dvc in dvcs))
    for child in children:  # a stage that is no command of lora-ops may go on
        if child.is_running():
            child.kill()
    (project / "train.sh").write_text("echo $1 > $1.adapter\n")
    reproduce(["one", "two"], project, jobs=2)  # no lock is left
    assert (project / "summary.txt").read_text() == "one\ntwo\n"


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_default_jobs_import_torch_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took most of the time before the first stage."""
    code = "import sys, lora_ops.pipeline as one; one.GPU_DEVICES = ()\n"
    code += "print(one.default_jobs(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{min(2, len(os.sched_getaffinity(0)))} False\n"
    import torch

    monkeypatch.setattr(pipeline, "GPU_DEVICES", ("null",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pipeline.default_jobs() == 1
