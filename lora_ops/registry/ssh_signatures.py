"""Signatures with people's own SSH keys (`ssh-keygen -Y`), for approvals."""

import base64
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from lora_ops.errors import LoraOpsError

# A signature counts for one purpose only: a commit or a mail that somebody signed is no approval.
NAMESPACE = "lora-ops-approval"
TYPES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
)
RSA_BITS = 3072
_FIELDS = {"ssh-rsa": 3, "sk-ssh-ed25519@openssh.com": 3, "sk-ecdsa-sha2-nistp256@openssh.com": 4}


def checked_public_key(line: str) -> str:
    """Return one line of an OpenSSH public key file, stripped.

    Raises:
        ValueError: the line is not a public key; the text never repeats it, since it may be a private one.
    """
    kind, _, rest = line.strip().partition(" ")
    text = rest.split(" ", 1)[0]
    try:
        parts = _parts(base64.b64decode(text, validate=True))
    except ValueError:  # no base64, or not all of it
        parts = []
    named = parts[0].decode("ascii", "replace") if parts else ""
    if "\n" in line.strip() or named != kind or len(parts) < _FIELDS.get(kind, 2):
        raise ValueError(
            "an SSH public key is one line of a .pub file, such as `ssh-ed25519 AAAA... ana@example.com`"
        )
    if kind not in TYPES:
        raise ValueError(
            f"an SSH key of the type '{kind}' signs no approval: `ssh-keygen -t ed25519` makes one that does"
        )
    return line.strip()


def weakness(public_key: str) -> str | None:
    """Return why a checked public key is too weak to sign with, or None.

    NIST SP 800-57 gives RSA keys below 3072 bits less than the 128 bits of strength that the others have. A key
    in a kept owners.yaml of another day stays readable, so that what it signed then can be verified.
    """
    if not public_key.startswith("ssh-rsa "):
        return None
    bits = int.from_bytes(_parts(base64.b64decode(public_key.split(" ")[1]))[2]).bit_length()
    if bits >= RSA_BITS:
        return None
    return (
        f"an RSA key of {bits} bits, and at least {RSA_BITS} are needed (`ssh-keygen -t ed25519` makes a "
        "strong one)"
    )


def _parts(blob: bytes) -> list[bytes]:
    """Return the fields of a public key's blob, each of which follows its length in four bytes.

    Raises:
        ValueError: a field is cut off.
    """
    parts, at = [], 0
    while at < len(blob):
        length = int.from_bytes(blob[at : at + 4])
        if at + 4 + length > len(blob):
            raise ValueError("the key is cut off")
        parts.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return parts


def fingerprint(public_key: str) -> str:
    """Return a public key's fingerprint (`SHA256:...`), as `ssh-keygen -l` prints it."""
    blob = base64.b64decode(public_key.split(" ")[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def sign(text: str, key: Path, namespace: str = NAMESPACE) -> str:
    """Return the signature of `text` (an armored SSH signature) by the key in `key`.

    `key` is a private key, or the `.pub` file of a key that an ssh-agent holds. ssh-keygen asks on the terminal
    for a passphrase or a touch.

    Raises:
        LoraOpsError: the key can't be used; the text says why, and what to do where that is known.
    """
    if not key.expanduser().is_file():
        raise LoraOpsError(
            f"There is no SSH key {key}: name yours with --key, or make one with `ssh-keygen -t ed25519`."
        )
    # Text goes in by stdin: with a file, ssh-keygen keeps an older .sig beside it and exits with 0.
    command = ["-Y", "sign", "-n", namespace, "-f", str(key.expanduser())]
    done = _ssh_keygen(command, text)
    if done.returncode or not done.stdout.startswith("-----BEGIN SSH SIGNATURE-----"):
        raise LoraOpsError(f"The SSH key {key} can't sign: {_reason(done.stderr, key)}.")
    return done.stdout


def signer_of(
    text: str, signature: str, person: str, keys: Sequence[str], namespace: str = NAMESPACE
) -> str | None:
    """Return the fingerprint of the key of `person` that signed `text`; None if none of `keys` did.

    Raises:
        LoraOpsError: ssh-keygen is not installed.
    """
    if not keys:
        return None
    try:
        return _signer_of(text, signature, person, tuple(keys), namespace)
    except _UnsignedError:
        return None


class _UnsignedError(Exception):
    """No key signed the text, or ssh-keygen was stopped before it said so."""


# A step looks at the same signatures several times, and ssh-keygen is a process of its own. What it confirms
# depends on these values only: a key that was taken from its person is no longer among `keys`. What it refuses
# is asked again.
@lru_cache(maxsize=512)
def _signer_of(text: str, signature: str, person: str, keys: tuple[str, ...], namespace: str) -> str:
    with tempfile.TemporaryDirectory() as name:
        allowed, kept = Path(name) / "allowed_signers", Path(name) / "signature"
        allowed.write_text("".join(f'{person} namespaces="{namespace}" {key}\n' for key in keys))
        kept.write_text(signature)
        files = ["-f", str(allowed), "-s", str(kept)]
        done = _ssh_keygen(["-Y", "verify", "-n", namespace, "-I", person, *files], text)
    found = next((key for key in map(fingerprint, keys) if key in done.stdout.split()), None)
    if done.returncode or found is None:
        raise _UnsignedError
    return found


def _ssh_keygen(arguments: list[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    except FileNotFoundError as error:
        raise LoraOpsError(
            "ssh-keygen (OpenSSH 8.2 or newer) is not installed: approvals are signed and verified with it."
        ) from error


def _reason(stderr: str, key: Path) -> str:
    if "too open" in stderr or "UNPROTECTED" in stderr:
        return f"others may read it, so OpenSSH ignores it (chmod 600 {key})"
    if "incorrect passphrase" in stderr:
        return "its passphrase was not given (run this in a terminal, or use a key that ssh-agent holds)"
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "Signing data" not in line]
    return lines[-1].rstrip(".") if lines else "ssh-keygen gives no reason"
