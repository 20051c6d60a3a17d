"""Which groups a version was trained on, and whether its numbers may stand beside another version's."""

from lora_ops.paths import MEMBERSHIP
from lora_ops.records.membership import read_groups
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

# Validation rows choose a recipe and end a training: what was tuned on is no test either.
SEEN = ("train", "validation")


def groups_of(registry: Registry, version: Version) -> dict[str, set[str]] | None:
    """Return split -> digests of the groups of a version; None where its package keeps no membership.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    file = version.manifest.files.get(MEMBERSHIP)
    if file is None:
        return None
    return read_groups(registry.files.checked(file.sha256, MEMBERSHIP))


def incomparable(registry: Registry, left: Version, right: Version) -> list[str]:
    """Return a sentence for each reason why the metrics of two versions can't be compared as they stand.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    reasons = []
    grouping = [str(version.manifest.params.get("data", {}).get("group")) for version in (left, right)]
    if grouping[0] != grouping[1]:
        reasons.append(
            f"{left.id} is grouped by {grouping[0]} and {right.id} by {grouping[1]}, so it can't be known "
            "whether one was trained on test groups of the other"
        )
        return reasons
    groups = {version.id: groups_of(registry, version) for version in (left, right)}
    for tested, trained in ((left.id, right.id), (right.id, left.id)):
        of_test, of_training = groups[tested], groups[trained]
        if of_test is None or of_training is None:
            missing = tested if of_test is None else trained
            reason = (
                f"{missing} keeps no {MEMBERSHIP} (an older package), so it can't be known whether one version "
                "was trained on test groups of the other"
            )
            if reason not in reasons:
                reasons.append(reason)
            continue
        seen = set().union(*(of_training.get(split, set()) for split in SEEN))
        shared = len(of_test.get("test", set()) & seen)
        if shared:
            tests = len(of_test["test"])
            reasons.append(f"{trained} was trained or tuned on {shared} of the {tests} test groups of {tested}")
    if left.manifest.evaluation.test_sha256 != right.manifest.evaluation.test_sha256:
        reasons.append(f"{left.id} and {right.id} were tested on different rows")
    return reasons
