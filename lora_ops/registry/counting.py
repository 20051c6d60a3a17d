"""From raw results to evidence: rows in, counts out, so that nobody types a number."""

import codecs
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from lora_ops import __version__
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.free_text import count_letters
from lora_ops.hashing import sha256_bytes
from lora_ops.named_paths import why_no_file
from lora_ops.records.evidence import (
    AnyEvidence,
    HumanEvidence,
    PolicyCheck,
    PolicyEvidence,
    PolicyRow,
    Row,
    Source,
    TextEvidence,
    TrafficEvidence,
    TrafficRow,
    VoteRow,
)
from lora_ops.registry.authors import is_author
from lora_ops.registry.documents import document_problem, is_document
from lora_ops.registry.owners import Team
from lora_ops.registry.readable import readable
from lora_ops.settings.files import first_problem
from lora_ops.small_files import parse_json

SOURCE_BYTES = 256 * 2**20
TEXT_LETTERS = 20  # what is shorter than a short sentence tells nobody what happened
CLOCKS_DIFFER = timedelta(minutes=5)
COLUMNS = {
    "policy": "adapter, check, prompt, passed",
    "human_evaluation": "adapter, pair, annotator, vote (adapter, same or base)",
    "shadow": "adapter, time, status, request_id, and better (adapter, same or production) where answers were "
    "compared",
    "canary": "adapter, time, status, request_id",
}
AnyRow = TypeVar("AnyRow", bound=Row)


class About(NamedTuple):
    """The version that evidence speaks of, and what of its life the counting needs.

    Attributes:
        tenant, adapter, content_digest: which content.
        since: when it entered the stage of the evidence, or a later time; None while it has not.
        now: the time at which the counts are made.
        votes_needed: how many people must judge a pair so that it counts.
        team: the people whose votes count; needed for votes alone.
        author: who made the version, and does not vote.
        author_marks: names and keys of everybody whom owners.yaml has named as the author.
        accept_replay: replayed requests count as traffic.
        is_demo: sample votes count.
    """

    tenant: str
    adapter: str
    content_digest: str
    since: datetime | None
    now: datetime
    votes_needed: int
    team: Team | None = None
    author: str = ""
    author_marks: frozenset[str] = frozenset()
    accept_replay: bool = False
    is_demo: bool = False


class Counted(NamedTuple):
    """A document and the bytes that it was counted from."""

    document: AnyEvidence
    source: bytes


def count(kind: str, about: About, path: Path) -> Counted:
    """Read raw results of one kind and count them.

    Args:
        kind: `policy`, `human_evaluation`, `shadow` or `canary` (JSON lines); `incident` or `review` (any
            file).
        about: the version that the rows must name.
        path: the file; for `shadow` and `canary` also the folder of a gateway's event log.

    Raises:
        LoraOpsError: there is nothing to count, or a row is wrong or about another version; the text names the
            line.
    """
    source = _read(path, about, log=kind in ("shadow", "canary"))
    head: dict[str, Any] = {
        "tenant": about.tenant,
        "adapter": about.adapter,
        "content_digest": about.content_digest,
        "made_by": f"lora-ops {__version__}",
        "made_at": about.now,
        "source": Source(name=path.name, sha256=sha256_bytes(source), bytes=len(source)),
    }
    return Counted(COUNT[kind](head, source, about, kind), source)


def plain(text: str) -> str:
    """Return what makes a text another one: not letter case, spaces, invisible characters or their encoding."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(one for one in folded if _is_shown(one)).split())


def _is_shown(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) not in ("Cf", "Cc")


def _policy(head: dict[str, Any], source: bytes, about: About, kind: str) -> AnyEvidence:
    prompts: dict[str, dict[str, bool]] = defaultdict(dict)
    names: dict[str, str] = {}
    unbound = 0
    for place, row in _rows(PolicyRow, head, source, kind):
        _about(row, about, head, place)
        unbound += row.digest is None
        key, prompt = _shown(row.check, "check", head, place), _shown(row.prompt, "prompt", head, place)
        name = names.setdefault(key, row.check)
        if prompt in prompts[name]:
            raise LoraOpsError(
                f"{_line(head, place)}: check '{row.check}' has this prompt already, and each counts once."
            )
        prompts[name][prompt] = row.passed
    checks = [
        PolicyCheck(
            name=name,
            passed=all(passed.values()),
            prompts=len(passed),
            failed=len(passed) - sum(passed.values()),
        )
        for name, passed in prompts.items()
    ]
    return PolicyEvidence(**head, checks=checks, unbound=unbound)


def _votes(head: dict[str, Any], source: bytes, about: About, kind: str) -> AnyEvidence:
    assert about.team is not None
    votes: dict[str, dict[str, str]] = defaultdict(dict)
    author, others, unbound, samples = about.team.person(about.author), 0, 0, 0
    for place, row in _rows(VoteRow, head, source, kind):
        _about(row, about, head, place)
        unbound += row.digest is None
        person, pair = about.team.person(plain(row.annotator)), _shown(row.pair, "pair", head, place)
        if person is None or person == author or is_author(person, about.author_marks):
            others += 1
            continue
        if person.id in votes[pair]:
            raise LoraOpsError(
                f"{_line(head, place)}: {person.id} has judged pair {row.pair} already, and each vote "
                "counts once."
            )
        if row.sample and not about.is_demo:
            raise Refused(
                f"{_line(head, place)} is a sample for a demo: no person gave this vote, and it counts in the "
                f"registry of `make demo` alone. Let people judge {about.adapter} (`lora-ops review start "
                f"{about.adapter}`)."
            )
        samples += row.sample
        votes[pair][person.id] = row.vote
    if not votes:
        voters = [one for one in about.team.people if one != author]
        known = ", ".join(one.id for one in voters if not is_author(one, about.author_marks))
        raise LoraOpsError(
            f"{head['source'].name} has no vote of anybody whom owners.yaml names and who is not the author of "
            f"{about.adapter}: the votes of {known} count."
        )
    judged = [list(said.values()) for said in votes.values() if len(said) >= about.votes_needed]
    results = Counter(map(_majority, judged))
    return HumanEvidence(
        **head,
        annotators=len({who for said in votes.values() for who in said}),
        votes_needed=about.votes_needed,
        pairs=len(judged),
        too_few_votes=len(votes) - len(judged),
        other_votes=others,
        adapter_better=results["adapter"],
        same=results["same"],
        base_better=results["base"],
        unbound=unbound,
        samples=samples,
    )


def _majority(votes: list[str]) -> str:
    adapter, base = votes.count("adapter"), votes.count("base")
    return "adapter" if adapter > base else "base" if base > adapter else "same"


def _traffic(head: dict[str, Any], source: bytes, about: About, kind: str) -> AnyEvidence:
    if about.since is None:
        raise LoraOpsError(f"{about.adapter} has not been in '{kind}': there are no requests to count.")
    rows, seen, left_out = list[TrafficRow](), set[str](), 0
    for place, row in _rows(TrafficRow, head, source, kind):
        if row.time > about.now + CLOCKS_DIFFER:
            raise LoraOpsError(f"{_line(head, place)}: {row.time.isoformat()} has not come yet.")
        if not _is_of(row.adapter, row.digest, about) or row.time < about.since:
            continue
        if row.replayed and not about.accept_replay:
            raise Refused(
                f"{_line(head, place)} was replayed: nobody asked it, so that it is no {kind} traffic. Wait "
                "for live traffic, or set rollout.accept_replay in params.yaml, for a demo or CI."
            )
        marks = _marks(row)
        if seen.isdisjoint(marks) and (200 <= row.status < 300 or row.status >= 500):
            rows.append(row)
        else:
            left_out += 1
        seen |= marks
    if not rows:
        raise LoraOpsError(
            f"{head['source'].name} has no request to {about.adapter} that was answered or failed since it "
            f"entered '{kind}' ({about.since.isoformat()})."
        )
    answered = [row for row in rows if row.status < 300]
    better = Counter(row.better for row in answered)
    times = [row.time for row in answered or rows]
    return TrafficEvidence(
        **head,
        kind=kind,  # type: ignore[arg-type]
        first_at=min(times),
        last_at=max(times),
        requests=len(rows),
        errors=len(rows) - len(answered),
        left_out=left_out,
        adapter_better=better["adapter"],
        same=better["same"],
        production_better=better["production"],
        replayed=sum(row.replayed for row in rows),
        unbound=sum(row.digest is None for row in rows),
    )


def _marks(row: TrafficRow) -> set[str]:
    """Return what tells a request from every other one; without an id the whole row must."""
    ids = {f"{name} {one}" for name, one in (("id", row.id), ("request", row.request_id)) if one}
    return ids or {row.model_dump_json()}


def _is_of(adapter: Any, digest: Any, about: About) -> bool:
    """Whether a request went to this version: another registry may give its name to other content."""
    return adapter == about.adapter and digest in (None, about.content_digest)


def _text(head: dict[str, Any], source: bytes, about: About, kind: str) -> AnyEvidence:
    problem = document_problem(source)
    if problem:
        raise LoraOpsError(
            f"{head['source'].name} {problem}: save it again, and open it to see that it is whole."
        )
    if is_document(source):
        return TextEvidence(**head, kind=kind, characters=len(source))  # type: ignore[arg-type]
    encoding = "utf-16" if source.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = source.decode(encoding)
    except UnicodeDecodeError as error:
        raise LoraOpsError(
            f"{head['source'].name} is no text in UTF-8 (byte {error.start}), no picture, no PDF and no office "
            "document: save it as one of these."
        ) from error
    letters = count_letters(readable(text))
    if letters < TEXT_LETTERS:
        raise LoraOpsError(
            f"{head['source'].name} has {letters} letters and digits to read: evidence of kind '{kind}' needs "
            f"at least {TEXT_LETTERS}."
        )
    characters = len("".join(text.split()))
    return TextEvidence(**head, kind=kind, characters=characters)  # type: ignore[arg-type]


COUNT: dict[str, Callable[[dict[str, Any], bytes, About, str], AnyEvidence]] = {
    "policy": _policy,
    "human_evaluation": _votes,
    "shadow": _traffic,
    "canary": _traffic,
    "incident": _text,
    "review": _text,
}


def _read(path: Path, about: About, *, log: bool) -> bytes:
    try:
        if log and path.is_dir():
            return _logged(path, about)
        if not path.is_file():
            why = why_no_file(path)
            raise LoraOpsError(f"{why[0].upper()}{why[1:]}: evidence is counted from a file of raw results.")
        size = path.stat().st_size
        if size > SOURCE_BYTES:
            raise LoraOpsError(f"{path} has {size:,} bytes: more than {SOURCE_BYTES:,} are not kept.")
        content = path.read_bytes()
    except OSError as error:
        raise LoraOpsError(f"{path} can't be read: {error.strerror}.") from error
    if not content.strip():
        raise LoraOpsError(f"{path} is empty: an empty file is no evidence.")
    return content


def _logged(folder: Path, about: About) -> bytes:
    """Return the lines of a gateway's event log that name this version; other tenants' requests stay out."""
    lines = []
    for path in sorted(one for one in folder.glob("*.jsonl") if one.is_file()):
        for line in path.read_bytes().split(b"\n"):
            try:
                event = parse_json(line) if line.strip() else {}
            except ValueError:  # the last line of a gateway that was killed
                continue
            if (
                isinstance(event, dict)
                and _is_of(event.get("adapter"), event.get("digest"), about)
                and not _is_before(event.get("time"), about.since)
            ):
                lines.append(line)
    if not lines:
        raise LoraOpsError(f"The event log in {folder} has no request to {about.adapter}.")
    return b"\n".join(lines) + b"\n"


def _is_before(time: object, since: datetime | None) -> bool:
    try:
        return since is not None and datetime.fromisoformat(str(time)) < since
    except (ValueError, TypeError):  # whose line is named where it is read
        return False


def _rows(form: type[AnyRow], head: dict[str, Any], source: bytes, kind: str) -> Iterator[tuple[int, AnyRow]]:
    """Each row with its line number; lines end with a line feed, as JSON lines do, and nothing else."""
    for place, line in enumerate(source.split(b"\n"), 1):
        if not line.strip():
            continue
        text = line.removeprefix(b"\xef\xbb\xbf")
        try:
            row = form.model_validate_json(text)
            parse_json(text, unique=True)
        except ValueError as error:
            what = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise LoraOpsError(
                f"{_line(head, place)}: {what}; evidence of kind '{kind}' is a file with one "
                f"JSON object in each line: {COLUMNS[kind]}."
            ) from error
        yield place, row


def _about(row: Row, about: About, head: dict[str, Any], place: int) -> None:
    """Refuse a row on another version, or on other content that another registry gave the same name.

    A row of an earlier release names no digest. Such rows are counted in the document (`unbound`).
    """
    if row.adapter != about.adapter:
        raise LoraOpsError(f"{_line(head, place)} is about {row.adapter}, not {about.adapter}.")
    if not _is_of(row.adapter, row.digest, about):
        raise LoraOpsError(
            f"{_line(head, place)} is about a {row.adapter} of other content (digest '{row.digest:.12}', and "
            f"here it has {about.content_digest[:12]}…): file it where that version is registered."
        )


def _shown(text: str, what: str, head: dict[str, Any], place: int) -> str:
    """Return a text as it is compared; refuse one of invisible characters alone, which looks like nothing."""
    found = plain(text)
    if not found:
        raise LoraOpsError(f"{_line(head, place)}: '{what}' has no visible character.")
    return found


def _line(head: dict[str, Any], place: int) -> str:
    return f"{head['source'].name}, line {place}"
