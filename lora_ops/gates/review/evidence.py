"""From a review session to evidence: what reviewers submitted, verified, counted and kept.

The source of the evidence is one file with the plan and every submitted file of votes as they are, so that the
counts can be made again from what the registry keeps.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops import __version__
from lora_ops.errors import Damaged, Refused
from lora_ops.gates.review.agreement import alike, alpha, rating_mean, win_rates
from lora_ops.gates.review.annotations import Votes, parse, require_about
from lora_ops.gates.review.plan import default_seed
from lora_ops.gates.review.sessions import (
    Session,
    is_drawn,
    open_session,
    parse_plan,
    require_drawn,
    rows_with_other_texts,
)
from lora_ops.gates.review.submissions import Submitted, submitted
from lora_ops.hashing import canonical, sha256_bytes, sha256_text
from lora_ops.records.evidence import Evidence, HumanEvidence, Source
from lora_ops.records.review import RATINGS, RatingMean, ReviewCounts, Reviewed, ReviewPlan, Task
from lora_ops.registry.answers_again import filed_answers_again, last_answers_again
from lora_ops.registry.authors import author_marks, is_author
from lora_ops.registry.reports import Report, load
from lora_ops.registry.roles import JUDGE, owners_of
from lora_ops.registry.store import Registry

SOURCE = "review.jsonl"


class Counting(NamedTuple):
    """What the counts depend on besides the votes.

    Attributes:
        votes_needed: reviewers who must judge a pair so that it counts.
        counted: reviewer -> fingerprint of the key that signed their votes; None: unsigned.
        others: reviewer -> why their votes don't count.
        at: the time at which the counts are made.
        regression_sha256: the version's last regression report; None: the plan shows packaged answers, or no
            answers were given again.
        other_texts: rows of which that report has other answers than reviewers were shown.
    """

    votes_needed: int
    counted: Mapping[str, str | None]
    others: Mapping[str, str]
    at: datetime
    regression_sha256: str | None = None
    other_texts: frozenset[str] = frozenset()


class Told(NamedTuple):
    """What one reviewer said of one pair, unblinded."""

    task: Task
    person: str
    vote: str
    ratings: Mapping[str, Mapping[str, int]]
    breach: Mapping[str, str]
    comment: str
    corrected: str


def make_report(registry: Registry, reference: str, summary: str | None = None) -> tuple[Report, list[str]]:
    """Count what the reviewers of a version submitted; nothing is kept yet.

    Returns:
        The report, and a sentence for each reviewer of the plan whose votes are not in it.

    Raises:
        LoraOpsError: nobody has submitted, a file was changed after it, a signature does not fit, or the plan
            is about other content.
    """
    session = open_session(registry, reference)
    require_drawn(registry, session)
    version, team = session.version, owners_of(registry, session.version.tenant)
    found, left_out = list[Submitted](), dict[str, str]()
    counted: dict[str, str | None] = {}
    author, marks = team.person(version.summary.author), author_marks(registry, version)
    for reviewer in session.plan.tasks:
        one = submitted(registry, session, reviewer)
        if one is None:
            left_out[reviewer] = "has not submitted"
            continue
        found.append(one)
        person = team.person(reviewer)
        if person is None or person not in team.with_role(JUDGE):
            left_out[reviewer] = "is no reviewer or approver in owners.yaml any more"
        elif author is None or person == author or is_author(person, marks):
            left_out[reviewer] = f"is the author of {version.id}, or nobody can tell who is"
        else:
            counted[reviewer] = one.key
    if not counted:
        said = "; ".join(f"{who} {why}" for who, why in left_out.items())
        raise Refused(
            f"The review of {version.id} has no votes that count yet ({said}): `lora-ops review submit "
            f"{version.id}` hands a reviewer's votes in."
        )
    source = bundle(session, found)
    again = last_answers_again(registry, version) if session.plan.regression_sha256 else None
    counting = Counting(
        registry.least.annotators,
        counted,
        left_out,
        registry.clock(),
        again.report_sha256 if again else None,
        rows_with_other_texts(registry, session, again) if again else frozenset(),
    )
    document = count(source, counting)
    said = summary or f"review by {', '.join(counted)}"
    return Report(document, source, said), [f"{who} {why}" for who, why in left_out.items()]


def bundle(session: Session, found: Sequence[Submitted]) -> bytes:
    """Return the plan and the submitted files of votes as one file of JSON lines."""
    plan = (session.folder / "plan.json").read_bytes()
    lines: list[dict[str, Any]] = [{"kind": "plan", "text": plan.decode("utf-8")}]
    lines += [
        {
            "kind": "votes",
            "reviewer": one.reviewer,
            "text": one.content.decode("utf-8"),
            "submission": one.signed.submission.model_dump(mode="json"),
            "signature": one.signed.signature,
        }
        for one in found
    ]
    return "".join(f"{canonical(line)}\n" for line in lines).encode()


def count(source: bytes, counting: Counting) -> HumanEvidence:
    """Count a bundle; the same bundle and the same `counting` always give the same document.

    Raises:
        LoraOpsError: a line of the bundle is not what lora-ops wrote.
    """
    plan, votes = read_bundle(source)
    told, other_votes = list[Told](), 0
    reviewed = []
    for reviewer, (content, said) in votes.items():
        if reviewer not in counting.counted:
            other_votes += len(said.judged)
            continue
        # Nobody may be judged by a text that it does not give.
        told += [one for one in unblinded(plan, reviewer, said) if one.task.row not in counting.other_texts]
        repeats, same = _consistency(plan.tasks[reviewer], said)
        reviewed.append(
            Reviewed(
                person=reviewer,
                annotations_sha256=sha256_bytes(content),
                key=counting.counted[reviewer],
                tasks=len(plan.tasks[reviewer]),
                judged=len(said.judged),
                repeats=repeats,
                repeats_alike=same,
            )
        )
    first = [one for one in told if not one.task.repeat]
    differs = {pair.row: pair.differs for pair in plan.pairs}
    checks = [one for one in first if not differs[one.task.row]]
    by_pair: dict[str, dict[str, str]] = defaultdict(dict)
    for one in first:
        if differs[one.task.row]:
            by_pair[one.task.row][one.person] = one.vote
    judged = [list(said.values()) for said in by_pair.values() if len(said) >= counting.votes_needed]
    results = Counter(map(_majority, judged))
    agreed, rates = alpha(by_pair, plan.seed), win_rates(by_pair, plan.seed)
    counts = ReviewCounts(
        plan_sha256=_plan_digest(source),
        against=plan.against,
        regression_sha256=counting.regression_sha256,
        other_texts=sum(pair.differs and pair.row in counting.other_texts for pair in plan.pairs),
        seed=plan.seed,
        is_own_seed=plan.seed != default_seed(plan.content_digest, plan.against),
        planned_pairs=sum(differs.values()),
        rows=plan.rows,
        differing=plan.differing,
        reviewers=reviewed,
        alpha=agreed.value,
        no_alpha=agreed.why_not,
        alike=alike(by_pair),
        win_rate_by_pair=rates[0] if rates else None,
        win_rate_by_reviewer=rates[1] if rates else None,
        checks=len(checks),
        checks_same=sum(one.vote == "same" for one in checks),
        breaches={
            system: len({one.task.row for one in told if system in one.breach})
            for system in ("adapter", "other")
        },
        ratings=_ratings(first, plan.seed),
        comments=sum(bool(one.comment.strip()) for one in told),
        corrections=sum(bool(one.corrected.strip()) for one in told),
    )
    return HumanEvidence(
        tenant=plan.tenant,
        adapter=plan.adapter,
        content_digest=plan.content_digest,
        made_by=f"lora-ops {__version__}",
        made_at=counting.at,
        source=Source(name=SOURCE, sha256=sha256_bytes(source), bytes=len(source)),
        annotators=len({one.person for one in first}) or 1,
        votes_needed=counting.votes_needed,
        pairs=len(judged),
        too_few_votes=len(by_pair) - len(judged),
        other_votes=other_votes,
        adapter_better=results["adapter"],
        same=results["same"],
        base_better=results["other"],
        review=counts,
    )


def recount(registry: Registry, evidence: Evidence) -> list[str]:
    """Count a filed review again from what the registry keeps; return where the counts differ.

    A plan is drawn again from the answers that were given again for the regression report that it names.

    Raises:
        LoraOpsError: the kept file is missing or was changed, or is no review.
    """
    document = load(registry.files, evidence)
    if not isinstance(document, HumanEvidence) or document.review is None:
        raise Refused(f"The report {evidence.sha256[:12]}… was not counted from a review session.")
    source = registry.files.checked(document.source.sha256, SOURCE).read_bytes()
    keys = {one.person: one.key for one in document.review.reviewers}
    counting = Counting(document.votes_needed, keys, {}, document.made_at)
    session, is_chosen = kept_session(registry, document, source), False
    if session.plan.regression_sha256:
        is_chosen = not is_drawn(registry, session)
        counted_by = document.review.regression_sha256
        other = rows_left_out(registry, session, document)
        counting = counting._replace(regression_sha256=counted_by, other_texts=other)
    found, kept = count(source, counting).model_dump(mode="json"), document.model_dump(mode="json")
    ignored = {"made_by"}  # another release may count the same
    return [
        *(["plan"] if is_chosen else []),
        *(name for name in kept if name not in ignored and found.get(name) != kept[name]),
    ]


def rows_left_out(registry: Registry, session: Session, document: HumanEvidence) -> frozenset[str]:
    """Return the rows of a filed review that don't count: its regression report has other answers to them.

    Raises:
        LoraOpsError: kept answers are missing or were changed, or no such report was filed.
    """
    counted_by = document.review.regression_sha256 if document.review else None
    if counted_by is None:
        return frozenset()
    return rows_with_other_texts(registry, session, filed_answers_again(registry, session.version, counted_by))


def kept_session(registry: Registry, document: HumanEvidence, source: bytes) -> Session:
    """Return the session that a filed review was counted from; its folder may be gone by now.

    Raises:
        LoraOpsError: the source is not what lora-ops wrote, or the version is gone.
    """
    plan, _ = read_bundle(source)
    return Session(Path(), registry.get_exact(document.adapter, whole=False), plan, _plan_digest(source))


def read_bundle(source: bytes) -> tuple[ReviewPlan, dict[str, tuple[bytes, Votes]]]:
    """Return the plan of a bundle and each reviewer's votes, with the bytes that hold them.

    Raises:
        LoraOpsError: it is not what lora-ops wrote, or has a reviewer twice or one whom the plan lacks.
    """
    try:
        lines = [json.loads(line) for line in source.decode("utf-8").split("\n") if line]
        first, *rest = lines
        content = first["text"].encode()
        votes_of = [(line["reviewer"], line["text"].encode()) for line in rest]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{SOURCE} holds no review ({type(error).__name__}): file the session again.") from error
    plan, digest = parse_plan(content, SOURCE), sha256_bytes(content)
    votes: dict[str, tuple[bytes, Votes]] = {}
    for reviewer, text in votes_of:
        if reviewer in votes or reviewer not in plan.tasks:
            raise Damaged(f"{SOURCE} has votes of {reviewer} twice, or without a list in the plan.")
        said = parse(text, f"{reviewer}.jsonl")
        wanted = {"plan_sha256": digest, "adapter": plan.adapter, "content_digest": plan.content_digest}
        require_about(said.heading, {**wanted, "reviewer": reviewer}, f"{reviewer}.jsonl")
        if max(said.last, default=0) > len(plan.tasks[reviewer]):
            raise Damaged(f"{reviewer}.jsonl has votes on more pairs than the plan gave them.")
        votes[reviewer] = (text, said)
    return plan, votes


def unblinded(plan: ReviewPlan, reviewer: str, said: Votes) -> list[Told]:
    """Return what a reviewer said, with the names of the systems in the place of the sides."""
    found = []
    for place, line in sorted(said.judged.items()):
        task = plan.tasks[reviewer][place - 1]
        names = {task.adapter: "adapter", "same": "same"}
        told = line.said
        assert told.vote is not None
        found.append(
            Told(
                task=task,
                person=reviewer,
                vote=names.get(told.vote, "other"),
                ratings={
                    names.get(side, "other"): {str(name): value for name, value in rated.items()}
                    for side, rated in told.ratings.items()
                },
                breach={names.get(side, "other"): what for side, what in told.breach.items()},
                comment=told.comment,
                corrected=told.corrected,
            )
        )
    return found


def _consistency(tasks: Sequence[Task], said: Votes) -> tuple[int, int]:
    """Return how many hidden repeats were judged both times, and how many of them alike."""
    firsts = {task.row: place for place, task in enumerate(tasks, 1) if not task.repeat}
    both = same = 0
    for place, task in enumerate(tasks, 1):
        first = firsts.get(task.row)
        if not task.repeat or first is None or not {first, place} <= said.judged.keys():
            continue
        both += 1
        same += _of(tasks[first - 1], said, first) == _of(task, said, place)
    return both, same


def _of(task: Task, said: Votes, place: int) -> str:
    vote = said.judged[place].said.vote
    return "same" if vote == "same" else "adapter" if vote == task.adapter else "other"


def _majority(votes: Sequence[str]) -> str:
    adapter, other = votes.count("adapter"), votes.count("other")
    return "adapter" if adapter > other else "other" if other > adapter else "same"


def _ratings(told: Sequence[Told], seed: int) -> dict[str, dict[str, RatingMean]]:
    found: dict[str, dict[str, RatingMean]] = {}
    for system in ("adapter", "other"):
        for name in RATINGS:
            given = [
                (one.ratings[system][name], one.task.row) for one in told if name in one.ratings.get(system, {})
            ]
            if given:
                values, rows = zip(*given, strict=True)
                mean = RatingMean(count=len(given), mean=rating_mean(values, rows, seed))
                found.setdefault(system, {})[name] = mean
    return found


def _plan_digest(source: bytes) -> str:
    return sha256_text(json.loads(source.split(b"\n")[0])["text"])
