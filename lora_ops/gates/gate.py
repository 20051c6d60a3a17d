"""All gates of a version, one row each: those before `shadow`, and the reports that its rollout has filed."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.exit_codes import ExitCode
from lora_ops.gates.candidate import OtherAnswers
from lora_ops.gates.differences import differences
from lora_ops.gates.gather import gather
from lora_ops.gates.packages_differ import unlike_packages
from lora_ops.gates.policy_gate import policy_rows, replay_policy
from lora_ops.gates.regression import regression_report
from lora_ops.gates.review.evidence import recount
from lora_ops.gates.rows import GateRow, Made, not_asked_row, not_made, refused_row
from lora_ops.records.evaluation import BASES, ColumnBias
from lora_ops.records.evidence import (
    TRAFFIC,
    AnyEvidence,
    Evidence,
    HumanEvidence,
    PolicyEvidence,
    RegressionEvidence,
    TrafficEvidence,
)
from lora_ops.records.regression import Compared, Least, RegressionSource, Verdict
from lora_ops.registry.objections import kept_lacks, other_texts_judged
from lora_ops.registry.packages import check_kept
from lora_ops.registry.report_lacks import not_evaluated_again, not_given_again, unfair_opponent
from lora_ops.registry.reports import Report, filed, gap_limit, load
from lora_ops.registry.requirements import GateObjections, gate_objections
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins
from lora_ops.registry.versions import Version
from lora_ops.settings.registry import EvidenceSettings

SAME_WEIGHTS = "versions with the same weights"
KINDS = ("regression", "policy", "human_evaluation")


def make_regression_report(registry: Registry, version: Version, root: Path) -> Made:
    """Make the regression report of a version, and notes on what it leaves out.

    There is none, and a note says why, where its package or a baseline lacks answers.

    Raises:
        Damaged: a kept file is missing or was changed.
    """
    try:
        gathered = gather(registry, version, root)
        document = regression_report(gathered.source, version.tenant, registry.clock())
    except Damaged:
        raise
    except OtherAnswers as error:
        return Made(None, [], (refused_row("regression", error),))
    except LoraOpsError as error:
        return not_made(registry, version, "regression", error)
    against = ", ".join(one.name for one in document.baselines)
    summary = f"{document.cases} cases of its suite against {against}"
    rows = (not_asked_row(version, gathered.not_asked),) if gathered.not_asked else ()
    return Made(Report(document, gathered.source.to_json().encode(), summary), gathered.notes, rows)


def gate_rows(registry: Registry, version: Version) -> list[GateRow]:
    """Return every gate of a version by what is kept and filed now; nothing is generated or filed.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    history = registry.log.entries(version.tenant, version.number)
    found = filed(version, history)
    against = gate_objections(registry, version, Twins(registry))
    by_kind = {
        "regression": against.regression,
        "policy": against.policy,
        "human_evaluation": against.review,
    }
    rows = [_package_row(registry, version), _freshness_row(registry, version)]
    rows += _evaluation_rows(registry, version, found.get("evaluation"))
    for kind in KINDS:
        one = found.get(kind)
        document = load(registry.files, one) if one else None
        lacking = list(kept_lacks(registry, version, history, one, now=registry.clock())) if one else []
        lacking += by_kind.get(kind, [])
        if kind == "human_evaluation" and registry.least.asks_texts_again:
            lacking += other_texts_judged(registry, version, history)
        if one is None or document is None:
            rows.append(GateRow(_title(kind), "missing", note=_how_to_make(kind, version.id)))
        elif isinstance(document, RegressionEvidence):
            rows += _regression_rows(document, one, lacking, registry.least)
            again = document.evaluated.bias if document.evaluated else {}
            rows += _gap_rows(registry, version, again, one, ", answered again")
        elif isinstance(document, PolicyEvidence) and document.is_computed:
            rows += policy_rows(document, one, lacking, registry.least)
        else:
            rows.append(_document_row(document, one, lacking))
    rows += [row for kind in TRAFFIC if kind in found for row in _traffic_rows(registry, version, found[kind])]
    return [*rows, *_twin_rows(against)]


def exit_code(rows: list[GateRow]) -> int:
    """Return 0 where all gates pass, 1 where one fails, 3 where none fails and one is undecided or missing."""
    verdicts = {row.verdict for row in rows}
    if "fail" in verdicts:
        return ExitCode.CHECK_FAILED
    return ExitCode.REFUSED if verdicts & {"undecided", "missing"} else ExitCode.OK


def replayed(registry: Registry, version: Version) -> dict[str, Evidence]:
    """Return the filed reports of a version that `replay` computes again, by kind.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    found = {}
    for kind, one in filed(version, registry.log.entries(version.tenant, version.number)).items():
        document = load(registry.files, one) if kind in KINDS else None
        reviewed = isinstance(document, HumanEvidence) and document.review is not None
        judged = isinstance(document, PolicyEvidence) and document.is_computed
        if reviewed or judged or isinstance(document, RegressionEvidence):
            found[kind] = one
    return found


def replay(registry: Registry, version: Version) -> Iterator[str]:
    """Compute each report that `replayed` names again from its kept source, and yield where it differs.

    The answers of the source are compared with those of the packages.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    found = replayed(registry, version)
    if "human_evaluation" in found:
        differs = recount(registry, found["human_evaluation"])
        yield from (f"human_evaluation.{name} is not what the kept votes give" for name in differs)
    if "policy" in found:
        yield from replay_policy(registry, version, found["policy"])
    if "regression" not in found:
        return
    one = found["regression"]
    document = load(registry.files, one)
    assert isinstance(document, RegressionEvidence)
    path = registry.files.checked(document.source.sha256, "the source of the regression report")
    try:
        source = RegressionSource.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Damaged(f"The source of the regression report {one.sha256[:12]}… has another form.") from error
    # What an earlier release kept lacks fields of this one: the digest of the kept bytes was checked above.
    again = regression_report(source, version.tenant, document.made_at)
    again = again.model_copy(update={"source": document.source})
    yield from differences("regression", document, again)
    yield from unlike_packages(registry, version, source)


def _package_row(registry: Registry, version: Version) -> GateRow:
    try:
        check_kept(registry, version)
    except Damaged as error:
        return GateRow("package", "fail", note=str(error))
    files = len(version.manifest.files)
    return GateRow(
        "package", "pass", f"{files} files, signature and weights fit", "all", version.summary.signature
    )


def _freshness_row(registry: Registry, version: Version) -> GateRow:
    until = version.manifest.fresh_until
    left = (until - registry.clock()).days
    verdict: Verdict = "pass" if until > registry.clock() else "fail"
    return GateRow("freshness of the data", verdict, f"until {until:%Y-%m-%d} ({left} days)", "in the future")


def _evaluation_rows(registry: Registry, version: Version, one: Evidence | None) -> Iterator[GateRow]:
    if one is None:
        yield GateRow("evaluation", "missing", note="the package has none: package the adapter again")
        return
    evaluation, all_beaten = version.manifest.evaluation, True
    for system in BASES:
        for metric, found in evaluation.differences.get(system, {}).items():
            verdict: Verdict = "pass" if found.is_clear and found.value > 0 else "fail"
            all_beaten = all_beaten and verdict == "pass"
            yield GateRow(
                f"{metric} against {system.replace('_', ' ')}",
                verdict,
                f"{found}, p {found.p_corrected:.2g}",
                "above 0, p < 0.05",
                one.sha256,
            )
    if all_beaten and not version.manifest.beats_base:  # a record of schema 1, or one that contradicts itself
        yield GateRow("evaluation", "fail", "it does not clearly beat its base", "all metrics", one.sha256)
    for lack in unfair_opponent(version.manifest) if registry.least.fair_opponent else ():
        yield GateRow("fair opponent", "missing", evidence=one.sha256, note=f"needs {lack}")
    yield from _gap_rows(registry, version, evaluation.bias, one)


def _gap_rows(
    registry: Registry, version: Version, columns: Mapping[str, ColumnBias], one: Evidence, said: str = ""
) -> Iterator[GateRow]:
    limit = gap_limit(registry, version)
    wanted = "no limit" if limit is None else f"at most {limit:g}"
    for column, bias in columns.items():
        verdict: Verdict = "fail" if bias.exceeds(limit) else "pass"
        yield GateRow(f"gap by {column}{said}", verdict, bias.between, wanted, one.sha256)


def _regression_rows(
    document: RegressionEvidence, one: Evidence, lacking: list[str], least: EvidenceSettings
) -> Iterator[GateRow]:
    yield from _given_again_row(document, one, least)
    yield from _evaluated_again_row(document, one, least)
    for compared in document.compared:
        if compared.gating:
            yield _compared_row(compared, one)
    for reached in document.least:
        yield _least_row(reached, one)
    passed = document.must_pass - len(document.must_pass_failed)
    if document.must_pass:
        yield GateRow(
            "cases that must pass",
            "fail" if document.must_pass_failed else "pass",
            f"{passed} of {document.must_pass}",
            "all",
            one.sha256,
            note=", ".join(document.must_pass_failed[:5]),
        )
    yield from (
        GateRow(name, "missing", evidence=one.sha256, note="no row in common") for name in document.missing
    )
    decided = any(verdict != "pass" for _, verdict in document.verdicts)
    shown = {*not_given_again(document), *not_evaluated_again(document)}
    for lack in lacking if not decided else ():
        if lack in shown:
            continue
        yield GateRow("regression", "missing", evidence=one.sha256, note=f"needs {lack}")


def _given_again_row(document: RegressionEvidence, one: Evidence, least: EvidenceSettings) -> Iterator[GateRow]:
    """Yield whether the adapter gave the answers that its package has; nothing where nobody asks for that."""
    name, lacking, answers = "packaged answers given again", list(not_given_again(document)), document.packaged
    if answers and not lacking:
        found = f"{answers.given_again} of {answers.packaged}, {answers.differing} worth something else"
        yield GateRow(name, "pass", found, "all", one.sha256)
    elif least.regression and least.answers_again:
        yield GateRow(name, "missing", "", "all", one.sha256, note=f"needs {lacking[0]}")


def _evaluated_again_row(
    document: RegressionEvidence, one: Evidence, least: EvidenceSettings
) -> Iterator[GateRow]:
    """Yield whether base model and adapter gave the answers of the evaluation; nothing where nobody asks."""
    name, wanted = "held-out rows answered again", "all, beating the base"
    lacking, evaluated = list(not_evaluated_again(document)), document.evaluated
    if evaluated and evaluated.verdict != "missing":
        most = max(evaluated.differing.values(), default=0)
        texts = max(evaluated.other_texts.values(), default=0)
        differing = f"at most {most} worth something else, {texts} other texts"
        found = f"{evaluated.given_again} of {evaluated.rows}, {differing}"
        note = f"needs {lacking[0]}" if lacking else ""
        yield GateRow(name, evaluated.verdict, found, wanted, one.sha256, note=note)
    elif least.regression and least.evaluation_again:
        yield GateRow(name, "missing", "", wanted, one.sha256, note=f"needs {lacking[0]}")


def _compared_row(compared: Compared, one: Evidence) -> GateRow:
    found = compared.comparison
    more = found.more_rows if found.verdict == "undecided" else None
    note = f"{found.rows} rows show a drop of {found.detectable:.2f} in 80 of 100 cases"
    if found.verdict == "undecided" and more is None:
        note = f"no number of rows like these would pass; {note}"
    return GateRow(
        f"{compared.what} against {compared.against}",
        found.verdict,
        f"{found.candidate:.3f} and {found.baseline:.3f}: {found.difference}",
        f"not below -{found.margin:g}",
        one.sha256,
        more,
        note,
    )


def _least_row(least: Least, one: Evidence) -> GateRow:
    return GateRow(
        f"{least.slice} by itself", least.verdict, str(least.value), f"at least {least.least:g}", one.sha256
    )


def _traffic_rows(registry: Registry, version: Version, one: Evidence) -> Iterator[GateRow]:
    """Yield what a rollout has filed; a version that has not had one yet lacks nothing here."""
    document = load(registry.files, one)
    if not isinstance(document, TrafficEvidence):
        return  # an older release kept a file of another form
    history = registry.log.entries(version.tenant, version.number)
    lacking = list(kept_lacks(registry, version, history, one, now=registry.clock()))
    least = registry.least
    mark = f"{document.replay_mark}; " if document.replay_mark else ""
    yield GateRow(
        f"{one.kind} report",
        "missing" if lacking else "pass",
        f"{mark}{document.answered} answered, {document.errors} failed, in {document.hours:.1f} hours",
        f"{least.requests} in {least.hours:g} hours, at most {least.error_share:.1%} failed",
        one.sha256,
        note=f"needs {'; '.join(lacking)}" if lacking else "",
    )


def _twin_rows(against: GateObjections) -> Iterator[GateRow]:
    if against.closed:
        yield GateRow(SAME_WEIGHTS, "fail", note=against.closed)
    yield from (GateRow(SAME_WEIGHTS, "missing", note=f"needs {one}") for one in against.twins)


def _document_row(document: AnyEvidence, one: Evidence, lacking: list[str]) -> GateRow:
    found, failed = "", False
    if isinstance(document, PolicyEvidence):  # somebody typed its rows
        wrong = sum(check.failed for check in document.checks)
        asked = sum(check.prompts for check in document.checks)
        found, failed = f"{wrong} of {asked} prompts fail in {len(document.checks)} checks", wrong > 0
    elif isinstance(document, HumanEvidence):
        found = (
            f"better {document.adapter_better}, same {document.same}, worse {document.base_better} of "
            f"{document.pairs} pairs"
        )
        review = document.review
        if review and review.win_rate_by_pair and review.alpha:
            found += f"; win rate {review.win_rate_by_pair}, Krippendorff's alpha {review.alpha}"
        if review and document.pairs < review.planned_pairs - review.other_texts:
            people = ", ".join(one.person for one in review.reviewers)
            found += f"; {review.planned_pairs} pairs were planned, and votes of {people} count"
        if review and review.other_texts:
            found += f"; {review.other_texts} pairs show other texts than are given now, and don't count"
        failed = document.base_better > document.adapter_better
    verdict: Verdict = "pass" if not lacking else "fail" if failed else "missing"
    note = f"needs {'; '.join(lacking)}" if lacking else ""
    return GateRow(_title(one.kind), verdict, found, "", one.sha256, note=note)


def _title(kind: str) -> str:
    return {"human_evaluation": "human review"}.get(kind, kind)


def _how_to_make(kind: str, version: str) -> str:
    ways: Mapping[str, str] = {
        "regression": f"lora-ops gate {version}",
        "policy": f"lora-ops gate {version}",
        "human_evaluation": f"lora-ops review start {version}",
    }
    return ways[kind]
