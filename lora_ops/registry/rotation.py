"""Another private key for a registry: the log says when, why, and that the old key agreed."""

from collections.abc import Iterator, Sequence

from lora_ops.errors import Refused
from lora_ops.free_text import require_text
from lora_ops.hashing import canonical
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.owners_log import note_owners
from lora_ops.registry.store import Registry

ROTATED = "key_rotated"


def rotate_key(registry: Registry, *, actor: str, reason: str) -> str:
    """Make a new private key and let it sign from now on; what older keys signed stays valid.

    Killed anywhere, the next change or rotation goes on.

    Args:
        registry: whose key.
        actor: who does it.
        reason: why.

    Returns:
        The fingerprint of the new key.

    Raises:
        Refused: `registry.signing.trusted_keys` does not name the new key yet.
        LoraOpsError: no reason, a key that can't be read or made, or a log that can't be trusted.
    """
    require_text(reason, "Say why the key is replaced (--reason)")
    own, current = registry.signer.own, registry.log.current_key()
    own.settle(current)  # a rotation that was killed after its entry: its key is the current one
    rotation = own.rotate(current)
    trusted = registry.signer.settings.trusted_keys
    if trusted and rotation.new not in trusted:
        raise Refused(
            f"The new key ({rotation.new}) is not listed under registry.signing.trusted_keys in params.yaml: "
            "add it, keep the old one there, and run this again; nothing was changed."
        )
    old = own.fingerprint() if rotation.by_old else current
    signature = registry.signer.sign_text(_statement(old, rotation.new)) if rotation.by_old else None
    # A rotation that was killed may have signed the head with a key that the log does not name yet.
    with registry.change(actor, despite_head=True) as change:
        note_owners(registry, change, begin=False)
        change.note(ROTATED, "key", rotation.new, old=old, new=rotation.new, reason=reason, signature=signature)
    own.settle(rotation.new)
    registry.sign_head()
    return rotation.new


def key_problems(registry: Registry, entries: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield where an old key did not agree to the one that followed it, in words."""
    for entry in entries:
        if entry.action != ROTATED or entry.subject.kind != "key":
            continue
        old, new, signature = (entry.body.get(name) for name in ("old", "new", "signature"))
        if signature and not registry.signer.fits_text(_statement(old, new), signature):
            yield f"entry {entry.seq} replaced the key, and the old key's signature does not fit"


def key_notes(registry: Registry, entries: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield what should be known of the keys, and proves nothing wrong, in words."""
    for entry in entries:
        if entry.action == ROTATED and not entry.body.get("signature"):
            yield (
                f"entry {entry.seq} replaced the key without the old key's signature ({entry.actor}: "
                f"{entry.body.get('reason')})"
            )
    if entries and not registry.log.current_key():
        yield (
            "no entry of the audit log names the key that signs it: `lora-ops registry rotate-key` makes a new "
            "one that is named"
        )
    inside = registry.signer.own.inside
    if inside:
        yield (
            f"the private key {inside} lies in the registry's folder, so every copy of that holds it: move it "
            "elsewhere and name the place with LORA_OPS_SIGNING_KEY"
        )


def _statement(old: str | None, new: str | None) -> str:
    return canonical({"old": old, "new": new, "what": "this registry is signed by another key from now on"})
