"""Users in the event log: who is the same can be seen, and who it is can't."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.serving.pseudonyms import Pseudonyms


def test_pseudonym_outlives_a_start_and_differs_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / ".serving/users.salt"
    name = Pseudonyms(path).name("finance", "user ana@example.com")
    assert len(name) == 32 and name == Pseudonyms(path).name("finance", "user ana@example.com")
    assert len({name, Pseudonyms(path).name("media", "user ana@example.com")}) == 2
    assert name != Pseudonyms(tmp_path / "other").name("finance", "user ana@example.com")
    assert name != Pseudonyms(path).name("finance", "half a character \ud83d")


def test_salt_is_for_this_account_alone(tmp_path: Path) -> None:
    Pseudonyms(tmp_path / "users.salt")
    assert stat.S_IMODE((tmp_path / "users.salt").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["users.salt"]


def test_salt_is_one_however_many_start_together(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Pseudonyms(tmp_path / "users.salt"), range(32)))
    assert len({one.name("finance", "ana") for one in made}) == 1


def test_salt_of_another_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "users.salt").write_bytes(b"")
    with pytest.raises(LoraOpsError, match="should have 32 bytes and has 0: remove it"):
        Pseudonyms(tmp_path / "users.salt")


def test_salt_that_cannot_be_kept_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"users.salt can't be read or written \(.*\)\.$"):
        Pseudonyms(tmp_path / "file/users.salt")
