"""Changes of owners.yaml are entries of the audit log, so that who might approve on a day can be proved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.changes import Change
from lora_ops.registry.owners import Owners, parse_owners
from lora_ops.registry.transactions import Transactions

KIND, FILE = "owners", "owners.yaml"


@contextmanager
def change_with_owners(registry: Transactions, actor: str, *, despite_head: bool = False) -> Iterator[Change]:
    """Begin a change whose first entry tells of owners.yaml, if that is not the file that the log knows.

    Whoever acts next is named as the actor: the file itself is edited in git, by whom its commit says.

    Args:
        registry: what is changed.
        actor: who does it.
        despite_head: see `Transactions.change`.
    """
    with registry.change(actor, despite_head=despite_head) as change:
        note_owners(registry, change)
        yield change


def note_owners(registry: Transactions, change: Change, *, begin: bool = True) -> bool:
    """Append an entry with owners.yaml as it is now, unless the log ends with the same; say whether it did.

    Args:
        registry: whose owners.
        change: the transaction.
        begin: also where the log holds no owners.yaml yet. A change that asks nobody's role, such as
            registering, leaves that to the first one that does.
    """
    if registry.owners is None:
        return False
    text = registry.owners.text
    entries = registry.log.of_kind(KIND)
    if not entries and not begin:
        return False
    before = entries[-1].body.get("owners_sha256") if entries else None
    if before == sha256_text(text):
        return False
    change.note(
        "changed" if entries else "read",
        KIND,
        FILE,
        owners_sha256=sha256_text(text),
        replaces_sha256=before,
        text=text,
    )
    return True


def owners_before(registry: Transactions, entry: AuditEntry) -> Owners:
    """Return the owners.yaml that held when an entry was written.

    Raises:
        LoraOpsError: the log knows no such file, or another one than the entry names.
    """
    known = [one for one in registry.log.of_kind(KIND) if one.seq < entry.seq]
    if not known or known[-1].body.get("owners_sha256") != entry.body.get("owners_sha256"):
        raise LoraOpsError(f"Entry {entry.seq} names an owners.yaml that the log does not hold.")
    return kept_owners(known[-1])


def owners_notes(entries: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield what can't be read of each owners.yaml that the log holds: it is there for ever."""
    for entry in entries:
        if entry.subject.kind != KIND:
            continue
        try:
            people = kept_owners(entry).unreadable_keys
        except LoraOpsError as error:
            yield str(error).rstrip(".")
            continue
        for person in people:
            yield (
                f"owners.yaml of entry {entry.seq} has a key of {person} that can't be read: whatever it "
                "signed doesn't count"
            )


def kept_owners(entry: AuditEntry) -> Owners:
    """Return the owners.yaml that an entry of the log holds.

    Raises:
        LoraOpsError: it can't be read, or is another one than the entry names.
    """
    text = str(entry.body.get("text"))
    if sha256_text(text) != entry.body.get("owners_sha256"):
        raise LoraOpsError(f"Entry {entry.seq} holds an owners.yaml that is not the one it names.")
    return _parsed(text, f"owners.yaml of entry {entry.seq}")


@lru_cache(maxsize=64)
def _parsed(text: str, name: str) -> Owners:
    """Read each file once: `verify` asks for all of them again and again."""
    return parse_owners(text, name, kept=True)
