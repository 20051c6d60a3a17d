"""Which earlier policy reports a newer one answers: see `lora_ops.registry.earlier_reports`.

A newer report asks no less if it has the same prompts, budgets that are no larger, and the same detector.
"""

from collections.abc import Iterator

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import AnyEvidence, PolicyEvidence
from lora_ops.registry.earlier_reports import EarlierReports
from lora_ops.registry.policy_sources import asks_less, read_policy_source
from lora_ops.registry.versions import Summary
from lora_ops.settings.policy import CHECKS


class Policies(EarlierReports[PolicyEvidence]):
    """The policy reports that a step of a version looks at."""

    kind = "policy"

    @staticmethod
    def own_form(document: AnyEvidence | None) -> PolicyEvidence | None:
        """Return a policy report as it is; None for another one."""
        return document if isinstance(document, PolicyEvidence) else None

    def unpassed(self, document: PolicyEvidence) -> list[str]:
        """Return which checks of a computed report did not pass; none where no newer report could answer."""
        if self.newest is None or not document.is_computed:
            return []  # what somebody typed is answered by its checks' names
        # Where no computed report is asked for, one that decides nothing is none.
        asked = ("fail", "undecided") if self.least.policy == "computed" else ("fail",)
        return [f"{one.name}: {one.verdict}" for one in document.checks if one.verdict in asked]

    @staticmethod
    def judged_by(document: PolicyEvidence) -> object:
        """Return the digests of suites/policy.yaml and of the prompts, and the detectors."""
        detectors = [
            one.judged.detector.detector if one.judged and one.judged.detector else None
            for one in document.checks
        ]
        return document.policy_sha256, document.prompts_sha256, detectors

    def outvoted(self) -> Iterator[str]:
        """Yield each earlier report that did not pass where the newer one asks less, and who answered it."""
        for one, document, wrong in self.earlier():
            differs = list(self.differences(document, self.version.summary))
            if differs:  # `objections.outvoted` names the others
                yield self.replaced(one, wrong, differs)

    def differences(self, document: PolicyEvidence, of: Summary) -> Iterator[str]:
        """Yield in which ways the newest report asks less than an earlier one."""
        assert self.newest is not None
        if not self.newest.is_computed:
            yield "somebody typed its rows"
            return
        try:
            mine, theirs = (read_policy_source(self.registry, one) for one in (self.newest, document))
        except LoraOpsError as error:
            if self.lost_counts:
                yield f"nobody can tell how they differ: {str(error).rstrip('.')}"
            return
        failed = {one.name for one in document.checks if one.verdict == "fail"}
        named = [name for name in CHECKS if name in failed]
        yield from asks_less(mine, theirs, same_rows=True, failed=named)
