"""How often a test split was looked at: each version that is judged on it makes it less held out.

If somebody registers ten recipes and keeps the best of them on the test rows, these rows have chosen it. Its
metrics don't show that, but the registry can count.
"""

from typing import Any

from lora_ops.paths import MEMBERSHIP
from lora_ops.records.membership import read_groups
from lora_ops.records.registry import Looks
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

# One more row or group gives a test split another digest and hardly another content.
SAME_SHARE = 0.5


def looks(registry: Registry, version: Version) -> Looks:
    """Return how many versions were judged on the test rows of `version`, and which of them it is.

    Another version was judged on the same rows if its test split has at least half of the groups of this one's.
    A package of an older release names no groups: it counts if its rows are exactly the same.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    own = version.stored
    by_file: dict[str | None, bool] = {}
    judged = []
    for one in registry.versions(version.tenant):
        number, other = one.number, one.stored
        if number == version.number:
            continue
        file = _membership(other)
        if file not in by_file:  # most versions of a tenant have the same groups, so the same file
            by_file[file] = _share_groups(registry, own, other)
        if by_file[file] or other["evaluation"]["test_sha256"] == own["evaluation"]["test_sha256"]:
            judged.append(number)
    earlier = sum(number < version.number for number in judged)
    return Looks(number=earlier + 1, versions=len(judged) + 1, limit=registry.max_looks)


def _share_groups(registry: Registry, own: dict[str, Any], other: dict[str, Any]) -> bool:
    files = [file for file in (_membership(own), _membership(other)) if file]
    if len(files) < 2:
        return False
    mine, theirs = (read_groups(registry.files.checked(file, MEMBERSHIP)).get("test", set()) for file in files)
    return bool(mine) and len(mine & theirs) >= SAME_SHARE * len(mine)


def _membership(manifest: dict[str, Any]) -> str | None:
    return manifest["files"].get(MEMBERSHIP, {}).get("sha256")
