"""Which earlier regression reports a newer one answers: a kinder suite must not hide a failure.

A report that did not pass is answered by a newer one that holds its cases as they were, judges them no less
strictly, and compares with the same systems. Cases that are added to a slice that failed would hide the failure
among easy ones. Every other difference is for an approver to answer who is not the author.

These objections stop steps forward alone: in an incident nobody asks by which suite a version was judged.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import AnyEvidence, Evidence, RegressionEvidence
from lora_ops.records.registry import AuditEntry
from lora_ops.records.regression import Verdict
from lora_ops.registry.answered_incidents import NAMED, review_that_names
from lora_ops.registry.objections import documents_on
from lora_ops.registry.report_lacks import unpassed
from lora_ops.registry.reports import filed, load
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import case_changes, content, listed, looser_settings, read_source
from lora_ops.registry.versions import Summary, Version
from lora_ops.settings.registry import EvidenceSettings

Reports = Sequence[tuple[Evidence, AnyEvidence]]


class Suites(NamedTuple):
    """The regression reports that a step of a version looks at.

    Attributes:
        registry: where.
        version: whose step it is.
        newest: its last report; None: it has none.
        history: its entries before the step.
        own: all reports on it, oldest first.
        least: the minimums.
        lost_counts: whether a lost source is an objection; judged afterwards, `verify` names it.
    """

    registry: Registry
    version: Version
    newest: RegressionEvidence | None
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
    ) -> "Suites":
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
        last = filed(version, history).get("regression")
        newest = given.get("regression") or (load(registry.files, last) if last else None)
        return cls(
            registry,
            version,
            newest if isinstance(newest, RegressionEvidence) else None,
            history,
            list(documents_on(registry, version.summary, history, "regression")),
            least or registry.least,
            lost_counts,
        )

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

    def outvoted(self) -> Iterator[str]:
        """Yield each earlier report that did not pass, how the newer one differs, and who answered it."""
        for one, document in self.own if self.newest else ():
            if not isinstance(document, RegressionEvidence) or document == self.newest:
                continue
            wrong = unpassed(document, self.least)
            # Added cases answer a report that was undecided, and whoever approves must see them.
            differs = "; ".join(self._differences(document, self.version.summary, ("fail", "undecided")))
            answer = review_that_names(self.registry, one.sha256, self.version, self._seen((), ()))
            if wrong:
                said = f"; {answer.actor} answered: '{answer.body['reason']}'" if answer else ""
                yield (
                    f"an earlier regression report did not pass ({one.summary}, {one.sha256[:NAMED]}…: "
                    f"{'; '.join(wrong)}), and a newer one counts{f', now {differs}' if differs else ''}{said}"
                )

    def _unanswered(
        self,
        one: Evidence,
        document: AnyEvidence,
        of: Summary,
        of_twin: Sequence[AuditEntry],
        reports: Reports,
    ) -> Iterator[str]:
        if not isinstance(document, RegressionEvidence) or document == self.newest:
            return
        wrong = unpassed(document, self.least)
        if not wrong or review_that_names(
            self.registry, one.sha256, self.version, self._seen(of_twin, reports)
        ):
            return
        differs = list(self._differences(document, of))
        if differs:
            mine, name = self.version.id, one.sha256[:NAMED]
            twin = "" if of.id == mine else f" on {of.id}, which has the same weights"
            yield (
                f"a regression report that answers the earlier one{twin} ({name}, {'; '.join(wrong)}; now "
                f"{'; '.join(differs)}), or a review of {mine} by an approver, not the author, after the last "
                f"report, whose reason names the earlier one ({name})"
            )

    def _seen(self, of_twin: Sequence[AuditEntry], reports: Reports) -> list[AuditEntry]:
        """Return the entries after the first report by the newest suite: who spoke before saw another one."""
        if self.newest is None:
            return []
        alike = {
            one.sha256
            for one, document in (*self.own, *reports)
            if isinstance(document, RegressionEvidence) and document.cases_sha256 == self.newest.cases_sha256
        }
        entries = sorted((*self.history, *of_twin), key=lambda entry: entry.seq)
        shown = next((e.seq for e in entries if alike & {one.sha256 for one in e.evidence}), None)
        return [entry for entry in entries if shown is not None and entry.seq > shown]

    def _differences(
        self, document: RegressionEvidence, of: Summary, closed: Sequence[Verdict] = ("fail",)
    ) -> Iterator[str]:
        """Yield in which ways the newest report asks less than an earlier one, as it is now.

        Args:
            document: the earlier report.
            of: the version that it is about.
            closed: verdicts of a slice that takes no further cases.
        """
        if self.newest is None:
            yield f"{self.version.id} has none"
            return
        try:
            mine = read_source(self.registry, self.version.id, self.newest.source.sha256).cases
            theirs = read_source(self.registry, of.id, document.source.sha256).cases
        except LoraOpsError as error:
            if self.lost_counts:
                yield f"nobody can tell how they differ: {str(error).rstrip('.')}"
            return
        found = case_changes(mine.cases, theirs.cases)
        if found.gone:
            yield f"without the cases {listed(found.gone)}"
        if found.changed:
            yield f"with other cases under the names {listed(found.changed)}"
        if found.regrouped:
            yield f"with other groups of the cases {listed(found.regrouped)}"
        if set(mine.labels) != set(theirs.labels):
            yield "with other labels"
        yield from looser_settings(mine, theirs)
        failed = {one.what for one in document.compared if one.gating and one.comparison.verdict in closed}
        failed |= {one.slice for one in document.least if one.verdict in closed}
        before = {content(one) for one in theirs.cases}
        added = [one.case.id for one in mine.cases if one.case.slice in failed and content(one) not in before]
        if added:
            yield f"with cases added to what did not pass ({listed(added)})"
        against = {one.role: one.digest for one in self.newest.baselines}
        for old in document.baselines:
            # Which version in production it must be is asked by itself.
            if old.role == "production" and old.role not in against:
                yield f"not compared with a version in production, as with {old.name}"
            elif old.role == "base" and against.get("base") != old.digest:
                yield "compared with another base model"
