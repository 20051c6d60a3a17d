"""Who vouches for a package: OpenSSF model signatures, and one signature over the head of the audit log."""

import base64
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable
from lora_ops.folders import make_folder
from lora_ops.registry.files import write_atomically
from lora_ops.registry.signing_keys import (
    PrivateKey,
    holds_key,
    key_fingerprint,
    matches_signature,
    public_pem,
)
from lora_ops.settings.registry import SigningSettings
from lora_ops.small_files import parse_json, read_json, read_small

if TYPE_CHECKING:
    from model_signing.hashing import Config as Hashing

SIGNATURE_FILE = "model.sig"
SIGSTORE = "model_signing._signing.sign_sigstore"
NOT_FOR_KEYS = (SIGSTORE, "model_signing._signing.sign_certificate")
FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Signer:
    """Signs with one private key and verifies with every public key under `folder`.

    A public key is kept under its own fingerprint, so that older signatures stay verifiable after the private
    key was replaced.
    """

    def __init__(self, folder: Path, settings: SigningSettings | None = None, *, several: bool = False) -> None:
        self.folder = folder
        self.settings = settings or SigningSettings()
        self.own = PrivateKey(folder, self.settings.key, several=several)

    def sign(self, package: Path) -> bytes:
        """The signature over every file in `package`, as a sigstore bundle (JSON).

        Raises:
            LoraOpsError: the private key can't be made or read, or sigstore gives no certificate.
        """
        signing = _model_signing("signing", self.settings)
        config = signing.Config().set_hashing_config(_every_file())
        target = package.parent / f"{package.name}.sig"
        if self.settings.method == "key":
            self._own_key()
        try:
            if self.settings.method == "key":
                config.use_elliptic_key_signer(private_key=self.own.path)
            else:
                config.use_sigstore_signer(use_ambient_credentials=True)
            config.sign(package, target)
            return target.read_bytes()
        except Exception as error:
            raise LoraOpsError(f"{package.name} can't be signed: {_one_line(error)}.") from error
        finally:
            target.unlink(missing_ok=True)

    def check(self, package: Path, signature: Path, what: str) -> None:
        """Verify that `package` holds exactly the files that were signed, by a key or identity we trust.

        Raises:
            Damaged: the signature does not fit; the text names `what` and the reason.
            Unavailable: the package that verifies can't be imported.
        """
        try:
            verifying = _model_signing("verifying", self.settings)
        except ImportError as error:
            raise Unavailable(
                f"The signature of {what} can't be verified ({_one_line(error)}): install what "
                "requirements.lock names (`make .venv/installed`)."
            ) from error

        config = verifying.Config().set_hashing_config(_every_file())
        key = self._trusted(signature, what) if self.settings.method == "key" else None
        try:
            if key:
                config.use_elliptic_key_verifier(public_key=key)
            else:
                config.use_sigstore_verifier(
                    identity=str(self.settings.identity), oidc_issuer=str(self.settings.issuer)
                )
            config.verify(package, signature)
        except Exception as error:
            raise Damaged(
                f"The signature of {what} does not verify: do not load it ({_one_line(error)})."
            ) from error

    def _trusted(self, signature: Path, what: str) -> Path:
        try:
            name = read_json(signature)["verificationMaterial"]["publicKey"]["hint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"The signature of {what} is no signature: do not load it.") from error
        path = self._public(str(name))
        if path is None:
            raise Damaged(f"The signature of {what} is by a key that is not trusted: do not load it.")
        return path

    def _public(self, fingerprint: str) -> Path | None:
        trusted = self.settings.trusted_keys
        path = self.folder / f"{fingerprint}.pub"
        if (trusted and fingerprint not in trusted) or not FINGERPRINT.fullmatch(fingerprint):
            return None
        if not holds_key(path):
            self.own.publish_again(fingerprint)
        return path if holds_key(path) else None

    def sign_text(self, text: str) -> dict[str, str]:
        """A signature over `text` by the local key: its fingerprint and the value, base64."""
        key = self._own_key()
        value = key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        return {"key": key_fingerprint(public_pem(key)), "value": base64.b64encode(value).decode()}

    def fits_text(self, text: str, signature: object) -> bool:
        """Whether `signature` is one over `text`, by a key in the folder that the settings trust.

        Somebody may have edited the file that holds both, so either may be anything that JSON says.
        """
        if not isinstance(signature, dict):
            return False
        path = self._public(str(signature.get("key")))
        if path is None:
            return False
        try:
            value = base64.b64decode(str(signature.get("value")), validate=True)
            return matches_signature(read_small(path), text.encode(), value)
        except ValueError:  # no base64, or a text with half a character
            return False

    def counts_here(self, fingerprint: str, named: frozenset[str]) -> bool:
        """Return whether a key may speak for this machine: it is listed, the log's, or the private one here.

        Args:
            fingerprint: of a key by which `fits_text` found a signature that fits.
            named: the keys that the audit log names.
        """
        listed = self.settings.trusted_keys
        return fingerprint in listed or (not listed and fingerprint in (*named, self.own.present()))

    def known(self) -> list[str]:
        """The fingerprints of the public keys in the folder, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.pub") if holds_key(path))

    def public_key(self, fingerprint: str) -> str:
        """The public key with this fingerprint, in PEM, to be sent beside a signature."""
        return (self.folder / f"{fingerprint}.pub").read_text(encoding="ascii")

    def trusts(self, public_key: str) -> bool:
        """Return whether `trusted_keys` names a public key, or it is kept here where that names none."""
        fingerprint, trusted = key_fingerprint(public_key.encode()), self.settings.trusted_keys
        return fingerprint in trusted or (not trusted and holds_key(self.folder / f"{fingerprint}.pub"))

    def adopt(self, public_key: str) -> None:
        """Keep somebody else's public key, if `trusted_keys` names its fingerprint.

        Raises:
            LoraOpsError: it is not named there; the text says how to trust it.
        """
        content = public_key.encode()
        fingerprint = key_fingerprint(content)
        path = self.folder / f"{fingerprint}.pub"
        if not self.trusts(public_key):
            mine = key_fingerprint(public_pem(self.own.load()))
            raise Refused(
                f"Key {fingerprint} is not trusted here: if it is a colleague's or CI's, list it under "
                f"registry.signing.trusted_keys in params.yaml, with your own ({mine})."
            )
        if not holds_key(path):
            make_folder(self.folder)
            write_atomically(path, content)

    def _own_key(self) -> ec.EllipticCurvePrivateKey:
        # Signed by a key that is not trusted here, the next change would find a log that it can't believe.
        key, trusted = self.own.load(), self.settings.trusted_keys
        mine = key_fingerprint(public_pem(key))
        if trusted and mine not in trusted:
            raise Refused(
                f"This machine's own key ({mine}) is not listed under registry.signing.trusted_keys in "
                "params.yaml: add it, or use a key that is; nothing was changed."
            )
        return key


def signed_digests(signature: Path, what: str) -> dict[str, str]:
    """Return the SHA-256 of each file that a signature names; the signature itself is not verified.

    Raises:
        Damaged: it is no signature.
    """
    try:
        envelope = read_json(signature)["dsseEnvelope"]
        named = parse_json(base64.b64decode(envelope["payload"], validate=True).decode())["predicate"]
        return {str(one["name"]): str(one["digest"]) for one in named["resources"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"The signature of {what} is no signature: restore it from a backup.") from error


def _model_signing(name: str, settings: SigningSettings) -> Any:
    """Import a part of model_signing; where keys sign, without the clients of sigstore and of certificates.

    These bring HTTP, TUF, Rekor and OpenSSL, which take longer to import than a whole rollback has.
    model_signing asks them only where they sign or verify.

    Raises:
        ImportError: a package is missing or broken.
    """
    if settings.method == "key":
        for one in NOT_FOR_KEYS:
            sys.modules.setdefault(one, _StandIn(one))
        return importlib.import_module(f"model_signing.{name}")
    if isinstance(sys.modules.get(SIGSTORE), _StandIn):  # another registry of this process is signed by keys
        del sys.modules[SIGSTORE]
    part = importlib.import_module(f"model_signing.{name}")
    part.sigstore = importlib.import_module(SIGSTORE)  # type: ignore[attr-defined]
    return part


class _StandIn(ModuleType):
    """In the place of a module that nobody calls."""


def _every_file() -> "Hashing":
    from model_signing import hashing

    # By default files named like git's own are left out of the hash, and so could be slipped in unsigned.
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
