"""Names for the users in the event log that say who is the same, and not who it is."""

import hashlib
import hmac
import secrets
from pathlib import Path

from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.registry.files import write_new
from lora_ops.small_files import read_small

SALT = "users.salt"
"""The file of the salt, in `serving.path`."""
SALT_BYTES = 32


class Pseudonyms:
    """Salted hashes of users; a gateway in the same folder gives the same ones after each start.

    Args:
        path: the file of the salt, made where there is none. Without it nobody finds out by trying which user a
            hash stands for, so only this account may read it.

    Raises:
        LoraOpsError: the file can't be read or made, or is not a salt.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_new(path, secrets.token_bytes(SALT_BYTES), 0o600)
            self._salt = read_small(path)
        except OSError as error:
            raise Unavailable(f"{path} can't be read or written ({disk_reason(error)}).") from error
        if len(self._salt) != SALT_BYTES:
            raise LoraOpsError(
                f"{path} should have {SALT_BYTES} bytes and has {len(self._salt)}: remove it. The users in the "
                "event log then have other hashes than before."
            )

    def ngram_key(self, tenant: str) -> str:
        """Return the key by which the n-grams of a tenant's prompts are hashed, in hex."""
        return hmac.new(self._salt, f"n-grams\0{tenant}".encode(), hashlib.sha256).hexdigest()

    def name(self, tenant: str, user: str) -> str:
        """Return 32 hex digits for a user of a tenant; the same user of another tenant gets others."""
        text = f"{tenant}\0{user}".encode("utf-8", "surrogatepass")
        return hmac.new(self._salt, text, hashlib.sha256).hexdigest()[:32]
