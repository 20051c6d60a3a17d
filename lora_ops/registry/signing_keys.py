"""The private key that signs for a registry on this machine: its place, its making, its replacement."""

import hashlib
import json
import logging
import os
import re
import shlex
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lora_ops.errors import LoraOpsError, NotFound, Unavailable, disk_reason
from lora_ops.folders import make_folder
from lora_ops.registry.files import sync_folder, write_atomically, write_new
from lora_ops.small_files import read_json, read_small

IDENTITY_FILE = "registry.json"
ID = re.compile(r"[0-9a-f]{32}")
OLD_KEY = "signing.key"
"""Where earlier releases kept the private key: inside the registry."""
PLACE = "LORA_OPS_SIGNING_KEY"

logger = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Which registry this is, and which private key signs for it on this machine.

    Attributes:
        id: made with the registry; a copy of the folder keeps it, so that it finds the same private key.
        key: fingerprint of the private key, once it has signed something.
    """

    id: str
    key: str | None


class Rotation(NamedTuple):
    """A key that is to follow.

    Attributes:
        new: its fingerprint.
        by_old: whether the key until now is there and signs the rotation.
    """

    new: str
    by_old: bool


class MissingKey(NotFound):
    """The private key of a registry that has one is not where it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The private key of this registry is not at {path}: bring it back from where it was backed up, "
            "or, if it is lost, run `lora-ops registry rotate-key --reason TEXT`; nothing was changed."
        )


class PrivateKey:
    """One private key, made together with its registry and kept apart from it.

    The registry's folder is copied and backed up, so the private key does not lie in it.

    Args:
        folder: of the public keys, inside the registry.
        named: registry.signing.key; a relative path starts in `folder`.
        several: whether each machine signs with a key of its own, as in a registry that is shared at W&B.
    """

    def __init__(self, folder: Path, named: str | None, *, several: bool) -> None:
        self.folder = folder
        self._named = named
        self.several = several

    @property
    def path(self) -> Path:
        """Where it is: $LORA_OPS_SIGNING_KEY, else registry.signing.key, else the user's own folder of keys.

        Raises:
            LoraOpsError: the registry's identity can't be read or made.
        """
        return self._place() or keys_home() / f"{self.identity().id}.key"

    @property
    def inside(self) -> Path | None:
        """A private key in the registry's folder, and so in every copy of it; None if there is none."""
        registry = self.folder.parent.resolve()
        for path in filter(None, (self._place(), self.folder / OLD_KEY)):
            if path.is_file() and path.resolve().is_relative_to(registry):
                return path
        return None

    def load(self) -> ec.EllipticCurvePrivateKey:
        """Return the key; it is made when the registry is.

        Raises:
            MissingKey: the registry has one, which is not there; it is never replaced unseen.
            LoraOpsError: it can't be read or made, or others can read it.
        """
        path = self.path
        try:
            if not path.exists() and not self._take_old(path):
                # Another process may have begun the registry since: it makes the key before anything else.
                if self._used() and not path.exists():
                    raise MissingKey(path)
                make_key(path)
            key = read_key(path)
            self._use(key)
        except OSError as error:
            raise Unavailable(
                f"The key {path} can't be used ({disk_reason(error)}): name another place with {PLACE}, or "
                "with registry.signing.key in params.yaml."
            ) from error
        return key

    def fingerprint(self) -> str:
        """Return the fingerprint of the key.

        Raises:
            LoraOpsError: as `load`.
        """
        return key_fingerprint(public_pem(self.load()))

    def present(self) -> str | None:
        """Return the fingerprint of the key, or None where none can be read; nothing is made."""
        if self._place() or (self.folder / IDENTITY_FILE).is_file():
            with suppress(OSError, LoraOpsError):
                return key_fingerprint(public_pem(read_key(self.path)))
        return None

    def identity(self) -> Identity:
        """Return which registry this is; its id is made when it is first asked for.

        Raises:
            LoraOpsError: the file that holds it was damaged or can't be written.
        """
        path = self.folder / IDENTITY_FILE
        try:
            if not os.path.lexists(path):
                self._begin(path)
            return _read_identity(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            found = self._recovered()
            if found is None:
                raise LoraOpsError(
                    f"{path}, which names the registry and its key, can't be used ({error}): restore the "
                    "registry from a backup."
                ) from error
        # A private key that has signed here is there, so nothing is lost that a revocation needs.
        logger.warning("%s could not be used, and was written again: %s is its key.", path, found.key)
        write_atomically(path, _identity_json(found))
        return found

    def rotate(self, current: str | None) -> Rotation:
        """Make the key that is to follow; nothing signs with it before `settle`, unless the old one is lost.

        A rotation that was broken off goes on with the key that it had made.

        Args:
            current: fingerprint of the key that the audit log names, or None.

        Raises:
            LoraOpsError: the new key can't be made.
        """
        path = self.path
        try:
            if not path.exists():
                make_key(path)
                return Rotation(self._use(read_key(path)), by_old=False)
            mine = self._use(read_key(path))
            if current not in (None, mine):
                # The old key was lost, and this one took its place without an entry: now it gets one.
                return Rotation(mine, by_old=False)
            following = _following(path)
            if not following.exists():
                make_key(following)
            return Rotation(self._publish(read_key(following)), by_old=True)
        except OSError as error:
            raise Unavailable(f"No new key can be made beside {path} ({disk_reason(error)}).") from error

    def settle(self, current: str | None) -> None:
        """Let the following key take this one's place, if the audit log says that it is the current one.

        This one is kept beside it, under its fingerprint.

        Raises:
            LoraOpsError: the key can't be moved.
        """
        path = self.path
        following = _following(path)
        try:
            if not following.exists():
                return
            if path.exists() and key_fingerprint(public_pem(read_key(path))) == current:
                return  # whatever follows is not asked, so a damaged one stops no revocation
            key = read_key(following)
            if key_fingerprint(public_pem(key)) == current:
                self._keep(path)
                following.replace(path)
                sync_folder(path.parent)
                self._use(key)
        except OSError as error:
            raise Unavailable(f"The key {path} can't be replaced ({disk_reason(error)}).") from error

    def way_back(self, fingerprints: Iterable[str]) -> str:
        """Return what to do where the log names one of these keys, and this machine has another one, in words.

        Raises:
            LoraOpsError: the registry's identity can't be read.
        """
        path, rotate = self.path, "`lora-ops registry rotate-key --reason TEXT`"
        for kept in (_retired(path, fingerprint) for fingerprint in fingerprints):
            if kept.is_file():
                copy = shlex.join(("cp", str(kept), str(path)))
                return f"it was kept when another one followed, so run `{copy}` and this again, then {rotate}"
        return f"bring that one back to {path}, or, if it is lost, run {rotate}"

    def publish_again(self, fingerprint: str) -> None:
        """Write a public key that was lost again, if its private key is here: a rollback can't wait for it."""
        if not (self._place() or (self.folder / IDENTITY_FILE).is_file()):
            return
        with suppress(OSError, LoraOpsError):
            for path in (self.path, _retired(self.path, fingerprint)):
                if path.is_file() and key_fingerprint(public_pem(read_key(path))) == fingerprint:
                    self._publish(read_key(path))

    def _keep(self, path: Path) -> None:
        """Keep the key at `path`, which another one follows: a registry restored from before still needs it."""
        if path.exists():
            with suppress(FileExistsError):  # a rotation that was killed here
                os.link(path, _retired(path, key_fingerprint(public_pem(read_key(path)))))

    def _place(self) -> Path | None:
        variable = os.environ.get(PLACE)
        if variable:
            return Path(variable).absolute()
        return self.folder / self._named if self._named else None

    def _used(self) -> bool:
        """Whether a private key has signed here before, so that a new one would replace it unseen."""
        # Public keys in a shared registry may all be those of other machines.
        return self.identity().key is not None or (not self.several and any(self.folder.glob("*.pub")))

    def _use(self, key: ec.EllipticCurvePrivateKey) -> str:
        mine = self._publish(key)
        identity = self.identity()
        if identity.key != mine:
            write_atomically(self.folder / IDENTITY_FILE, _identity_json(identity._replace(key=mine)))
        return mine

    def _publish(self, key: ec.EllipticCurvePrivateKey) -> str:
        public = public_pem(key)
        path = self.folder / f"{key_fingerprint(public)}.pub"
        if not holds_key(path):
            make_folder(self.folder)
            write_atomically(path, public)
        return path.stem

    def _take_old(self, path: Path) -> bool:
        """Move the key that earlier releases kept inside the registry; says whether there was one."""
        old = self.folder / OLD_KEY
        if self._place() or not old.is_file() or self.identity().key is not None:
            return False
        try:
            read_key(old)
            _write_key(path, old.read_bytes())
            self._use(read_key(path))
            old.unlink()
        except FileNotFoundError:  # another process moved it meanwhile
            return path.exists()
        logger.warning("The private key was moved from %s to %s: back it up on its own.", old, path)
        return True

    def _recovered(self) -> Identity | None:
        """Return which registry this is by the one private key that has signed here, or None.

        The public keys in the folder are named by their fingerprints, and a private key by the registry's id.
        """
        place, signed = self._place(), {path.stem for path in self.folder.glob("*.pub")}
        if not signed:  # a new registry: a user may have the keys of a hundred others
            return None
        found = []
        for path in [place] if place else keys_home().glob("*.key"):
            with suppress(OSError, LoraOpsError):
                mine = key_fingerprint(public_pem(read_key(path)))
                if mine in signed:
                    found.append(Identity(uuid.uuid4().hex if place else path.stem, mine))
        return found[0] if len(found) == 1 and ID.fullmatch(found[0].id) else None

    def _begin(self, path: Path) -> None:
        make_folder(self.folder)
        # Of several that begin one registry together, the first names it.
        write_new(path, _identity_json(self._recovered() or Identity(uuid.uuid4().hex, None)))


def _identity_json(identity: Identity) -> bytes:
    return (json.dumps(identity._asdict(), indent=2) + "\n").encode()


def _read_identity(path: Path) -> Identity:
    content = read_json(path)
    found = Identity(content["id"], content["key"])
    if ID.fullmatch(found.id) is None:
        raise ValueError(f"'{found.id[:40]}' is no id")
    return found


def holds_key(path: Path) -> bool:
    """Return whether a file holds the public key whose fingerprint is its name."""
    try:
        return key_fingerprint(read_small(path)) == path.stem
    except OSError:
        return False


def keys_home() -> Path:
    """Return the user's own folder of private keys."""
    configuration = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configuration) if configuration else Path.home() / ".config") / "lora-ops" / "keys"


def make_key(path: Path) -> None:
    """Make a private key at `path`, unless another process was first.

    Raises:
        OSError: it can't be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write_key(path, key.private_bytes(encoding, form, serialization.NoEncryption()))


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key at `path`.

    Raises:
        LoraOpsError: it is no key, or others can read it.
        OSError: it can't be read.
    """
    if path.stat().st_mode & 0o077:
        raise LoraOpsError(f"The private key {path} can be read by others: chmod 600 it.")
    try:
        key = serialization.load_pem_private_key(read_small(path), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
    except (ValueError, TypeError, AssertionError) as error:
        raise LoraOpsError(f"{path} is not an elliptic-curve private key in PEM.") from error
    return key


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key of a private one, in PEM."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_fingerprint(public: bytes) -> str:
    """Return the SHA-256 of a public key in PEM, in hex."""
    return hashlib.sha256(public).hexdigest()


def matches_signature(public: bytes, content: bytes, signature: bytes) -> bool:
    """Return whether `signature` (ECDSA over SHA-256, DER) is one over `content` by the key `public` (PEM)."""
    try:
        key = serialization.load_pem_public_key(public)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _write_key(path: Path, pem: bytes) -> None:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        write_atomically(ignore, b"*\n")
    write_new(path, pem, 0o600)  # where another process was first, its key is everybody's


def _retired(path: Path, fingerprint: str) -> Path:
    return path.with_name(f"{path.name}.{fingerprint[:12]}")


def _following(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")
