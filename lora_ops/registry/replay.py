"""What the audit log says a version must be, and where its rows say something else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_ops.clock import utc
from lora_ops.errors import Damaged
from lora_ops.hashing import sha256_text
from lora_ops.records.evaluation import ADAPTER
from lora_ops.records.manifest import SCHEMA_VERSION, content_digest
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.audit import matches_hash
from lora_ops.registry.versions import Version

if TYPE_CHECKING:
    from lora_ops.registry.queries import Queries

BORN = ("registered", "imported")
Alias = tuple[str, str]
"""Tenant and alias."""


class Told(NamedTuple):
    """What a version must be after some entries of the log."""

    born: AuditEntry
    state: str
    review_due: str | None


def replay(number: int, entries: Sequence[AuditEntry]) -> Told | None:
    """What entries, oldest first, make of version `number`; None when none of them registers it."""
    born, state, due = None, "", None
    for entry in entries:
        effects = entry.effects
        state = effects.get("states", {}).get(str(number), state)
        if entry.number == number:
            born = entry if entry.action in BORN else born
            due = effects.get("review_due", due)
    return Told(born, state, due) if born else None


def replay_aliases(tenant: str, effects: Mapping[str, Any], aliases: dict[Alias, int]) -> None:
    """Let `aliases` name what they name after an entry with these effects."""
    for alias, number in effects.get("aliases", {}).items():
        if number is None:
            aliases.pop((tenant, alias), None)
        else:
            aliases[tenant, alias] = number


def alias_mismatches(found: Mapping[Alias, int], told: Mapping[Alias, int]) -> Iterator[str]:
    """Yield where aliases don't name what the audit log says, in words."""
    if found == told:
        return
    for tenant, alias in sorted(found.keys() | told.keys()):
        now, said = found.get((tenant, alias)), told.get((tenant, alias))
        if now != said:
            yield (
                f"alias {tenant}@{alias} was changed: it names {now or 'nothing'}, "
                f"and the audit log says {said or 'nothing'}"
            )


def row_mismatches(version: Version, history: Sequence[AuditEntry]) -> Iterator[str]:
    """Where a version's rows are not what its own entries say, in words.

    So much can be said without reading the whole log: `verify` also sees an entry that was removed, or changed
    together with every hash after it.
    """
    for entry in history:
        if not matches_hash(entry):
            yield f"entry {entry.seq} of the audit log was changed"
    told = replay(version.number, history)
    if told is None:
        yield f"{version.id} was added by something that is not lora-ops: no entry tells of it"
    else:
        yield from unlike(version, told)


def require_rows(registry: "Queries", version: Version) -> None:
    """Refuse a version whose rows are not what its own entries say: whoever decides reads author and age there.

    Raises:
        Damaged: one row says something else.
        LoraOpsError: the stored manifest does not fit its schema.
    """
    for problem in row_mismatches(version, registry.log.entries(version.tenant, version.number)):
        raise Damaged(f"{version.id} can't be trusted: {problem}; run `lora-ops registry verify`.")


def unlike(version: Version, told: Told) -> Iterator[str]:
    """Where a version's rows are not what was told, in words."""
    if sha256_text(version.manifest_text) != told.born.body["manifest_sha256"]:
        yield f"the manifest of {version.id} was changed"
        return
    manifest = version.manifest
    metric = manifest.evaluation.primary
    expected: dict[str, Any] = {
        "state": told.state,
        "next_review_due": told.review_due,
        "author": told.born.body["author"],
        "registered_at": told.born.body["registered_at"],
        "content_digest": told.born.body["content_digest"],
        "signature": told.born.body["signature_sha256"],
        "fresh_until": utc(manifest.fresh_until),
        "primary_metric": metric,
        "primary_value": manifest.evaluation.metrics[metric][ADAPTER].value,
        "size_bytes": manifest.size_bytes,
    }
    for field, value in expected.items():
        found = getattr(version.summary, field)
        if found != value:
            yield f"the {field} of {version.id} was changed: it is {found!r}, and was {value!r}"
    if manifest.schema_version > SCHEMA_VERSION:
        return  # its rule is a newer release's; the log states both digests of it, and they were compared above
    if content_digest(version.manifest_text) != version.summary.content_digest:
        yield f"the content digest of {version.id} is not that of its manifest"
