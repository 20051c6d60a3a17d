"""Which versions' weights are in an archive, by the log; archived_weights.py is the way there and back."""

from contextlib import suppress
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.archive import ArchivedFile
from lora_ops.registry.files import InArchive
from lora_ops.registry.queries import Queries
from lora_ops.small_files import parse_json

ARCHIVED, RESTORED = "weights_archived", "weights_restored"


class Archived(NamedTuple):
    """A version whose weights the log calls archived.

    Attributes:
        version: such as `finance@3`.
        at: when (UTC, ISO 8601).
        file: what was archived, and where it is.
    """

    version: str
    at: str
    file: ArchivedFile

    @property
    def text(self) -> str:
        """Where the weights are and since when, as a sentence without its full stop."""
        return f"the weights of {self.version} are in the archive ({self.file.store}) since {self.at[:10]}"


def archived(registry: Queries) -> dict[str, Archived]:
    """Return the versions whose weights the log calls archived, by `finance@3`."""
    rows = registry.db.rows(
        "SELECT subject, at, action, body FROM audit WHERE kind = 'version' AND action IN (?, ?) ORDER BY seq",
        (ARCHIVED, RESTORED),
    )
    found: dict[str, Archived] = {}
    for version, at, action, body in rows:
        found.pop(version, None)
        if action == ARCHIVED:
            with suppress(ValueError, LookupError, TypeError):  # it was changed, as whoever verifies says
                found[version] = Archived(version, at, ArchivedFile.model_validate(parse_json(body)["archive"]))
    return found


def archived_copy(registry: Queries, digest: str) -> Archived | None:
    """Return the last entry that names an archived copy of a file, whichever version it was written for.

    A restore leaves the copy where it is. So an entry counts here although the weights came back since.
    """
    rows = registry.db.rows(
        "SELECT subject, at, body FROM audit WHERE kind = 'version' AND action = ? AND instr(body, ?)"
        " ORDER BY seq DESC",
        (ARCHIVED, digest),
    )
    for version, at, body in rows:
        with suppress(ValueError, LookupError, TypeError):  # it was changed, as whoever verifies says
            file = ArchivedFile.model_validate(parse_json(body)["archive"])
            if file.sha256 == digest:
                return Archived(version, at, file)
    return None


def in_archive(registry: Queries, digest: str) -> InArchive | None:
    """Return the error of whoever asks for a file that the log calls archived; None for any other file."""
    for one in archived(registry).values():
        if one.file.sha256 == digest:
            return InArchive(
                f"{one.text[0].upper()}{one.text[1:]}: `lora-ops archive restore {one.version}` brings them "
                "back."
            )
    return None


def archived_digests(registry: Queries) -> frozenset[str]:
    """Return the digests of the files that the log calls archived for each version whose package has them."""
    known = archived(registry)
    found = {one.file.sha256 for one in known.values()}
    if not found:
        return frozenset()
    for version in registry.versions():
        if version.id not in known:
            with suppress(LoraOpsError):  # a manifest that can't be read is named by whoever verifies
                found.discard(str(version.stored["files"].get(ADAPTER_FILES[0], {}).get("sha256")))
    return frozenset(found)
