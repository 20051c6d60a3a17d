"""Replacing a folder: a reader or a kill finds the old one or the new one, whole."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lora_ops import folders
from lora_ops.folders import replace_folder, replacing


def write(target: Path, text: str) -> None:
    with replacing(target) as folder:
        (folder / "file").write_text(text)


def test_replacing_gives_the_new_content_only(tmp_path: Path) -> None:
    target = tmp_path / "out" / "adapter"
    write(target, "one")
    (target / "left over").touch()
    write(target, "two")
    assert [path.name for path in target.iterdir()] == ["file"]
    assert (target / "file").read_text() == "two"
    assert list(target.parent.iterdir()) == [target]


def test_replacing_after_an_error_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    write(target, "one")
    with pytest.raises(RuntimeError), replacing(target) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert (target / "file").read_text() == "one"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_never_leaves_a_reader_without_folder(tmp_path: Path) -> None:
    """C5: rmtree and rename had a window without outputs."""
    target = tmp_path / "adapter"
    write(target, "0")
    missing: list[int] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            if not os.access(target / "file", os.F_OK):
                missing.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        write(target, str(number))
    ended.set()
    reader.join()
    assert not missing


def test_replace_folder_without_exchange_renames_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that can't exchange two names."""
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    for text in ("one", "two"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text(text)
        replace_folder(tmp_path / "new", tmp_path / "adapter")
        assert (tmp_path / "adapter/file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_replacing_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    script = (
        "import os, signal, sys; from pathlib import Path; from lora_ops.folders import replacing\n"
        "with replacing(Path(sys.argv[1])) as folder:\n    (folder / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(target)])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    write(target, "whole")
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_leaves_the_folder_of_a_living_process(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with replacing(target) as folder:
        (folder / "file").write_text("slow")
        write(target, "quick")
        assert folder.is_dir()
    assert (target / "file").read_text() == "slow"
