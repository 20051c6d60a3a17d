"""An entry of the audit log as an artifact at W&B, where whoever may write can change it or add others."""

import json
import logging
from base64 import b64decode
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.hashing import canonical
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.audit import matches_hash
from lora_ops.registry.signing_keys import key_fingerprint, matches_signature

SHOWN = "shown"  # the tag of an entry whose effects can be seen on the adapters' aliases, tags and metadata

logger = logging.getLogger(__name__)


class SentEntry(NamedTuple):
    """One entry of the audit log as W&B holds it; `place` is the version number that W&B gave it."""

    place: int
    entry: AuditEntry
    signature: dict[str, str]
    public_key: str
    shown: bool

    @property
    def is_whole(self) -> bool:
        """Return whether hash and signature fit, by whatever key: else somebody changed it, or made it up."""
        public = self.public_key.encode()
        try:
            value = b64decode(self.signature["value"], validate=True)
        except (KeyError, TypeError, ValueError):
            return False
        fits = matches_signature(public, canonical(self.entry.stored()).encode(), value)
        return fits and self.signature.get("key") == key_fingerprint(public) and matches_hash(self.entry)


def metadata_of(entry: AuditEntry, signature: dict[str, str], public_key: str) -> dict[str, Any]:
    """Return what the artifact of an entry says of it."""
    return {
        "seq": entry.seq,
        "hash": entry.hash,
        "adapter": entry.subject.id if entry.subject.kind == "version" else None,
        "subject": str(entry.subject),
        "action": entry.action,
        "entry": canonical(entry.stored()),
        "signature": signature,
        "public_key": public_key,
    }


def place_of(artifact: Any) -> int:
    """Return the version number that W&B gave an artifact."""
    return int(artifact.version.removeprefix("v"))


def read_entry(artifact: Any) -> SentEntry | None:
    """Return the entry that an artifact holds, or None: nobody's junk may stop a change."""
    try:
        metadata = artifact.metadata
        return SentEntry(
            place_of(artifact),
            AuditEntry.model_validate(json.loads(metadata["entry"])),
            dict(metadata["signature"]),
            str(metadata["public_key"]),
            SHOWN in artifact.tags,
        )
    except (KeyError, TypeError, ValidationError, ValueError, RecursionError):
        logger.warning("%s at W&B is no entry of an audit log: it is left out.", artifact.qualified_name)
        return None
