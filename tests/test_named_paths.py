"""Paths that people name: what is wrong with one, in words."""

from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.named_paths import follow, why_no_file


def test_symlink_is_followed_to_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    assert follow(tmp_path / "link", "SOURCE") == (tmp_path / "there").resolve()


def test_symlinks_in_a_circle_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    with pytest.raises(LoraOpsError, match="SOURCE: .*/one is a symlink that leads back to itself: mend it"):
        follow(tmp_path / "one", "SOURCE")


def test_name_that_no_file_can_have_is_one_sentence() -> None:
    with pytest.raises(LoraOpsError, match="SOURCE: no file can have the name .*null"):
        follow(Path("a\0b"), "SOURCE")


def test_why_there_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    assert why_no_file(tmp_path).endswith(" is a folder, not a file")
    assert why_no_file(tmp_path / "link").endswith("/link is a symlink that leads to no file")
    assert why_no_file(tmp_path / "none").startswith("there is no file ")
