"""Editing a file of the repository loses nothing, whoever edits beside it."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from lora_ops.editing import edited


def append(path: Path, line: str) -> None:
    for _ in range(20):
        with edited(path) as (old, new):
            new.write_text(old.read_text() + line)


def test_edited_loses_no_change_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append, args=(path, letter)) for letter in "ab"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert sorted(path.read_text()) == ["a"] * 20 + ["b"] * 20


def test_edited_keeps_symlink_and_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "params.yaml"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    with edited(link) as (_, new):
        new.write_text("new")
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o600)


def test_edited_takes_away_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("old")
    if os.fork() == 0:
        with edited(path) as (_, new):
            new.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    assert path.read_text() == "old"
    with edited(path) as (_, new):
        new.write_text("new")
    assert [one.name for one in tmp_path.iterdir()] == ["params.yaml"]
    assert path.read_text() == "new"


def test_edited_leaves_the_file_when_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("old")
    with pytest.raises(ValueError, match="no"), edited(path) as (_, new):
        new.write_text("new")
        raise ValueError("no")
    assert [one.name for one in tmp_path.iterdir()] == ["params.yaml"]
    assert path.read_text() == "old"
