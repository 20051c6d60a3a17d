"""Evidence of a version: made from raw results, kept by digest, and read back."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.free_text import require_text
from lora_ops.hashing import sha256_text
from lora_ops.paths import EVALUATION
from lora_ops.records.drift import DriftSummary
from lora_ops.records.evidence import (
    DOCUMENT,
    REPLAYED,
    AnyEvidence,
    DriftEvidence,
    Evidence,
    EvidenceKind,
    HumanEvaluation,
    HumanEvidence,
    LiveEvidence,
    PolicyCheck,
    PolicyEvidence,
    TrafficEvidence,
)
from lora_ops.records.live import LiveSummary
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.authors import author_marks
from lora_ops.registry.counting import CLOCKS_DIFFER, COUNT, About, count
from lora_ops.registry.demo import SAMPLE, is_demo
from lora_ops.registry.files import FileStore
from lora_ops.registry.roles import owners_of, unknown_author
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.registry import EvidenceSettings
from lora_ops.small_files import read_json

# What no release asked for before there were gates and review sessions.
BEFORE_GATES = {
    "regression": False,
    "answers_again": False,
    "evaluation_again": False,
    "texts_again": False,
    "fair_opponent": False,
    "release_notes": False,
    "policy": "file",
    "votes": "file",
    "agreement": -1.0,
    "rollout": "optional",
}


class Report(NamedTuple):
    """A document that is not kept yet, with the bytes that it was counted from."""

    document: AnyEvidence
    source: bytes
    summary: str

    @property
    def reference(self) -> Evidence:
        """How the audit log names it."""
        return Evidence(
            kind=self.document.kind,
            sha256=sha256_text(self.document.to_json()),
            summary=self.summary,
            source_sha256=self.document.source.sha256,
        )

    def keep(self, files: FileStore) -> Evidence:
        """Keep the document and its source, and return the reference to it."""
        files.add_bytes(self.source)
        files.add_bytes(self.document.to_json().encode())
        return self.reference


def make(
    registry: Registry,
    reference: str,
    kind: str,
    path: Path,
    summary: str | None = None,
    *,
    since: datetime | None = None,
) -> Report:
    """Count raw results into a document about one version; nothing is kept yet.

    Args:
        registry: where the version is.
        reference: which version.
        kind: which kind of evidence; see `count`.
        path: the raw results.
        summary: one sentence for people; default: the file's name.
        since: requests from before don't count, such as those of a rollout's earlier attempt; None: they count
            from when the version entered the stage.

    Raises:
        LoraOpsError: there is no such version or kind, nothing to count, or a row is wrong or about another
            version; or votes are to be counted, and owners.yaml does not name the author, who has none.
    """
    version = registry.get(reference, whole=False)
    if kind == "evaluation":
        raise LoraOpsError(
            f"The evaluation of {version.id} is the {EVALUATION} of its package: nothing else counts, so it "
            "can't be filed."
        )
    if kind == "regression":
        raise LoraOpsError(
            f"Nobody files a regression report by hand: `lora-ops gate {version.id}` computes it from the "
            "answers in its package."
        )
    if kind == "release_notes":
        raise LoraOpsError(
            f"Release notes are filed by `lora-ops release file {version.id}`, which adds what is known."
        )
    if kind == "drift":
        raise LoraOpsError(f"Nobody files drift by hand: `lora-ops monitor drift {version.id}` measures it.")
    if kind == "kpi":
        raise LoraOpsError(
            f"KPIs are imported, and their uplift is computed: `lora-ops monitor kpi file {version.id}`."
        )
    if kind == "live_numbers":
        raise LoraOpsError(
            "Nobody files live numbers by hand: `lora-ops monitor report --file` takes them from its page."
        )
    if kind not in COUNT:
        raise LoraOpsError(f"There is no evidence of kind '{kind}' (kinds: {', '.join(COUNT)}).")
    if kind == "policy" and registry.least.policy == "computed":
        raise Refused(
            f"Nobody files a policy report by hand: `lora-ops gate {version.id}` judges the answers of its "
            "adapter by suites/policy.yaml. `registry.evidence.policy: file` takes rows, and `show` says so."
        )
    if kind == "human_evaluation" and registry.least.votes == "session":
        raise Refused(
            f"Votes on {version.id} are given in a review session, not written into a file: `lora-ops review "
            f"start {version.id}`. `registry.evidence.votes: file` takes a file, and `show` says so."
        )
    team = owners_of(registry, version.tenant) if kind == "human_evaluation" else None
    if team and team.person(version.summary.author) is None:
        raise Refused(f"The votes on {version.id} can't be counted yet; missing: {unknown_author(version)}.")
    entered = _entered(registry, version, kind)
    about = About(
        tenant=version.tenant,
        adapter=version.id,
        content_digest=version.summary.content_digest,
        since=max(entered, since) if entered and since else entered,
        now=registry.clock(),
        votes_needed=registry.least.annotators,
        team=team,
        author=version.summary.author,
        author_marks=author_marks(registry, version) if team else frozenset(),
        accept_replay=registry.accept_replay,
        is_demo=is_demo(registry),
    )
    document, source = count(kind, about, path)
    said = require_text(summary, "Say it in a sentence (--summary)") if summary else path.name
    if isinstance(document, TrafficEvidence) and document.replayed:
        said = f"{REPLAYED}: {said}"  # whoever files it, by a command or by hand
    if isinstance(document, HumanEvidence) and document.samples:
        said = f"{SAMPLE}: {said}"
    return Report(document, source, said)


def _entered(registry: Registry, version: Version, stage: str) -> datetime | None:
    """Return when a version entered a stage last; None while it has not.

    The order of the log is certain, its clocks are not: where one ran behind, the time of the entries above it
    counts, so that nobody lengthens a stage by setting a clock back.
    """
    entries = registry.log.entries(version.tenant, version.number)
    number = str(version.number)
    entered = [entry.seq for entry in entries if entry.effects.get("states", {}).get(number) == stage]
    if not entered:
        return None
    rows = registry.log.rows()
    return max(datetime.fromisoformat(row.at) for row in rows if row.seq <= entered[-1])


def own_evidence(history: Sequence[AuditEntry], number: int) -> list[Evidence]:
    """Return every report on version `number` itself, oldest first; not those on one that took its place."""
    return [
        one
        for entry in history
        # A rollback's entry is about the version that returns, and its evidence about the one that leaves.
        if entry.number == number and entry.body.get("concerns", number) == number
        for one in entry.evidence
    ]


def packaged_evaluation(version: Version) -> Evidence | None:
    """Return the evaluation in the package, the only one that counts; None where there is none."""
    file = version.manifest.files.get(EVALUATION)
    if file is None or file.sha256 != version.manifest.evaluation_report_sha256:
        return None
    return Evidence(kind="evaluation", sha256=file.sha256, summary=f"{EVALUATION} of the package")


def from_the_future(document: AnyEvidence, now: datetime) -> Iterator[str]:
    """Yield what is wrong with a document whose times have not come yet."""
    last = (
        max(document.made_at, document.last_at) if isinstance(document, TrafficEvidence) else document.made_at
    )
    if last > now + CLOCKS_DIFFER:
        yield f"a {document.kind} report of the past (the last one is dated {last.isoformat()})"


def filed(version: Version, history: Sequence[AuditEntry]) -> dict[str, Evidence]:
    """Return the evidence that counts now, by kind: the latest one filed, and the package's own evaluation."""
    found = {one.kind: one for one in own_evidence(history, version.number) if one.kind != "evaluation"}
    evaluation = packaged_evaluation(version)
    return ({"evaluation": evaluation} if evaluation else {}) | found


def load(files: FileStore, evidence: Evidence) -> AnyEvidence | None:
    """Return a kept document; None if an older release kept a file of another form.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    path = files.checked(evidence.sha256, f"the {evidence.kind} report")
    try:
        return DOCUMENT.validate_json(path.read_bytes())
    except ValidationError:
        return None


def last_document(
    registry: Registry, version: Version, kind: EvidenceKind, history: Sequence[AuditEntry] | None = None
) -> AnyEvidence | None:
    """Return the last report of a kind on a version; None without one, or where it has an older form.

    Args:
        registry: where.
        version: which.
        kind: of the report.
        history: the version's entries that count; default: all.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    if history is None:
        history = registry.log.entries(version.tenant, version.number)
    one = filed(version, history).get(kind)
    return load(registry.files, one) if one else None


def own_documents(registry: Registry, version: Version, kind: EvidenceKind) -> Iterator[AnyEvidence]:
    """Yield every report of a kind on a version itself, the latest first, but for those of an older form.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    history = registry.log.entries(version.tenant, version.number)
    for one in reversed(own_evidence(history, version.number)):
        document = load(registry.files, one) if one.kind == kind else None
        if document is not None:
            yield document


def recorded_minimums(entry: AuditEntry) -> EvidenceSettings | None:
    """Return what evidence had to say by the rules of an entry; None where an older release wrote none.

    A minimum that only a newer release knows is left out: it must not stop a rollback on this machine. An entry
    of an older release asked for no review session.

    Raises:
        LoraOpsError: the rules can't be read.
    """
    if "rules" not in entry.body:
        return None
    try:
        stated = dict(entry.body["rules"]["least"])
        known = {name: stated[name] for name in EvidenceSettings.model_fields if name in stated}
        return EvidenceSettings.model_validate({**BEFORE_GATES, **known})
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise LoraOpsError(f"Entry {entry.seq} of the audit log has no rules that can be read.") from error


def gap_limit(registry: Registry, version: Version) -> float | None:
    """Return today's `evaluate.max_gap` of a version's tenant; where nobody set it, that of its evaluation.

    Raises:
        LoraOpsError: the stored manifest does not fit its schema.
    """
    recorded = version.manifest.params.get("evaluate", {}).get("max_gap")
    return registry.max_gap.get(version.tenant, recorded)


# What a record quotes.


def human_evaluation(files: FileStore, evidence: Evidence) -> HumanEvaluation | None:
    """Return what people said, from a document or from a file that an older release kept.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    found = load(files, evidence)
    if isinstance(found, HumanEvidence) and found.pairs:
        counts = found.model_dump(include={"annotators", "pairs", "adapter_better", "same", "base_better"})
        if found.review:
            counts["against"] = found.review.against
            counts["alpha"] = found.review.alpha.value if found.review.alpha else None
        return HumanEvaluation(**counts, report_sha256=evidence.sha256)
    try:
        return HumanEvaluation.model_validate({**_older(files, evidence), "report_sha256": evidence.sha256})
    except (ValidationError, TypeError):
        return None


def policy_checks(files: FileStore, evidence: Evidence) -> list[PolicyCheck] | None:
    """Return the policy checks of a document, or of a file that an older release kept.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    found = load(files, evidence)
    if isinstance(found, PolicyEvidence):
        return [one.model_copy(update={"report_sha256": evidence.sha256}) for one in found.checks]
    older = _older(files, evidence)
    try:
        rows = older if isinstance(older, list) else [older]
        return [PolicyCheck.model_validate({**row, "report_sha256": evidence.sha256}) for row in rows]
    except (ValidationError, TypeError):
        return None


def drift_summary(files: FileStore, evidence: Evidence) -> DriftSummary | None:
    """Return what the last measurement of drift said.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    found = load(files, evidence)
    if not isinstance(found, DriftEvidence):
        return None
    return DriftSummary(
        verdict=found.verdict,
        at=found.made_at,
        said=found.said,
        against=found.against,
        replaced=found.replaced,
        report_sha256=evidence.sha256,
    )


def live_summary(files: FileStore, evidence: Evidence) -> LiveSummary | None:
    """Return how a version did live, by the last weekly page that was filed.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    found = load(files, evidence)
    if not isinstance(found, LiveEvidence):
        return None
    return LiveSummary(numbers=found.numbers, at=found.made_at, report_sha256=evidence.sha256)


def _older(files: FileStore, evidence: Evidence) -> Any:
    try:
        return read_json(files.path(evidence.sha256))
    except ValueError:  # a page for people
        return None
