"""Files that are small by nature: what lies in their place must not stop a command, or fill its memory."""

import os
import resource
from pathlib import Path

import pytest

from lora_ops.small_files import LARGEST, parse_json, read_json, read_small, read_text, write_new


def test_read_text_returns_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"é": 1}', encoding="utf-8")
    assert read_text(tmp_path / "file") == '{"é": 1}'
    assert read_json(tmp_path / "file") == {"é": 1}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "large"])
def test_read_small_refuses_what_is_no_small_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(LARGEST + 1)
    with pytest.raises(OSError) as told:
        read_small(path)
    assert str(told.value.filename) == str(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 5000, b"\xff"])
def test_parse_json_refuses_with_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_parse_json_tells_of_a_name_that_is_there_twice() -> None:
    text = '[{"b": {"a": 1, "a": 2}}]'
    assert parse_json(text) == [{"b": {"a": 2}}]
    with pytest.raises(ValueError, match="it has 'a' twice"):
        parse_json(text, unique=True)
    assert parse_json('{"a": {"a": 1}}', unique=True) == {"a": {"a": 1}}


def test_write_new_leaves_nothing_of_what_it_cannot_finish(tmp_path: Path) -> None:
    """A full disk left half of a file, and the next try was refused because of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_new(tmp_path / "file", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "file").exists()
    write_new(tmp_path / "file", "one\r\ntwo\n")
    assert (tmp_path / "file").read_bytes() == b"one\r\ntwo\n"
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "file", "")
