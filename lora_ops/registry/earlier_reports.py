"""Which earlier reports a newer one answers: a kinder suite must not hide a failure.

A report that did not pass is answered by a newer one that asks no less. Every other difference is for an
approver to answer who is not the author. `earlier_suites` says what "less" is for regression reports,
`earlier_policies` for policy reports.

These objections stop steps forward alone: in an incident nobody asks by which suite a version was judged.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, Self, TypeVar

from lora_ops.records.evidence import AnyEvidence, Evidence, PolicyEvidence, RegressionEvidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.answered_incidents import NAMED, review_that_names
from lora_ops.registry.objections import documents_on
from lora_ops.registry.reports import last_document
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Summary, Version
from lora_ops.settings.registry import EvidenceSettings

Reports = Sequence[tuple[Evidence, AnyEvidence]]
Document = TypeVar("Document", RegressionEvidence, PolicyEvidence)


@dataclass(frozen=True)
class EarlierReports(ABC, Generic[Document]):
    """The reports of one kind that a step of a version looks at.

    Attributes:
        registry: where.
        version: whose step it is.
        newest: its last report; None: it has none.
        history: its entries before the step.
        own: all reports on it, oldest first.
        least: the minimums.
        lost_counts: whether a lost source is an objection; judged afterwards, `verify` names it.
    """

    kind: ClassVar[Literal["regression", "policy"]]

    registry: Registry
    version: Version
    newest: Document | None
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
    ) -> Self:
        """Read the reports of a version.

        Args:
            registry: where.
            version: which.
            history: its entries before the step.
            given: the reports that the step files, by kind.
            least: the minimums; default: today's.
            lost_counts: see the class.

        Raises:
            LoraOpsError: a report is missing or was changed.
        """
        newest = given.get(cls.kind) or last_document(registry, version, cls.kind, history)
        return cls(
            registry,
            version,
            cls.own_form(newest),
            history,
            list(documents_on(registry, version.summary, history, cls.kind)),
            least or registry.least,
            lost_counts,
        )

    @staticmethod
    @abstractmethod
    def own_form(document: AnyEvidence | None) -> Document | None:
        """Return a report of this kind as it is; None for another one."""

    @abstractmethod
    def unpassed(self, document: Document) -> list[str]:
        """Return what an earlier report judges and does not pass, in words."""

    @abstractmethod
    def differences(self, document: Document, of: Summary) -> Iterator[str]:
        """Yield in which ways the newest report asks less than an earlier one on the version `of`."""

    @staticmethod
    @abstractmethod
    def judged_by(document: Document) -> object:
        """Return what a report was judged by: two reports by the same suite give the same."""

    @abstractmethod
    def outvoted(self) -> Iterator[str]:
        """Yield each earlier report that did not pass, how the newer one differs, and who answered it."""

    def unanswered(self) -> Iterator[str]:
        """Yield what the version lacks because of its own earlier reports."""
        if self.newest:
            for one, document in self.own:
                yield from self._unanswered(one, document, self.version.summary, (), ())

    def unanswered_of(self, twin: Summary, of_twin: Sequence[AuditEntry], reports: Reports) -> Iterator[str]:
        """Yield what the version lacks because of the reports on its twin.

        A version without a report answers for the one that counts on its twin.
        """
        for one, document in reports if self.newest else reports[-1:]:
            yield from self._unanswered(one, document, twin, of_twin, reports)

    def earlier(self) -> Iterator[tuple[Evidence, Document, list[str]]]:
        """Yield each earlier report on the version that did not pass, and what it did not pass."""
        for one, document in self.own if self.newest else ():
            found = self.own_form(document)
            wrong = self.unpassed(found) if found and found != self.newest else []
            if found and wrong:
                yield one, found, wrong

    def replaced(self, one: Evidence, wrong: Sequence[str], differs: Sequence[str]) -> str:
        """Return that a newer report took the place of one that did not pass, and who answered it, in words."""
        answer = review_that_names(self.registry, one.sha256, self.version, self._seen((), ()))
        said = f"; {answer.actor} answered: '{answer.body['reason']}'" if answer else ""
        now = f", now {'; '.join(differs)}" if differs else ""
        return (
            f"an earlier {self.kind} report did not pass ({one.summary}, {one.sha256[:NAMED]}…: "
            f"{'; '.join(wrong)}), and a newer one counts{now}{said}"
        )

    def _unanswered(
        self,
        one: Evidence,
        document: AnyEvidence,
        of: Summary,
        of_twin: Sequence[AuditEntry],
        reports: Reports,
    ) -> Iterator[str]:
        earlier = self.own_form(document)
        if earlier is None or earlier == self.newest:
            return
        wrong = self.unpassed(earlier)
        if not wrong or review_that_names(
            self.registry, one.sha256, self.version, self._seen(of_twin, reports)
        ):
            return
        differs = list(self.differences(earlier, of))
        if differs:
            mine, name = self.version.id, one.sha256[:NAMED]
            twin = "" if of.id == mine else f" on {of.id}, which has the same weights"
            yield (
                f"a {self.kind} report that answers the earlier one{twin} ({name}, {'; '.join(wrong)}; now "
                f"{'; '.join(differs)}), or a review of {mine} by an approver, not the author, after the last "
                f"report, whose reason names the earlier one ({name})"
            )

    def _seen(self, of_twin: Sequence[AuditEntry], reports: Reports) -> list[AuditEntry]:
        """Return the entries after the first report by the newest suite: who spoke before saw another one."""
        if self.newest is None:
            return []
        suite = self.judged_by(self.newest)
        found = [(one.sha256, self.own_form(document)) for one, document in (*self.own, *reports)]
        alike = {digest for digest, document in found if document and self.judged_by(document) == suite}
        entries = sorted((*self.history, *of_twin), key=lambda entry: entry.seq)
        shown = next((e.seq for e in entries if alike & {one.sha256 for one in e.evidence}), None)
        return [entry for entry in entries if shown is not None and entry.seq > shown]
