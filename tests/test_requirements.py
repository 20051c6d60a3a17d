"""What pyproject.toml allows is what the lock holds and these tests ran with: nothing older."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

LOCK = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED = [
    Requirement(text)
    for text in (
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
        *PROJECT["build-system"]["requires"],
    )
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_no_version_is_allowed_that_was_not_tested(asked: Requirement) -> None:
    """Older ones of fastapi and starlette took the path from the client's Host header, past key and limits."""
    locked = LOCK[canonicalize_name(asked.name)]
    assert asked.specifier.contains(locked)
    bounds = [one.version for one in asked.specifier if one.operator in (">=", "~=")]
    if bounds:
        told = f"after `make lock`, raise {asked.name} in pyproject.toml to {locked}"
        assert [Version(bound).release[:2] for bound in bounds] == [locked.release[:2]], told
    else:
        assert any(one.operator == "<" for one in asked.specifier)
