"""Whether the registry still is what its audit log says: chain, digests, signatures and state, recomputed."""

import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError, disk_reason
from lora_ops.paths import EVALUATION_PAGE
from lora_ops.records.registry import AuditEntry
from lora_ops.registry import packages
from lora_ops.registry.archived_files import archived, archived_digests
from lora_ops.registry.audit import Head, Row, chain_problem
from lora_ops.registry.by_hand import too_many_given
from lora_ops.registry.consistency import is_other_page
from lora_ops.registry.demo import demo_notes
from lora_ops.registry.eligibility import SERVING
from lora_ops.registry.gc import find_garbage
from lora_ops.registry.head_acceptance import accepted_heads
from lora_ops.registry.owners_log import owners_notes
from lora_ops.registry.replay import BORN, Alias, Told, alias_mismatches, replay_aliases, unlike
from lora_ops.registry.requirements import STAGES, about_twins, allowed
from lora_ops.registry.rollout_rules import broken_rollouts
from lora_ops.registry.rotation import key_notes, key_problems
from lora_ops.registry.route_entries import route_mismatches, routes_of
from lora_ops.registry.route_rules import broken_routes
from lora_ops.registry.rules import broken_rules, signer_notes, weaknesses
from lora_ops.registry.store import Registry
from lora_ops.registry.transactions import CLOCK_TOLERANCE_SECONDS
from lora_ops.registry.twins import Twins, misstated_weights
from lora_ops.registry.versions import Summary, Version


class Verification(NamedTuple):
    """What was looked at and everything that is wrong, the first wrong record first."""

    entries: int
    versions: int
    files: int
    head: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def verify(registry: Registry, *, files: bool = True) -> Verification:
    """Recompute the chain of the audit log, replay it, and compare with tables, files and signatures.

    Writers are not held up: every query sees the same moment.

    Args:
        registry: which.
        files: also read every kept file and verify every signature (time goes with the bytes kept).

    Raises:
        LoraOpsError: the database can't be read at all.
    """
    last = None
    while True:
        with registry.db.reading():
            head = registry.log.head()
            tail = registry.anchor.problem(head)
            # A change committed between these two reads looks like a wrong head, but then the log has grown.
            if tail is None or head == last:
                result = _verify(registry, head, tail, files)
                break
        last = head
    if result.ok:
        registry.remember(head)
    return result


def _verify(registry: Registry, head: Head, tail: str | None, files: bool) -> Verification:
    rows = registry.log.rows()
    versions = {(one.tenant, one.number): one for one in registry.summaries()}
    broken = chain_problem(rows)
    problems = [problem for problem in (broken, tail, registry.structure.problem(thorough=True)) if problem]
    warnings: list[str] = []
    kept: set[str] = set()
    if not broken:
        # A broken chain can't be replayed: everything after the first wrong entry is hearsay.
        entries = registry.log.entries()
        problems += _replay(registry, entries, versions)
        problems += key_problems(registry, entries)
        problems += broken_rules(registry, entries)
        problems += broken_routes(entries)
        problems += broken_rollouts(entries)
        given = list(too_many_given(entries))
        problems += [one.said for one in given if one.is_broken]
        warnings += [one.said for one in given if not one.is_broken]
        warnings += [*key_notes(registry, entries), *owners_notes(entries)]
        kept = {file.sha256 for entry in entries for file in entry.kept_files}
    for one in versions.values():
        try:
            manifest = registry.get(one.id).manifest
        except LoraOpsError:
            continue  # its digest is off too, and the replay has named it
        kept |= {file.sha256 for file in manifest.files.values()}
        if one.signature:
            kept.add(one.signature)
        else:
            problems.append(f"{one.id} carries no signature")
    away = [one for one in archived(registry).values() if not registry.files.holds(one.file.sha256)]
    warnings += [f"{one.text}: `lora-ops archive verify` reads them there" for one in away]
    kept -= {one.file.sha256 for one in away} & archived_digests(registry)
    if files:
        warnings += _orphaned(registry)
        problems += _damaged(registry, kept)
        problems += _unsigned(registry, versions)
        problems += _misstated(registry, versions)
        problems += _other_pages(registry, versions)
        warnings += _twins(registry, versions)
    held = registry.held()
    problems += [
        problem for problem in (registry.holds.unreadable(), *(one.problem for one in held)) if problem
    ]
    warnings += [hold.text for hold in held]
    warnings += [stop.text for stop in registry.stops.all()]
    warnings += _doubtful_holds(registry, versions)
    warnings += [*_unpinned(registry), *_open_to_all(registry), *_dated_ahead(registry, rows)]
    if not broken:
        warnings += [*_weak(registry, versions), *demo_notes(registry), *accepted_heads(registry)]
    return Verification(len(rows), len(versions), len(kept), head.text, tuple(problems), tuple(warnings))


def _doubtful_holds(registry: Registry, versions: dict[tuple[str, int], Summary]) -> Iterator[str]:
    """Yield which holds can't become revocations, and which files they are: nothing removes those by itself."""
    known = {one.id: one for one in versions.values()}
    for hold in registry.holds.all():
        summary, files = known.get(hold.version), registry.holds.files(hold)
        if summary is None or not registry.is_stopped_by(hold, summary):
            yield (
                f"a hold of {hold.version} is about no version that is here: remove {files}, unless a backup "
                "with that version may be restored"
            )
        elif not hold.is_signed and registry.hold_of(summary):
            yield (
                f"nobody can tell who stopped {hold.version}: if somebody of its team did, `lora-ops registry "
                f"revoke {hold.version} --reason TEXT` signs it. If nobody did, remove {files}, "
                "also in each gateway's own clone, and restart the gateways"
            )


def _weak(registry: Registry, versions: dict[tuple[str, int], Summary]) -> Iterator[str]:
    for one in versions.values():
        history = registry.log.entries(one.tenant, one.number)
        notes = weaknesses(history, one.id)
        with suppress(LoraOpsError):  # the replay has named a row that can't be read
            notes += signer_notes(registry, registry.get(one.id), history)
        yield from (f"{one.id}: {note}" for note in notes)


def _twins(registry: Registry, versions: dict[tuple[str, int], Summary]) -> Iterator[str]:
    twins = Twins(registry)
    for one in versions.values():
        with suppress(LoraOpsError):  # the replay has named a row that can't be read
            yield from about_twins(registry, registry.get(one.id), twins)


def _orphaned(registry: Registry) -> Iterator[str]:
    try:
        orphans = find_garbage(registry).orphans
    except OSError as error:  # a folder that can't be read; its files are named as such
        yield f"nobody can tell which kept files nothing names ({disk_reason(error)})"
        return
    if orphans:
        many = f"{len(orphans)} kept files are" if len(orphans) > 1 else "1 kept file is"
        size = sum(one.bytes for one in orphans)
        yield f"{many} named by nothing ({size:,} bytes): `lora-ops registry gc` removes what is a day old"


def _dated_ahead(registry: Registry, rows: Sequence[Row]) -> Iterator[str]:
    latest = utc(registry.clock() + timedelta(seconds=CLOCK_TOLERANCE_SECONDS))
    ahead = [row for row in rows if row.at > latest]
    if ahead:
        first = ahead[0]
        yield (
            f"entry {first.seq} is dated {first.at}, ahead of this machine's clock: the clock of {first.actor} "
            f"was wrong, or this one is ({len(ahead)} such entries)"
        )


def _unpinned(registry: Registry) -> Iterator[str]:
    keys = registry.signer.known()
    if keys and not registry.signer.settings.trusted_keys:
        yield (
            f"no key is pinned, so whoever can write in {registry.path} could sign another history with a key "
            f"of their own: list those that are yours ({', '.join(keys)}) under registry.signing.trusted_keys "
            "in params.yaml"
        )


def _open_to_all(registry: Registry) -> Iterator[str]:
    """Yield that everybody may read the database, as earlier releases made it: a reader can lock it."""
    path = registry.db.path
    with suppress(OSError):
        if path.stat().st_mode & stat.S_IROTH:
            yield (
                f"every user of this machine may read {path}, and whoever reads it can keep it locked, so that "
                f"nothing can be revoked: chmod o= {shlex.quote(str(path))}*"
            )


def _replay(
    registry: Registry, entries: list[AuditEntry], versions: dict[tuple[str, int], Summary]
) -> Iterator[str]:
    known: dict[tuple[str, int], Told] = {}
    aliases: dict[Alias, int] = {}
    for entry in entries:
        tenant, effects = entry.tenant, entry.effects
        if tenant is None or entry.number is None:
            continue  # it is about something else than a version, and changes no row of one
        born = entry.action in BORN
        for number, state in effects.get("states", {}).items():
            key = (tenant, int(number))
            before = known.get(key)
            if born == (before is not None) or (before and not allowed(before.state, state)):
                yield f"entry {entry.seq} makes {tenant}@{number} '{state}', which the rules do not allow"
            yield from _misnamed(entry, key, state, before)
            known[key] = before._replace(state=state) if before else Told(entry, state, None)
        yield from _misnamed_aliases(entry)
        replay_aliases(tenant, effects, aliases)
        due = effects.get("review_due")
        if due and (tenant, entry.number) in known:
            known[tenant, entry.number] = known[tenant, entry.number]._replace(review_due=due)
    for (tenant, number), state in known.items():
        one = versions.get((tenant, number))
        if one is None:
            yield f"{tenant}@{number}, registered by entry {state.born.seq}, was removed"
        else:
            yield from _unlike(registry, one, state)
    for tenant, number in versions.keys() - known.keys():
        yield f"{tenant}@{number} was added by something that is not lora-ops: no entry tells of it"
    yield from alias_mismatches(registry.aliases(), aliases)
    yield from route_mismatches(registry.routes(), routes_of(registry.log))


def _misnamed(entry: AuditEntry, key: tuple[str, int], state: str, before: Told | None) -> Iterator[str]:
    """Yield that an entry moves a version to a stage, and is no promotion of it by what it says.

    What a step lacked is judged by its action and by the state before it, so these must be true.
    """
    version = f"{key[0]}@{key[1]}"
    if state in STAGES and (entry.action != state or entry.number != key[1]):
        yield (
            f"entry {entry.seq} makes {version} '{state}', and it is '{entry.action}' of {entry.subject}: only "
            "a promotion does that"
        )
    elif state in STAGES and before and ("rules" in entry.body or "before" in entry.body):
        said = entry.body.get("before")  # entries of the first releases name neither
        if said != before.state:
            yield f"entry {entry.seq} says that {version} was {said!r} before it, and it was {before.state!r}"


def _misnamed_aliases(entry: AuditEntry) -> Iterator[str]:
    """Yield each stage whose name an entry gives to a version that it does not promote to that stage."""
    if entry.action == "imported":
        return  # what an older release served
    for alias, number in entry.effects.get("aliases", {}).items():
        if number is not None and alias in SERVING and (alias, number) != (entry.action, entry.number):
            yield (
                f"entry {entry.seq} lets {entry.tenant}@{alias} name {entry.tenant}@{number}, and it is "
                f"'{entry.action}' of {entry.subject}: only a promotion does that"
            )


def _unlike(registry: Registry, one: Summary, told: Told) -> Iterator[str]:
    text = registry.manifest_text(one.tenant, one.number)
    if text is None:
        yield f"the manifest of {one.id} was removed"
    else:
        yield from unlike(Version(one, text), told)


def _damaged(registry: Registry, kept: set[str]) -> Iterator[str]:
    for digest in sorted(kept):
        try:
            registry.files.checked(digest, f"file {digest[:12]}…")
        except LoraOpsError as error:
            yield str(error).rstrip(".")


def _unsigned(registry: Registry, versions: dict[tuple[str, int], Summary]) -> Iterator[str]:
    for one in versions.values():
        try:
            version = registry.get(one.id)
            digests = [file.sha256 for file in version.manifest.files.values()]
            if one.signature and all(map(registry.files.holds, [*digests, one.signature])):
                packages.check_signature(registry, version)  # a missing file has been named above
        except LoraOpsError as error:
            yield str(error).rstrip(".")


def _other_pages(registry: Registry, versions: dict[tuple[str, int], Summary]) -> Iterator[str]:
    for one in versions.values():
        with suppress(LoraOpsError):  # a row or a file that can't be read has been named above
            manifest = registry.get(one.id).manifest
            page = manifest.files.get(EVALUATION_PAGE)
            if page and is_other_page(registry.files.checked(page.sha256, EVALUATION_PAGE), manifest):
                yield f"the page of {one.id} ({EVALUATION_PAGE}) is of another evaluation than its package"


def _misstated(registry: Registry, versions: dict[tuple[str, int], Summary]) -> Iterator[str]:
    for one in versions.values():
        with suppress(LoraOpsError):  # a row or a file that can't be read has been named above
            wrong = misstated_weights(registry, registry.get(one.id))
            if wrong:
                yield wrong
