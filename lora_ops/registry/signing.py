"""Who vouches for a package: OpenSSF model signatures, and one signature over the head of the audit log."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.registry.files import write_atomically
from lora_ops.settings.registry import SigningSettings

if TYPE_CHECKING:
    from model_signing.hashing import Config as Hashing

SIGNATURE_FILE = "model.sig"


class Signer:
    """Signs with one private key and verifies with every public key under `folder`.

    The private key is made on first use, readable by its owner only. A public key is kept under its own
    fingerprint, so replacing the private key leaves older signatures verifiable.
    """

    def __init__(self, folder: Path, settings: SigningSettings | None = None) -> None:
        self.folder = folder
        self.settings = settings or SigningSettings()
        self.private_key = folder / (self.settings.key or "signing.key")

    def sign(self, package: Path) -> bytes:
        """The signature over every file in `package`, as a sigstore bundle (JSON).

        Raises:
            LoraOpsError: the private key can't be made or read, or sigstore gives no certificate.
        """
        from model_signing import signing

        config = signing.Config().set_hashing_config(_every_file())
        target = package.parent / f"{package.name}.sig"
        if self.settings.method == "key":
            self._own_key()
        try:
            if self.settings.method == "key":
                config.use_elliptic_key_signer(private_key=self.private_key)
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
        """
        from model_signing import verifying

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
            name = json.loads(signature.read_bytes())["verificationMaterial"]["publicKey"]["hint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"The signature of {what} is no signature: do not load it.") from error
        path = self._public(str(name))
        if path is None:
            raise Damaged(f"The signature of {what} is by a key that is not trusted: do not load it.")
        return path

    def _public(self, fingerprint: str) -> Path | None:
        trusted = self.settings.trusted_keys
        path = self.folder / f"{fingerprint}.pub"
        if (trusted and fingerprint not in trusted) or not fingerprint.isalnum() or not path.is_file():
            return None
        return path if _fingerprint(path.read_bytes()) == fingerprint else None

    def sign_text(self, text: str) -> dict[str, str]:
        """A signature over `text` by the local key: its fingerprint and the value, base64."""
        key = self._own_key()
        value = key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        return {"key": _fingerprint(_public_pem(key)), "value": base64.b64encode(value).decode()}

    def fits_text(self, text: str, signature: dict[str, str]) -> bool:
        """Whether `signature` is one over `text`, by a key in the folder that the settings trust."""
        path = self._public(str(signature.get("key")))
        if path is None:
            return False
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
            assert isinstance(key, ec.EllipticCurvePublicKey)
            value = base64.b64decode(str(signature.get("value")), validate=True)
            key.verify(value, text.encode(), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True

    def known(self) -> list[str]:
        """The fingerprints of the public keys in the folder, sorted."""
        return sorted(
            path.stem for path in self.folder.glob("*.pub") if _fingerprint(path.read_bytes()) == path.stem
        )

    def public_key(self, fingerprint: str) -> str:
        """The public key with this fingerprint, in PEM, to be sent beside a signature."""
        return (self.folder / f"{fingerprint}.pub").read_text(encoding="ascii")

    def adopt(self, public_key: str) -> None:
        """Keep somebody else's public key, if `trusted_keys` names its fingerprint.

        Raises:
            LoraOpsError: it is not named there; the text says how to trust it.
        """
        content = public_key.encode()
        fingerprint, trusted = _fingerprint(content), self.settings.trusted_keys
        path = self.folder / f"{fingerprint}.pub"
        if fingerprint not in trusted and (trusted or not path.is_file()):
            mine = _fingerprint(_public_pem(self._key()))
            raise LoraOpsError(
                f"Key {fingerprint} is not trusted here: if it is a colleague's or CI's, list it under "
                f"registry.signing.trusted_keys in params.yaml, with your own ({mine})."
            )
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)

    def _own_key(self) -> ec.EllipticCurvePrivateKey:
        # Signed by a key that is not trusted here, the next change would find a log that it can't believe.
        key, trusted = self._key(), self.settings.trusted_keys
        mine = _fingerprint(_public_pem(key))
        if trusted and mine not in trusted:
            raise LoraOpsError(
                f"This machine's own key ({mine}) is not listed under registry.signing.trusted_keys in "
                "params.yaml: add it, or use a key that is; nothing was changed."
            )
        return key

    def _key(self) -> ec.EllipticCurvePrivateKey:
        try:
            if not self.private_key.exists():
                self._make_key()
            if self.private_key.stat().st_mode & 0o077:
                raise LoraOpsError(
                    f"The private key {self.private_key} can be read by others: chmod 600 it, or remove it "
                    "and a new one is made."
                )
            key = serialization.load_pem_private_key(self.private_key.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            public = _public_pem(key)
            path = self.folder / f"{_fingerprint(public)}.pub"
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, public)
        except OSError as error:
            raise LoraOpsError(f"The key {self.private_key} can't be used: {error.strerror}.") from error
        except (ValueError, TypeError, AssertionError) as error:
            raise LoraOpsError(f"{self.private_key} is not an elliptic-curve private key in PEM.") from error
        return key

    def _make_key(self) -> None:
        folder = self.private_key.parent
        folder.mkdir(parents=True, exist_ok=True)
        ignore = folder / ".gitignore"
        if not ignore.exists():
            write_atomically(ignore, b"*\n")
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        mine = folder / f".signing-{os.getpid()}"
        write_atomically(mine, pem, 0o600)
        try:
            os.link(mine, self.private_key)
        except FileExistsError:
            pass  # another process was first: its key is everybody's
        finally:
            mine.unlink()


def _every_file() -> "Hashing":
    from model_signing import hashing

    # By default files named like git's own are left out of the hash, and so could be slipped in unsigned.
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _fingerprint(public_pem: bytes) -> str:
    return hashlib.sha256(public_pem).hexdigest()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
