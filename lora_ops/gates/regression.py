"""A regression report: computed from kept answers alone, so that anybody can compute it again."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import numpy as np

from lora_ops import __version__
from lora_ops.evaluation.inference import interval, mean_sample
from lora_ops.evaluation.metrics import exact_match, sample
from lora_ops.gates.expectations import Patience, score
from lora_ops.gates.paired import DRAWS, compare_rows, compare_samples, corrected
from lora_ops.hashing import sha256_bytes, sha256_text
from lora_ops.records.evidence import RegressionEvidence, Source
from lora_ops.records.regression import (
    Compared,
    Comparison,
    HeldOutRow,
    Least,
    RegressionSource,
    SystemAnswers,
)
from lora_ops.records.suite import AskedCase, CasesRecord
from lora_ops.settings.suite import Slice

SOURCE_NAME = "regression.json"
HELD_OUT_MARGIN = 0.05
"""The margin at which a metric is shown that `held_out` of the suite does not name."""


def regression_report(source: RegressionSource, tenant: str, now: datetime) -> RegressionEvidence:
    """Return what the answers in `source` say of its candidate.

    Comparisons with the base model and the version in production decide where their slice is gating; those with
    earlier versions are shown. All gating ones together are corrected by Holm's method.

    Raises:
        ValueError: a system lacks the answer to a case.
        LoraOpsError: the regular expressions of the suite take too long.
    """
    cases, text = source.cases, source.to_json()
    candidate, *others = source.systems
    scores = {one.baseline.name: _scores(cases, one) for one in source.systems}
    gating, shown = dict[tuple[str, str], Comparison](), dict[tuple[str, str], Comparison]()
    for name, chosen, rows in _slices(cases):
        for other in others:
            compared = compare_rows(
                [scores[candidate.baseline.name][one.case.id] for one in rows],
                [scores[other.baseline.name][one.case.id] for one in rows],
                [one.case.group or one.case.id for one in rows],
                chosen.margin,
            )
            decides = chosen.gating and other.baseline.role in chosen.against
            (gating if decides else shown)[name, other.baseline.name] = compared
    production = next((one.baseline.name for one in others if one.baseline.role == "production"), None)
    if production and source.held_out:
        for metric in source.held_out_metrics:
            margin = cases.held_out.get(metric)
            compared = _held_out(source.held_out, metric, cases.labels, margin or HELD_OUT_MARGIN)
            (gating if margin else shown)[f"held-out {metric}", production] = compared
    lacking = sorted(cases.held_out.keys() - set(source.held_out_metrics)) if production else []
    if production and not source.held_out:
        lacking = sorted(cases.held_out)
    must_pass = [one for one in cases.cases if one.case.must_pass]
    own = scores[candidate.baseline.name]
    return RegressionEvidence(
        tenant=tenant,
        adapter=source.adapter,
        content_digest=source.digest,
        made_by=f"lora-ops {__version__} gate",
        made_at=now,
        source=Source(name=SOURCE_NAME, sha256=sha256_bytes(text.encode()), bytes=len(text.encode())),
        cases_sha256=sha256_text(cases.to_json()),
        suites=cases.suites,
        cases=len(cases.cases),
        must_pass=len(must_pass),
        must_pass_failed=tuple(one.case.id for one in must_pass if own[one.case.id] < 1),
        baselines=tuple(one.baseline for one in others),
        compared=(*_listed(corrected(_named(gating)), gating=True), *_listed(_named(shown), gating=False)),
        least=tuple(_least(cases, own)),
        missing=tuple(f"held-out {metric} against {production}" for metric in lacking),
        packaged=source.packaged,
        evaluated=source.evaluated,
    )


def _slices(cases: CasesRecord) -> Iterator[tuple[str, Slice, list[AskedCase]]]:
    for name, chosen in cases.slices.items():
        yield name, chosen, [one for one in cases.cases if one.case.slice == name]


def _scores(cases: CasesRecord, system: SystemAnswers) -> dict[str, float]:
    """Return the score of each case by its id: two cases that ask the same may expect different answers."""
    answers = {one.key: one.texts for one in system.answers}
    lacking = [one.case.id for one in cases.cases if one.key not in answers]
    if lacking:
        raise ValueError(f"{system.baseline.name} has no answer to the case '{lacking[0]}'")
    patience = Patience()
    return {one.case.id: score(one.case, answers[one.key], cases.labels, patience) for one in cases.cases}


def _held_out(rows: Sequence[HeldOutRow], metric: str, labels: Sequence[str], margin: float) -> Comparison:
    targets, groups = [one.target for one in rows], [one.group for one in rows]
    ours, theirs = [one.candidate for one in rows], [one.production for one in rows]
    right, before = exact_match(targets, ours, labels), exact_match(targets, theirs, labels)
    if metric == "exact_match":
        return compare_rows(right, before, groups, margin)
    left, other = (sample(metric, targets, answers, labels, groups) for answers in (ours, theirs))
    changed = int((right > before).sum()), int((right < before).sum())
    return compare_samples(left, other, len(rows), changed, margin)


def _least(cases: CasesRecord, scores: Mapping[str, float]) -> Iterator[Least]:
    for name, chosen, rows in _slices(cases):
        if chosen.least is not None:
            groups = [one.case.group or one.case.id for one in rows]
            values = np.array([scores[one.case.id] for one in rows])
            found = interval(mean_sample(values, groups), DRAWS, 0)
            yield Least(slice=name, least=chosen.least, rows=len(rows), value=found)


def _named(comparisons: Mapping[tuple[str, str], Comparison]) -> dict[str, Comparison]:
    return {"\0".join(name): one for name, one in comparisons.items()}


def _listed(comparisons: Mapping[str, Comparison], *, gating: bool) -> Iterator[Compared]:
    for name, one in comparisons.items():
        what, against = name.split("\0")
        yield Compared(what=what, against=against, gating=gating, comparison=one)
