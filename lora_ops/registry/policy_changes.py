"""What the policy report of a version asks less than that of production, for whoever approves."""

from collections.abc import Iterator

from lora_ops.records.detectors import DetectorRecord
from lora_ops.records.evidence import PolicyCheck, PolicyEvidence
from lora_ops.registry.answered_incidents import NAMED
from lora_ops.registry.approvals import promotion_in
from lora_ops.registry.counting import plain
from lora_ops.registry.reports import last_document, load
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version


def kept_policy(registry: Registry, version: Version) -> PolicyEvidence | None:
    """Return the last policy report on a version; None where none was filed, or one of another form.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    document = last_document(registry, version, "policy")
    return document if isinstance(document, PolicyEvidence) else None


def promoted_policy(registry: Registry, version: Version) -> PolicyEvidence | None:
    """Return the policy report by which a version went into production; without one, the last one.

    A report that is filed later on a version in production must not decide what its followers are held to.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    promoted = promotion_in(version, registry.log.entries(version.tenant, version.number))
    named = [one for one in promoted.evidence if one.kind == "policy"] if promoted else []
    document = load(registry.files, named[0]) if named else None
    return document if isinstance(document, PolicyEvidence) else kept_policy(registry, version)


def policy_changes(mine: PolicyEvidence | None, theirs: PolicyEvidence | None, other: str) -> Iterator[str]:
    """Yield in which ways a policy report asks less than an earlier one, in words.

    Args:
        mine: the version's; None: it has not come to the step that needs one.
        theirs: that of the version in production; None: it has none, so nothing can be less.
        other: the id of that version.
    """
    if mine is None or theirs is None:
        return
    own = {plain(one.name): one for one in mine.checks}
    before = {plain(one.name): one for one in theirs.checks}
    gone = [before[name].name for name in sorted(before.keys() - own.keys())]
    if gone:
        yield f"its policy report leaves out checks of {other}, which was in production: {', '.join(gone)}"
    looser = [said for name in sorted(before.keys() & own.keys()) for said in _looser(own[name], before[name])]
    if looser:
        yield f"its policy is looser than that of {other}, which was in production: {'; '.join(looser)}"


def _looser(mine: PolicyCheck, theirs: PolicyCheck) -> Iterator[str]:
    """Yield how one check asks less: by its budget, by its prompts, or because something else judges."""
    now, then = mine.judged, theirs.judged
    if now is None or then is None:
        return  # of typed rows nothing but the name can be compared
    if now.budget > then.budget:
        yield f"{mine.name} at most {now.budget:g}, not {then.budget:g} ({now.reason})"
    if mine.prompts < theirs.prompts:
        yield f"{mine.name} of {mine.prompts} prompts, not {theirs.prompts}"
    detectors = [one.detector.detector if one.detector else None for one in (now, then)]
    digests = {one.digest for one in detectors if one and one.digest}
    # A classifier in a folder keeps its name when other weights are put there.
    judges = [
        _judge(one, with_digest=len(digests) > 1) if one else said.judge
        for one, said in zip(detectors, (now, then), strict=True)
    ]
    if judges[0] != judges[1]:
        yield f"{mine.name} judged by {judges[0]}, not {judges[1]}"


def _judge(detector: DetectorRecord, *, with_digest: bool) -> str:
    threshold = "" if detector.threshold is None else f", threshold {detector.threshold:g}"
    digest = f"; {detector.digest[:NAMED]}" if with_digest and detector.digest else ""
    return f"{detector.name} ({detector.version}{threshold}{digest})"
