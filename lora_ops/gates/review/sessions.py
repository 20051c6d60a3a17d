"""A review session: the folder `reviews/finance@2` beside the registry, with a plan and the reviewers' files.

The folder is apart from the registry, since people write into it by clicks that no audit entry stands for. Git
ignores it: votes in a commit would show every reviewer what the others said. What counts in the end is kept in
the registry, when `lora-ops review file` turns the session into evidence. The plan holds no text of the tenant;
`shown_answers` finds them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, Unavailable, disk_reason
from lora_ops.gates.review.annotations import Votes, read
from lora_ops.gates.review.plan import PAIRS, About, Choice, default_seed, make_plan, redrawn
from lora_ops.gates.review.shown_answers import answers_digest, answers_of, planned_answers
from lora_ops.hashing import sha256_bytes, sha256_text
from lora_ops.records.evaluation import BASE
from lora_ops.records.review import ReviewPlan
from lora_ops.registry.answers_again import AnswersAgain, last_answers_again
from lora_ops.registry.authors import author_marks, is_author
from lora_ops.registry.owners import Person, Team
from lora_ops.registry.reports import filed
from lora_ops.registry.roles import ANYBODY, JUDGE, owners_of, require_role, require_role_in, unknown_author
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, Version
from lora_ops.settings.files import first_problem
from lora_ops.small_files import read_small, write_whole

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "reviews"
PLAN, PLAN_DIGEST = "plan.json", "plan.sha256"
GUIDELINES = Path("suites/guidelines")


class Texts(NamedTuple):
    """What a reviewer reads of one row, and whose answer is which."""

    text: str
    adapter: str
    other: str
    group: str


class Session(NamedTuple):
    """One version's review.

    Attributes:
        folder: where its files are.
        version: what is reviewed.
        plan: who sees what.
        plan_sha256: digest of the plan's file.
    """

    folder: Path
    version: Version
    plan: ReviewPlan
    plan_sha256: str

    def file_of(self, reviewer: str) -> Path:
        """Return where a reviewer's votes are."""
        return self.folder / "votes" / f"{reviewer}.jsonl"

    def submission_of(self, reviewer: str) -> Path:
        """Return where a reviewer's signed submission is."""
        return self.folder / "submitted" / f"{reviewer}.json"

    def heading_of(self, reviewer: str) -> dict[str, str]:
        """Return what the first line of a reviewer's file states."""
        return {
            "plan_sha256": self.plan_sha256,
            "adapter": self.plan.adapter,
            "content_digest": self.plan.content_digest,
            "reviewer": reviewer,
        }

    def votes_of(self, reviewer: str) -> Votes | None:
        """Return what a reviewer has said so far; None before the first click.

        Raises:
            LoraOpsError: their file was edited by hand, or can't be read.
        """
        path = self.file_of(reviewer)
        return read(path) if os.path.lexists(path) else None


def folder_of(registry: Registry, version: Version) -> Path:
    """Return the folder of a version's review."""
    return registry.path.parent / FOLDER / version.id


def start(
    registry: Registry,
    reference: str,
    *,
    actor: str,
    against: str = BASE,
    reviewers: Sequence[str] = (),
    pairs: int = PAIRS,
    annotators: int | None = None,
    seed: int | None = None,
    guidelines: str | None = None,
) -> Session:
    """Draw the plan of a version's review and keep it.

    Args:
        registry: where the version is.
        reference: the exact version.
        actor: who starts it.
        against: `base`, or `production` or a version, which is compared on common rows.
        reviewers: whose votes are asked for; default: everybody with the role reviewer or approver, but the
            author.
        pairs: how many pairs with two different answers.
        annotators: reviewers who see each pair; default: `registry.evidence.annotators`.
        seed: default: one that follows from what is compared.
        guidelines: the text that reviewers are shown; its digest is kept.

    Raises:
        LoraOpsError: a closed version, nobody of its team, votes that were given already, too few reviewers or
            rows, the author among the reviewers, answers that nobody gave again, or kept answers that are
            missing or were changed.
    """
    version = registry.get_exact(reference)
    require_role(registry, version, actor, ANYBODY, f"start a review of {version.id}")
    if version.state in CLOSED:
        raise Refused(f"{version.id} is '{version.state}': there is nothing to review.")
    needed = registry.least.annotators
    each = needed if annotators is None else annotators
    if each < needed:
        raise Refused(f"Each pair needs {needed} reviewers (registry.evidence.annotators): {each} are fewer.")
    if pairs < 1:
        raise LoraOpsError("A review has at least one pair (--pairs).")
    people = _chosen(registry, version, reviewers)
    folder = folder_of(registry, version)
    _require_new(folder, version)
    opponent = None if against == BASE else _opponent(registry, version, against)
    again = last_answers_again(registry, version)
    if again is None and registry.least.asks_texts_again:
        raise Refused(_not_given_again(registry, version))
    theirs = last_answers_again(registry, opponent) if opponent else None
    about = About(
        tenant=version.tenant,
        adapter=version.id,
        content_digest=version.summary.content_digest,
        answers_sha256=answers_digest(version),
        against=opponent.id if opponent else BASE,
        against_answers_sha256=answers_digest(opponent) if opponent else None,
        guidelines_sha256=sha256_text(guidelines) if guidelines is not None else None,
        regression_sha256=again.report_sha256 if again else None,
        against_regression_sha256=theirs.report_sha256 if theirs else None,
    )
    seed = default_seed(version.summary.content_digest, about.against) if seed is None else seed
    choice = Choice([one.id for one in people], each, pairs, seed)
    answers = answers_of(registry, version, opponent, again, theirs)
    plan = make_plan(about, answers, choice, registry.clock())
    text = plan.to_json()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / PLAN_DIGEST, f"{sha256_text(text)}  {PLAN}\n")
        write_whole(folder / PLAN, text)
    except OSError as error:
        raise Unavailable(f"The review can't be kept in {folder} ({disk_reason(error)}).") from error
    return Session(folder, version, plan, sha256_text(text))


def open_session(registry: Registry, reference: str) -> Session:
    """Read the plan of a version's review.

    Raises:
        NotFound: nobody has started one.
        LoraOpsError: the plan was changed, or is about other content.
    """
    version = registry.get_exact(reference, whole=False)
    folder = folder_of(registry, version)
    path = folder / PLAN
    try:
        content = read_small(path)
        stated = read_small(folder / PLAN_DIGEST).decode(errors="replace").split(" ")[0]
    except FileNotFoundError as error:
        raise NotFound(
            f"Nobody has started a review of {version.id}: `lora-ops review start {version.id}` does."
        ) from error
    except OSError as error:
        raise Unavailable(f"{path} can't be read ({disk_reason(error)}).") from error
    digest = sha256_bytes(content)
    if digest != stated:
        raise Damaged(
            f"{path} was changed: its digest is not that of {PLAN_DIGEST}. Restore it; a review whose plan is "
            "lost must be started again."
        )
    plan = parse_plan(content, str(path))
    if (plan.adapter, plan.content_digest) != (version.id, version.summary.content_digest):
        raise Refused(
            f"{path} is about a {plan.adapter} of other content ({plan.content_digest[:12]}…, and here it has "
            f"{version.summary.content_digest[:12]}…): move the folder away, and start a review of this one."
        )
    return Session(folder, version, plan, digest)


def parse_plan(content: bytes, name: str) -> ReviewPlan:
    """Return a plan from its file.

    Raises:
        Damaged: it is not what lora-ops wrote.
    """
    try:
        return ReviewPlan.model_validate_json(content)
    except ValidationError as error:
        raise Damaged(f"{name} is no plan of a review ({first_problem(error)}): start it again.") from error


def is_drawn(registry: Registry, session: Session) -> bool:
    """Return whether pairs, sides and lists of a plan are what its seed draws from the kept answers.

    Raises:
        Damaged: the plan is about other answers, or names a regression report that was not filed.
        LoraOpsError: kept answers are missing or were changed.
    """
    return redrawn(session.plan, planned_answers(registry, session.version, session.plan))


def require_drawn(registry: Registry, session: Session) -> None:
    """Refuse a plan whose pairs, sides or lists are not what its seed draws from the kept answers.

    Raises:
        Damaged: somebody chose them, or the plan is about other answers.
        LoraOpsError: kept answers are missing or were changed.
    """
    plan = session.plan
    if not is_drawn(registry, session):
        raise Damaged(
            f"The plan of the review of {plan.adapter} is not what its seed draws: somebody changed it. Move "
            f"{session.folder} away, and start the review again."
        )


def texts_of(registry: Registry, session: Session) -> dict[str, Texts]:
    """Return what each planned row says, from the answers that the plan is bound to.

    Raises:
        LoraOpsError: kept answers are missing or were changed, or a version has other ones than on that day.
    """
    return _texts(session.plan, planned_answers(registry, session.version, session.plan))


def _texts(plan: ReviewPlan, frame: "pd.DataFrame") -> dict[str, Texts]:
    planned = {pair.row for pair in plan.pairs}
    return {
        row: Texts(*texts)
        for row, *texts in zip(*(frame[name] for name in ("row", *Texts._fields)), strict=True)
        if row in planned
    }


def require_given_again(registry: Registry, session: Session) -> None:
    """Refuse to take votes that no step may rest on, since they are on packaged answers.

    Raises:
        Refused: the plan names no regression report, as those of earlier releases do.
    """
    if session.plan.regression_sha256 is None and registry.least.asks_texts_again:
        name = session.version.id
        raise Refused(
            f"The review of {name} shows packaged answers, and a step needs votes on answers that were given "
            f"again: move {session.folder} away, and run `lora-ops gate {name}`, then `lora-ops review start "
            f"{name}`."
        )


def rows_with_other_texts(registry: Registry, session: Session, now: AnswersAgain) -> frozenset[str]:
    """Return the planned rows of which a regression report has other answers than reviewers were shown.

    Args:
        registry: where the version is.
        session: its review, whose plan names the report that it was drawn from.
        now: the answers of the report by which the votes are counted.

    Raises:
        LoraOpsError: kept answers are missing or were changed.
    """
    if now.report_sha256 == session.plan.regression_sha256:
        return frozenset()
    shown = texts_of(registry, session)
    given = _texts(session.plan, planned_answers(registry, session.version, session.plan, now))
    return frozenset(row for row, texts in shown.items() if given.get(row) != texts)


def reviewer_of(registry: Registry, session: Session, actor: str) -> Person:
    """Return who votes, and refuse whoever has no list in the plan, no role, or is the author.

    Raises:
        LoraOpsError: they may not vote.
    """
    version = session.version
    team = owners_of(registry, version.tenant)
    person = require_role_in(team, actor, JUDGE, f"vote on {version.id}")
    _require_other_than_author(registry, version, team, person)
    if person.id not in session.plan.tasks:
        raise Refused(
            f"{person.id} is not among the reviewers of {version.id}: {', '.join(session.plan.tasks)} are."
        )
    return person


def guidelines_of(root: Path, tenant: str) -> str | None:
    """Return the tenant's guidelines for reviewers; None where it has none.

    Raises:
        Unavailable: the file can't be read as UTF-8.
    """
    path = root / GUIDELINES / f"{tenant}.md"
    try:
        return read_small(path).decode("utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"{path} can't be read as text in UTF-8: save it again.") from error


def require_planned_guidelines(plan: ReviewPlan, guidelines: str | None) -> None:
    """Refuse to show other guidelines than those that the plan, and so the evidence, names.

    Raises:
        Refused: they were changed or removed after the review was started.
    """
    digest = sha256_text(guidelines) if guidelines is not None else None
    if plan.guidelines_sha256 not in (None, digest):
        raise Refused(
            f"{GUIDELINES}/{plan.tenant}.md is not what it was when the review of {plan.adapter} was started, "
            "and reviewers must judge by the same text: bring it back (`git checkout`), or move the review's "
            "folder away and start another one."
        )


def _chosen(registry: Registry, version: Version, names: Sequence[str]) -> list[Person]:
    team = owners_of(registry, version.tenant)
    if team.person(version.summary.author) is None:
        raise Refused(f"A review of {version.id} can't be started yet; missing: {unknown_author(version)}.")
    if not names:
        author, marks = team.person(version.summary.author), author_marks(registry, version)
        return [one for one in team.with_role(JUDGE) if one != author and not is_author(one, marks)]
    found = {}
    for name in names:
        person = require_role_in(team, name, JUDGE, f"vote on {version.id}")
        _require_other_than_author(registry, version, team, person)
        found[person.id] = person
    return list(found.values())


def _require_other_than_author(registry: Registry, version: Version, team: Team, person: Person) -> None:
    author = team.person(version.summary.author)
    if author is None:
        raise Refused(f"Nobody can vote on {version.id} yet; missing: {unknown_author(version)}.")
    if person == author or is_author(person, author_marks(registry, version)):
        raise Refused(f"{person.name} is the author of {version.id}: others must judge its answers.")


def _require_new(folder: Path, version: Version) -> None:
    begun = sorted(path.stem for path in (folder / "votes").glob("*.jsonl"))
    if begun:
        raise Refused(
            f"The review of {version.id} has votes already ({', '.join(begun)}): go on with it, or move "
            f"{folder} away and start another one."
        )


def _opponent(registry: Registry, version: Version, against: str) -> Version:
    name = f"{version.tenant}@production" if against == "production" else against
    other = registry.get(name)
    if other.tenant != version.tenant or other.id == version.id:
        raise LoraOpsError(f"{version.id} is compared with another version of '{version.tenant}', or `base`.")
    return other


def _not_given_again(registry: Registry, version: Version) -> str:
    """Say what comes before a review, and what to do where no answer can be given again."""
    first = f"Reviewers judge the answers that base model and adapter of {version.id} give again"
    if "regression" not in filed(version, registry.log.entries(version.tenant, version.number)):
        return f"{first}: run `lora-ops gate {version.id}` first."
    return (
        f"{first}, and its last regression report has none: run `lora-ops gate {version.id}` first, which "
        "says what it needs. Where base model or data are gone for good, `registry.evidence.evaluation_again: "
        "false` lets reviewers judge the packaged answers, and `show` says so."
    )
