"""Which earlier regression reports a newer one answers: see `lora_ops.registry.earlier_reports`.

A newer report asks no less if it holds the earlier cases as they were, judges them no less strictly, and
compares with the same systems. Cases that are added to a slice that failed would hide the failure among easy
ones.
"""

from collections.abc import Iterator, Sequence

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import AnyEvidence, RegressionEvidence
from lora_ops.records.regression import Verdict
from lora_ops.registry.earlier_reports import EarlierReports
from lora_ops.registry.report_lacks import unpassed
from lora_ops.registry.suite_changes import case_changes, content, listed, looser_settings, read_source
from lora_ops.registry.versions import Summary


class Suites(EarlierReports[RegressionEvidence]):
    """The regression reports that a step of a version looks at."""

    kind = "regression"

    @staticmethod
    def own_form(document: AnyEvidence | None) -> RegressionEvidence | None:
        """Return a regression report as it is; None for another one."""
        return document if isinstance(document, RegressionEvidence) else None

    def unpassed(self, document: RegressionEvidence) -> list[str]:
        """Return which slices, metrics and cases an earlier report judges and does not pass.

        A package whose answers base model and adapter do not give did not pass either.
        """
        asked = self.least.regression and self.least.evaluation_again
        is_other = asked and document.evaluated is not None and document.evaluated.verdict == "fail"
        return [
            *unpassed(document, self.least),
            *(["held-out rows answered again: fail"] if is_other else []),
        ]

    @staticmethod
    def judged_by(document: RegressionEvidence) -> object:
        """Return the digest of the suite."""
        return document.cases_sha256

    def outvoted(self) -> Iterator[str]:
        """Yield each earlier report that did not pass, how the newer one differs, and who answered it."""
        for one, document, wrong in self.earlier():
            # Added cases answer a report that was undecided, and whoever approves must see them.
            differs = list(self.differences(document, self.version.summary, ("fail", "undecided")))
            yield self.replaced(one, wrong, differs)

    def differences(
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
