"""A pinned package file: real pip against a folder of archives, no network."""

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.fetch import fetch_package
from lora_ops.hashing import sha256_file


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into instead of an index, with one wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "merchants-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("merchants/list.csv", "text,label\n")
        wheel.writestr(
            "merchants-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: merchants\nVersion: 1.0\n"
        )
        wheel.writestr("merchants-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("merchants-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_archive_is_kept_under_its_digest_and_fetched_once(index: Path, tmp_path: Path) -> None:
    digest = sha256_file(next(index.iterdir()))
    first = fetch_package("merchants==1.0", digest, tmp_path / "raw")
    assert first == tmp_path / "raw" / digest / "merchants-1.0-py3-none-any.whl"
    next(index.iterdir()).unlink()
    assert fetch_package("merchants==1.0", digest, tmp_path / "raw") == first


def test_other_bytes_than_the_pinned_ones_are_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match=r"params.yaml pins 0000.*; nothing was used"):
        fetch_package("merchants==1.0", "0" * 64, tmp_path / "raw")
    assert not list((tmp_path / "raw").iterdir())


def test_a_refusal_names_the_file_that_pins_the_archive(index: Path, tmp_path: Path) -> None:
    """The red team's archive is pinned in suites/policy.yaml, and people were sent to params.yaml."""
    with pytest.raises(LoraOpsError, match=r"a.yaml pins 0000.* put the new digest into a.yaml"):
        fetch_package("merchants==1.0", "0" * 64, tmp_path / "raw", pinned_in="a.yaml")


@pytest.mark.parametrize("odd", ["folder", "pipe", "symlink", "no folder"])
def test_fetch_names_what_is_no_archive(tmp_path: Path, odd: str) -> None:
    """A pipe in the place of a kept archive was read for ever."""
    kept = tmp_path / ("0" * 64)
    path = kept / "merchants.whl"
    if odd == "no folder":
        kept.write_text("")
    else:
        kept.mkdir()
    if odd == "folder":
        path.mkdir()
    elif odd == "pipe":
        os.mkfifo(path)
    elif odd == "symlink":
        path.symlink_to("nowhere")
    with pytest.raises(Damaged, match=r"0000.* is no (file|folder): delete it and run again"):
        fetch_package("merchants==1.0", "0" * 64, tmp_path)


@pytest.fixture
def source_index(index: Path, tmp_path: Path) -> Path:
    """The same with a source archive whose setup.py leaves a trace when it runs."""
    setup = tmp_path / "setup.py"
    trace = tmp_path / "ran"
    setup.write_text(
        f"import pathlib, setuptools\npathlib.Path({str(trace)!r}).touch()\n"
        "setuptools.setup(name='ratings', version='1.0')\n"
    )
    with tarfile.open(index / "ratings-1.0.tar.gz", "w:gz") as archive:
        archive.add(setup, "ratings-1.0/setup.py")
    return index


def test_a_source_archive_of_other_bytes_is_refused_before_any_of_its_code_runs(
    source_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "1")  # an isolated build would need an index for setuptools
    with pytest.raises(LoraOpsError, match=r"gave a file with SHA-256 [0-9a-f]{64}, params.yaml pins 0000"):
        fetch_package("ratings==1.0", "0" * 64, tmp_path / "raw", sdist=True)
    assert not (tmp_path / "ran").exists()
    digest = sha256_file(source_index / "ratings-1.0.tar.gz")
    kept = fetch_package("ratings==1.0", digest, tmp_path / "raw", sdist=True)
    assert kept.name == "ratings-1.0.tar.gz"
    assert (tmp_path / "ran").exists()  # of the pinned bytes, pip asks setup.py for the name and version


def test_a_kept_archive_that_was_changed_is_refused(index: Path, tmp_path: Path) -> None:
    digest = sha256_file(next(index.iterdir()))
    fetch_package("merchants==1.0", digest, tmp_path / "raw").write_bytes(b"changed")
    with pytest.raises(LoraOpsError, match="was changed on disk"):
        fetch_package("merchants==1.0", digest, tmp_path / "raw")


def test_a_version_that_does_not_exist_is_one_sentence(index: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match=r"Cannot download merchants==9.9: .*\.$") as told:
        fetch_package("merchants==9.9", "0" * 64, tmp_path / "raw")
    assert "\n" not in str(told.value)
