"""Which earlier policy reports a newer one answers: a kinder suites/policy.yaml must not hide a failure.

A report that did not pass is answered by a newer one with the same prompts, budgets that are no larger, and the
same detector. Every other difference is for an approver to answer who is not the author.

These objections stop steps forward alone, as those of `lora_ops.registry.earlier_suites`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import AnyEvidence, Evidence, PolicyEvidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.answered_incidents import NAMED, review_that_names
from lora_ops.registry.objections import documents_on
from lora_ops.registry.policy_sources import asks_less, read_policy_source
from lora_ops.registry.reports import filed, load
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Summary, Version
from lora_ops.settings.policy import CHECKS
from lora_ops.settings.registry import EvidenceSettings

Reports = Sequence[tuple[Evidence, AnyEvidence]]


class Policies(NamedTuple):
    """The policy reports that a step of a version looks at; see `lora_ops.registry.earlier_suites.Suites`."""

    registry: Registry
    version: Version
    newest: PolicyEvidence | None
    history: Sequence[AuditEntry]
    own: Reports
    least: EvidenceSettings
    lost_counts: bool

    @classmethod
    def of(
        cls,
        registry: Registry,
        version: Version,
        history: Sequence[AuditEntry],
        given: Mapping[str, AnyEvidence],
        least: EvidenceSettings | None = None,
        *,
        lost_counts: bool = True,
    ) -> "Policies":
        """Read the policy reports of a version; the arguments are those of `Suites.of`.

        Raises:
            LoraOpsError: a report is missing or was changed.
        """
        last = filed(version, history).get("policy")
        newest = given.get("policy") or (load(registry.files, last) if last else None)
        return cls(
            registry,
            version,
            newest if isinstance(newest, PolicyEvidence) else None,
            history,
            list(documents_on(registry, version.summary, history, "policy")),
            least or registry.least,
            lost_counts,
        )

    def unanswered(self) -> Iterator[str]:
        """Yield what the version lacks because of its own earlier reports."""
        for one, document in self.own:
            yield from self._unanswered(one, document, self.version.summary, (), ())

    def unanswered_of(self, twin: Summary, of_twin: Sequence[AuditEntry], reports: Reports) -> Iterator[str]:
        """Yield what the version lacks because of the reports on its twin."""
        for one, document in reports:
            yield from self._unanswered(one, document, twin, of_twin, reports)

    def outvoted(self) -> Iterator[str]:
        """Yield each earlier report that did not pass and how the newer one asks less, answered or not."""
        for one, document in self.own:
            wrong = self._unpassed(document)
            differs = list(self._differences(document)) if wrong else []
            if isinstance(document, PolicyEvidence) and differs:
                answer = review_that_names(self.registry, one.sha256, self.version, self._seen((), ()))
                said = f"; {answer.actor} answered: '{answer.body['reason']}'" if answer else ""
                yield (
                    f"an earlier policy report did not pass ({one.summary}, {one.sha256[:NAMED]}…: "
                    f"{'; '.join(wrong)}), and a newer one counts, now {'; '.join(differs)}{said}"
                )

    def _unanswered(
        self,
        one: Evidence,
        document: AnyEvidence,
        of: Summary,
        of_twin: Sequence[AuditEntry],
        reports: Reports,
    ) -> Iterator[str]:
        wrong = self._unpassed(document)
        if not wrong or review_that_names(
            self.registry, one.sha256, self.version, self._seen(of_twin, reports)
        ):
            return
        differs = list(self._differences(document))
        if differs:
            mine, name = self.version.id, one.sha256[:NAMED]
            twin = "" if of.id == mine else f" on {of.id}, which has the same weights"
            yield (
                f"a policy report that answers the earlier one{twin} ({name}, {'; '.join(wrong)}; now "
                f"{'; '.join(differs)}), or a review of {mine} by an approver, not the author, after the last "
                f"report, whose reason names the earlier one ({name})"
            )

    def _unpassed(self, document: AnyEvidence) -> list[str]:
        """Return which checks of a computed report did not pass, in words."""
        if self.newest is None or document == self.newest:
            return []
        if not isinstance(document, PolicyEvidence) or not document.is_computed:
            return []  # what somebody typed is answered by its checks' names
        # Where no computed report is asked for, one that decides nothing is none.
        asked = ("fail", "undecided") if self.least.policy == "computed" else ("fail",)
        return [f"{one.name}: {one.verdict}" for one in document.checks if one.verdict in asked]

    def _seen(self, of_twin: Sequence[AuditEntry], reports: Reports) -> list[AuditEntry]:
        """Return the entries after the first report by the newest suite: who spoke before saw another one."""
        alike = {
            one.sha256
            for one, document in (*self.own, *reports)
            if isinstance(document, PolicyEvidence) and _suite(document) == _suite(self.newest)
        }
        entries = sorted((*self.history, *of_twin), key=lambda entry: entry.seq)
        shown = next((e.seq for e in entries if alike & {one.sha256 for one in e.evidence}), None)
        return [entry for entry in entries if shown is not None and entry.seq > shown]

    def _differences(self, document: AnyEvidence) -> Iterator[str]:
        """Yield in which ways the newest report asks less than an earlier one."""
        assert self.newest is not None and isinstance(document, PolicyEvidence)
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


def _suite(document: PolicyEvidence | None) -> tuple[object, ...]:
    """Return what a report was judged by: the file, the prompts, and the detectors."""
    if document is None:
        return ()
    detectors = [
        one.judged.detector.detector if one.judged and one.judged.detector else None for one in document.checks
    ]
    return document.policy_sha256, document.prompts_sha256, detectors
