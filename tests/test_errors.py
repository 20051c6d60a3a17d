"""Errors that a person can mend: their kinds, and what the system said."""

import errno
import os

import pytest

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Unavailable, disk_reason, with_text
from lora_ops.processes import InUse
from lora_ops.registry.shared import LostRace
from lora_ops.registry.signing_keys import MissingKey


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Damaged("x"), Damaged),
        (LoraOpsError("x"), LoraOpsError),
        (MissingKey.__new__(MissingKey), NotFound),
        (LostRace("x"), Unavailable),
        (InUse("x"), Unavailable),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_error_keeps_its_kind_with_another_text(error: LoraOpsError, kind: type[LoraOpsError]) -> None:
    told = with_text(error, "it is late")
    assert type(told) is kind and str(told) == "it is late"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_named_with_the_file_and_the_way_out(number: int) -> None:
    said = disk_reason(OSError(number, os.strerror(number), "/srv/registry/files/ab"))
    assert said == f"{os.strerror(number)}: /srv/registry/files/ab; free some space and run this again"
    assert disk_reason(OSError(errno.EACCES, "Permission denied", "/x")) == "Permission denied: /x"
