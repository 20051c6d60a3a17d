"""What a report must say before a step may rest on it, and doesn't, in words."""

from collections.abc import Iterator, Mapping, Sequence

from lora_ops.records.evaluation import ColumnBias
from lora_ops.records.evidence import (
    AnyEvidence,
    DriftEvidence,
    HumanEvidence,
    KpiEvidence,
    LiveEvidence,
    PolicyCheck,
    PolicyEvidence,
    RegressionEvidence,
    ReleaseNotesEvidence,
    TextEvidence,
    TrafficEvidence,
)
from lora_ops.records.manifest import Manifest
from lora_ops.settings.registry import EvidenceSettings


def lacks(document: AnyEvidence, least: EvidenceSettings) -> Iterator[str]:
    """Yield what a document must say, and doesn't, before a step may rest on it."""
    if isinstance(document, PolicyEvidence):
        yield from _policy_lacks(document, least)
    elif isinstance(document, HumanEvidence):
        yield from _human_lacks(document, least)
    elif isinstance(document, TrafficEvidence):
        yield from _traffic_lacks(document, least)
    elif isinstance(document, RegressionEvidence):
        yield from _regression_lacks(document, least)
    elif isinstance(document, ReleaseNotesEvidence):
        empty = [name for name, value in document.fields.items() if not value.strip()]
        if empty or not document.fields:
            yield f"release notes in which people wrote {', '.join(empty) or 'something'}"
    elif isinstance(document, DriftEvidence | KpiEvidence | LiveEvidence):
        return  # no step rests on it
    else:
        assert isinstance(document, TextEvidence)  # its length is checked when it is counted


def _policy_lacks(document: PolicyEvidence, least: EvidenceSettings) -> Iterator[str]:
    if least.policy == "computed" and not document.is_computed:
        yield (
            f"a policy report that `lora-ops gate {document.adapter}` computed (typed rows don't count; "
            "`registry.evidence.policy: file` takes them)"
        )
    yield from failing(document.checks)
    few = [f"{one.name} has {one.prompts}" for one in document.checks if one.prompts < least.policy_prompts]
    if few:
        yield f"a policy report with at least {least.policy_prompts} prompts a check ({', '.join(few)})"
    # Where no computed report is asked for, one that decides nothing is none, and one that fails still speaks.
    undecided = [one.name for one in document.checks if one.verdict == "undecided"]
    if undecided and least.policy == "computed":
        said = ", ".join(f"{one}: undecided" for one in undecided)
        yield f"a policy report that decides ({said}; `lora-ops gate {document.adapter}` says what would)"


def failing(checks: Sequence[PolicyCheck]) -> Iterator[str]:
    """Yield what a policy report lacks if a check fails."""
    failed = [
        f"{one.name} can't be judged, since its detector failed"
        if one.judged and one.judged.rate is None
        else f"{one.name} fails {one.failed} of {one.prompts} prompts"
        for one in checks
        if one.verdict == "fail"
    ]
    if failed:
        yield f"a policy report without a failure ({', '.join(failed)})"


def unpassed(document: RegressionEvidence, least: EvidenceSettings) -> list[str]:
    """Return what a regression report judges and does not pass, in words."""
    # Where no report is asked for, one that decides nothing is none, and one that fails still speaks.
    asked = ("fail", "undecided", "missing") if least.regression else ("fail",)
    return [f"{what}: {verdict}" for what, verdict in document.verdicts if verdict in asked]


def _regression_lacks(document: RegressionEvidence, least: EvidenceSettings) -> Iterator[str]:
    wrong = unpassed(document, least)
    if wrong:
        yield f"a regression report that passes ({'; '.join(wrong)})"
    elif least.regression and not any(one.gating for one in document.compared):
        yield "a regression report in which something decides (no slice of its suite is gating)"
    if least.regression and least.answers_again:
        yield from not_given_again(document)
    if least.regression and least.evaluation_again:
        yield from not_evaluated_again(document)


def not_given_again(document: RegressionEvidence) -> Iterator[str]:
    """Yield that nobody knows whether the adapter gave the answers that its package has."""
    answers = document.packaged
    if answers is None:
        yield (
            "a regression report that let the adapter give its packaged answers again (an earlier release made "
            f"it: run `lora-ops gate {document.adapter}`)"
        )
    elif answers.verdict != "pass":
        yield (
            f"a regression report that let the adapter give its {answers.packaged} packaged answers again (it "
            f"gave {answers.given_again}: run `dvc repro base_model`, then `lora-ops gate {document.adapter}`)"
        )


def not_evaluated_again(document: RegressionEvidence) -> Iterator[str]:
    """Yield that the answers of the evaluation are others than base model and adapter give, or nobody asked."""
    found = document.evaluated
    if found is None:
        yield (
            "a regression report that let base model and adapter answer the held-out rows again (an earlier "
            f"release made it: run `lora-ops gate {document.adapter}`)"
        )
    elif found.verdict == "missing":
        yield (
            f"a regression report that let base model and adapter answer its {found.rows} held-out rows again "
            f"(`lora-ops gate {document.adapter}` says what it needs)"
        )
    elif not found.is_alike:
        wrong = ", ".join(
            f"{name.replace('_', ' ')} {found.differing.get(name, 0)} and {texts}"
            for name, texts in found.other_texts.items()
            if texts
        )
        yield (
            f"a package whose held-out answers base model and adapter give (of {found.rows} so many are worth "
            f"something else, and so many are other texts: {wrong}; run `dvc repro --force "
            f"generate@{document.tenant}`, evaluate, package and register it again)"
        )
    elif not found.beats_base:
        yield "an evaluation in which it beats its base model also when the held-out rows are answered again"


def _human_lacks(document: HumanEvidence, least: EvidenceSettings) -> Iterator[str]:
    if document.votes_needed < least.annotators or document.pairs < least.pairs:
        yield (
            f"a human evaluation of at least {least.pairs} pairs, each judged by {least.annotators} people "
            f"(it has {document.pairs}, and {document.too_few_votes} that fewer than {document.votes_needed} "
            f"judged{_others(document)}{_left_out(document)})"
        )
    yield from _review_lacks(document, least)
    if document.base_better > document.adapter_better:
        yield (
            "a human evaluation that the adapter does not lose "
            f"(better in {document.adapter_better} of {document.pairs} pairs, {_other_side(document)} in "
            f"{document.base_better})"
        )
    elif document.pairs and not document.adapter_better:
        yield "a human evaluation in which somebody prefers an answer (in all pairs both are the same)"


def _review_lacks(document: HumanEvidence, least: EvidenceSettings) -> Iterator[str]:
    """Yield what a review session would show and this document doesn't: blinded votes of people who agree."""
    review = document.review
    if review and review.regression_sha256 is None and least.asks_texts_again:
        yield (
            "a human evaluation of answers that base model and adapter gave again (these pairs are of packaged "
            f"answers: run `lora-ops gate {document.adapter}`, then `lora-ops review start {document.adapter}`)"
        )
    if review is None:
        if least.votes == "session":
            yield f"votes from a review session (`lora-ops review start {document.adapter}`)"
    elif least.agreement > -1 and review.alpha is None:
        yield f"a human evaluation whose reviewers' agreement can be measured ({review.no_alpha})"
    elif review.alpha is not None and review.alpha.value < least.agreement:
        yield (
            f"a human evaluation whose reviewers agree (Krippendorff's alpha {review.alpha}, at least "
            f"{least.agreement:g} is needed)"
        )


def _other_side(document: HumanEvidence) -> str:
    against = document.review.against if document.review else "base"
    return "its base" if against == "base" else against


def _others(document: HumanEvidence) -> str:
    many = document.other_votes
    return f"; {many} votes are the author's or of people whom owners.yaml does not name" if many else ""


def _left_out(document: HumanEvidence) -> str:
    many = document.review.other_texts if document.review else 0
    return f"; {many} show other texts than its last regression report" if many else ""


def _traffic_lacks(document: TrafficEvidence, least: EvidenceSettings) -> Iterator[str]:
    kind = document.kind
    if document.answered < least.requests or document.hours < least.hours:
        yield (
            f"a {kind} report of at least {least.requests} requests in {least.hours:g} hours (it has "
            f"{document.answered} answered in {document.hours:.1f})"
        )
    if document.errors > least.error_share * document.requests:
        yield (
            f"a {kind} report with at most {least.error_share:.1%} errors ({document.errors} of "
            f"{document.requests} requests)"
        )
    if document.production_better > document.adapter_better:
        yield (
            f"a {kind} report that production does not win (better in {document.production_better} pairs, "
            f"the adapter in {document.adapter_better})"
        )


def evaluation_lacks(manifest: Manifest, max_gap: float | None, *, fair_opponent: bool) -> Iterator[str]:
    """Yield what the package's evaluation must show, and doesn't, before a step may rest on it.

    Args:
        manifest: the version's, with the evaluation of its package.
        max_gap: the largest gap between two groups of a declared column; None: any.
        fair_opponent: the base model must have been asked at its best, by `unfair_opponent`.
    """
    evaluation = manifest.evaluation
    if fair_opponent:
        yield from unfair_opponent(manifest)
    if not manifest.beats_base:
        measured = f" (it does not: {evaluation.unbeaten})" if evaluation.unbeaten else ""
        yield f"an evaluation in which it beats its base model{measured}"
    yield from _gaps(evaluation.bias, max_gap, "an evaluation")


def gaps_again(document: AnyEvidence | None, max_gap: float | None) -> Iterator[str]:
    """Yield the gaps between groups that answers show which were given again for a regression report."""
    if isinstance(document, RegressionEvidence) and document.evaluated:
        yield from _gaps(document.evaluated.bias, max_gap, "held-out answers, given again,")


def _gaps(columns: Mapping[str, ColumnBias], max_gap: float | None, whose: str) -> Iterator[str]:
    for column, bias in columns.items():
        if bias.exceeds(max_gap):
            yield (
                f"{whose} whose gap by {column} is not clearly above evaluate.max_gap ({max_gap:g}; it has "
                f"{bias.between})"
            )


def unfair_opponent(manifest: Manifest) -> Iterator[str]:
    """Yield that an evaluation leaves out a way to ask the base model that may be its best one.

    A tenant sets how many examples its base model is shown. With none the adapter beats the bare prompt only.
    """
    evaluation, tenant = manifest.evaluation, manifest.tenant
    again = f"run `dvc repro package@{tenant}`, and register it again"
    if not evaluation.answered_few_shot:
        shown = (evaluation.settings or {}).get("few_shot")
        if shown == 0:
            why = f"evaluate.few_shot is 0: set it in params.yaml, {again}"
        elif shown is None:
            why = f"it was made by an earlier release: {again}"
        else:
            why = (
                "not one example has room in the prompt: choose shorter rows or a base model that reads more, "
                "or set registry.evidence.fair_opponent to false, which `show` says"
            )
        yield f"an evaluation against its base model with examples ({why})"
    if manifest.data.task == "labels" and not evaluation.answered_labels:
        yield f"an evaluation against its base model's likeliest labels (base_labels is missing: {again})"
