"""Making and revoking an API key are entries of the audit log."""

from lora_ops.registry.owners_log import note_owners
from lora_ops.registry.store import Registry
from lora_ops.serving.keys import Key, KeyStore

KIND = "key"


def log_keys(registry: Registry, keys: KeyStore, actor: str) -> int:
    """Append an entry for each key that was made or revoked and that the log doesn't tell of yet.

    The store of keys and the log are two files, so a kill can part them: the next call mends that. An entry
    holds no secret and no digest of one.

    Returns:
        How many entries were added.

    Raises:
        LoraOpsError: the registry can't be changed.
    """
    missing = _missing(registry, keys)
    if not missing:
        return 0
    with registry.change(actor) as change:
        missing = _missing(registry, keys)  # another process may have been first
        if missing:
            note_owners(registry, change, begin=False)
        for action, key in missing:
            when = key.revoked_at if action == "revoked" else key.created_at
            change.note(
                action,
                KIND,
                key.id,
                role=key.role,
                tenant=key.tenant,
                base=key.base,
                reason=key.note,
                when=when,
            )
    return len(missing)


def _missing(registry: Registry, keys: KeyStore) -> list[tuple[str, Key]]:
    told = {(entry.action, entry.subject.id) for entry in registry.log.of_kind(KIND)}
    done = [("created", key) for key in keys.all()]
    done += [("revoked", key) for key in keys.all() if key.revoked_at]
    return [(action, key) for action, key in done if (action, key.id) not in told]
