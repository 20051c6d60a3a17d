"""Who made a version: everybody whom owners.yaml has given the author's name since it was registered.

The registry keeps the name under which a version was registered, and owners.yaml says whose name that is.
Whoever edits the file could give the name to somebody else, and then approve a version of their own. Where CI
registers, the people whose commits it was made from are authors, too (`register --changed-by`).
"""

from contextlib import suppress

from lora_ops.errors import LoraOpsError
from lora_ops.registry.owners import Person
from lora_ops.registry.owners_log import KIND, kept_owners
from lora_ops.registry.replay import BORN
from lora_ops.registry.transactions import Transactions
from lora_ops.registry.versions import Version


def author_marks(registry: Transactions, version: Version, before: int | None = None) -> frozenset[str]:
    """Return every name and key of the people whom owners.yaml has named as a version's author.

    The file of the day of registration counts, and each later one that the log holds.

    Args:
        registry: where.
        version: whose author.
        before: only entries of the log before this one count; None: all.
    """
    history = registry.log.entries(version.tenant, version.number)
    born = next((one for one in history if one.action in BORN and one.number == version.number), None)
    since = born.seq if born else 0
    found = set(born.body.get("author_marks", ())) if born else set()
    files = [one for one in registry.log.of_kind(KIND) if before is None or one.seq < before]
    held = [one for one in files if one.seq < since][-1:]
    for entry in (*held, *(one for one in files if one.seq > since)):
        with suppress(LoraOpsError):  # `verify` names a file that can't be read
            person = kept_owners(entry).team(version.tenant).person(version.summary.author)
            found |= person.marks if person else set()
    return frozenset(found)


def is_author(person: Person, marks: frozenset[str]) -> bool:
    """Return whether somebody has a name or a key of an author."""
    return not person.marks.isdisjoint(marks)
