"""A signature holds for exactly the signed files, by a key that is trusted."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry.signing import Signer
from lora_ops.settings.registry import SigningSettings

from . import processes


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "keys")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "manifest.json").write_text("{}")
    return folder


def signature(signer: Signer, folder: Path) -> Path:
    path = folder.parent / "kept.sig"
    path.write_bytes(signer.sign(folder))
    return path


def test_what_was_signed_verifies(signer: Signer, folder: Path) -> None:
    signer.check(folder, signature(signer, folder), "finance@1")


def test_the_key_is_made_on_first_use_for_its_owner_alone_and_never_committed(
    signer: Signer, folder: Path
) -> None:
    signer.sign(folder)
    key = signer.own.path
    assert key.stat().st_mode & 0o777 == 0o600
    assert (key.parent / ".gitignore").read_text() == "*\n"
    assert {path.suffix for path in signer.folder.iterdir()} == {".pub", ".json"}


def change(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"weightz")


def remove(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def add(folder: Path) -> None:
    (folder / "extra.json").write_text("{}")


def add_what_git_ignores(folder: Path) -> None:
    (folder / ".gitignore").write_text("*")


@pytest.mark.parametrize("tamper", [change, remove, add, add_what_git_ignores])
def test_a_folder_that_differs_is_refused(signer: Signer, folder: Path, tamper: object) -> None:
    kept = signature(signer, folder)
    tamper(folder)  # type: ignore[operator]
    with pytest.raises(LoraOpsError, match="signature of finance@1 does not verify"):
        signer.check(folder, kept, "finance@1")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"verificationMaterial": 1}'])
def test_what_is_no_signature_is_refused(signer: Signer, folder: Path, content: bytes) -> None:
    kept = signature(signer, folder)
    kept.write_bytes(content)
    with pytest.raises(LoraOpsError, match="is no signature"):
        signer.check(folder, kept, "finance@1")


def test_a_signature_by_a_stranger_is_refused(signer: Signer, folder: Path, tmp_path: Path) -> None:
    signer.sign(folder)
    kept = signature(Signer(tmp_path / "strange"), folder)
    with pytest.raises(LoraOpsError, match="by a key that is not trusted"):
        signer.check(folder, kept, "finance@1")


def test_another_key_under_a_trusted_name_is_refused(signer: Signer, folder: Path, tmp_path: Path) -> None:
    kept = signature(signer, folder)
    stranger = Signer(tmp_path / "strange")
    stranger.sign(folder)
    (known,), (strange,) = signer.folder.glob("*.pub"), stranger.folder.glob("*.pub")
    known.write_bytes(strange.read_bytes())
    signer.own.path.unlink()  # else the public key is written again from it
    with pytest.raises(LoraOpsError, match="by a key that is not trusted"):
        signer.check(folder, kept, "finance@1")


def test_only_named_keys_are_trusted_when_the_settings_name_some(signer: Signer, folder: Path) -> None:
    kept = signature(signer, folder)
    (public,) = signer.folder.glob("*.pub")
    Signer(signer.folder, SigningSettings(trusted_keys=(public.stem,))).check(folder, kept, "finance@1")
    with pytest.raises(LoraOpsError, match="not trusted"):
        Signer(signer.folder, SigningSettings(trusted_keys=("0" * 64,))).check(folder, kept, "finance@1")


def test_an_older_signature_verifies_after_the_key_was_replaced(signer: Signer, folder: Path) -> None:
    kept = signature(signer, folder)
    signer.own.settle(signer.own.rotate(signer.own.fingerprint()).new)
    assert signature(Signer(signer.folder), folder).read_bytes() != b""
    again = Signer(signer.folder)
    again.check(folder, kept, "finance@1")
    assert len(list(signer.folder.glob("*.pub"))) == 2


def test_the_key_may_lie_outside_the_registry(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "vault" / "team.key"
    signer = Signer(tmp_path / "keys", SigningSettings(key=str(elsewhere)))
    signer.check(folder, signature(signer, folder), "finance@1")
    assert elsewhere.stat().st_mode & 0o777 == 0o600
    assert not list(signer.folder.glob("*.key"))


def test_a_key_that_others_can_read_is_refused(signer: Signer, folder: Path) -> None:
    signer.sign(folder)
    signer.own.path.chmod(0o644)
    with pytest.raises(LoraOpsError, match="can be read by others: chmod 600"):
        signer.sign(folder)


def test_a_file_that_is_no_key_is_refused(signer: Signer, folder: Path) -> None:
    signer.own.path.parent.mkdir(parents=True, exist_ok=True)
    signer.own.path.write_text("hello")
    signer.own.path.chmod(0o600)
    with pytest.raises(LoraOpsError, match="is not an elliptic-curve private key"):
        signer.sign(folder)


def test_processes_that_start_together_end_with_one_key(signer: Signer, folder: Path) -> None:
    started = [processes.start(lambda: signer.sign_text("x")) for _ in range(6)]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 6
    assert len(list(signer.folder.glob("*.pub"))) == 1
    assert signer.own.path.is_file()


def test_a_signed_text_fits_only_itself(signer: Signer) -> None:
    signed = signer.sign_text("head 3")
    assert signer.fits_text("head 3", signed)
    assert not signer.fits_text("head 2", signed)
    assert not signer.fits_text("head 3", {"key": "../x", "value": ""})
    assert not signer.fits_text("head 3", {**signed, "value": "not base64"})


def test_sigstore_needs_to_know_whom_to_trust() -> None:
    with pytest.raises(ValueError, match="needs identity and issuer"):
        SigningSettings(method="sigstore")


def test_a_key_that_its_own_settings_do_not_trust_signs_nothing(signer: Signer, folder: Path) -> None:
    signer.sign_text("x")
    other = Signer(signer.folder, SigningSettings(trusted_keys=("0" * 64,)))
    for sign in (lambda: other.sign(folder), lambda: other.sign_text("x")):
        with pytest.raises(LoraOpsError, match=f"own key \\({signer.known()[0]}\\) is not listed under"):
            sign()


def test_sigstore_signs_after_keys_in_one_process() -> None:
    """Where keys sign, sigstore's client is left out; another registry of the same process needs it."""
    code = """
import sys
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from lora_ops.registry.signing import Signer
from lora_ops.settings.registry import SigningSettings

folder = Path(sys.argv[1], "package")
folder.mkdir()
(folder / "manifest.json").write_text("{}")
Signer(Path(sys.argv[1], "keys")).sign(folder)
assert "sigstore" not in sys.modules
by_sigstore = SigningSettings(method="sigstore", identity="ci@example.com", issuer="https://issuer.example")
Signer(Path(sys.argv[1], "keys"), by_sigstore).sign(folder)
"""
    with TemporaryDirectory() as folder:
        offline = {**os.environ, "HTTPS_PROXY": "http://localhost:9"}
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, env=offline)
    assert "can't be signed: " in done.stderr and "AttributeError: module" not in done.stderr
    assert "/sigstore/" in done.stderr
