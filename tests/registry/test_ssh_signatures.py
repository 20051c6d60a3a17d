"""Signatures with SSH keys, by the real ssh-keygen."""

import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry.ssh_signatures import checked_public_key, fingerprint, sign, signer_of, weakness

TEXT = '{"version":"finance@1","reason":"Größe geprüft"}'
MakeKey = Callable[..., Path]


@pytest.fixture
def make_key(tmp_path: Path) -> MakeKey:
    """Make a key pair: `make_key("ana", passphrase=...)` gives the path of the private key."""

    def make(name: str, passphrase: str = "", kind: str = "ed25519") -> Path:
        path = tmp_path / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", f"{name}@example.com", "-f", path],
            check=True,
        )
        return path

    return make


def public(key: Path) -> str:
    return checked_public_key(key.with_suffix(".pub").read_text())


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_signature_names_the_key_that_made_it(make_key: MakeKey, kind: str) -> None:
    ana, other = make_key("ana", kind=kind), make_key("other")
    signed = sign(TEXT, ana)
    assert signer_of(TEXT, signed, "ana", [public(other), public(ana)]) == fingerprint(public(ana))
    shown = subprocess.run(["ssh-keygen", "-lf", f"{ana}.pub"], capture_output=True, text=True).stdout
    assert shown.split()[1] == fingerprint(public(ana))


def test_signature_fits_neither_another_key_nor_text(make_key: MakeKey) -> None:
    ana, other = make_key("ana"), make_key("other")
    signed = sign(TEXT, ana)
    assert signer_of(TEXT, signed, "ana", [public(other)]) is None
    assert signer_of(TEXT + " ", signed, "ana", [public(ana)]) is None
    assert signer_of(TEXT, "no signature", "ana", [public(ana)]) is None
    assert signer_of(TEXT, signed, "ana", []) is None


def test_signature_made_for_something_else_does_not_count(make_key: MakeKey) -> None:
    ana = make_key("ana")
    command = ["ssh-keygen", "-Y", "sign", "-n", "git", "-f", str(ana)]
    signed = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=True).stdout
    assert signer_of(TEXT, signed, "ana", [public(ana)]) is None


def test_sign_twice_signs_the_second_text(make_key: MakeKey) -> None:
    ana = make_key("ana")
    sign("first", ana)
    assert signer_of(TEXT, sign(TEXT, ana), "ana", [public(ana)])


def test_sign_names_the_reason_why_a_key_is_of_no_use(make_key: MakeKey, tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match=r"no SSH key .*/none: .* `ssh-keygen -t ed25519`"):
        sign(TEXT, tmp_path / "none")
    ana = make_key("ana")
    ana.chmod(0o644)
    with pytest.raises(LoraOpsError, match=r"can't sign: others may read it.*chmod 600"):
        sign(TEXT, ana)
    ana.write_text("gibberish")
    ana.chmod(0o600)
    with pytest.raises(LoraOpsError, match="can't sign: "):
        sign(TEXT, ana)


def test_sign_without_ssh_keygen_says_so(make_key: MakeKey, monkeypatch: pytest.MonkeyPatch) -> None:
    ana = make_key("ana")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LoraOpsError, match=r"ssh-keygen \(OpenSSH 8.2 or newer\) is not installed"):
        sign(TEXT, ana)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !!!!",
        "ssh-dss AAAAC3NzaC1lZDI1NTE5AAAAIHdGqDWVVswBqEkMUO8QprVATus3BIusIRJLytHSwBkA",
        "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIHdGqDWVVswBqEkMUO8QprVATus3BIusIRJLytHSwBkA",
        'ana namespaces="x" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdGqDWVVswBqEkMUO8QprVATus3BIusIRJLytHSwBkA',
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_what_is_no_public_key_is_refused_unrepeated(line: str) -> None:
    with pytest.raises(ValueError, match="one line of a .pub file") as caught:
        checked_public_key(line)
    assert "AAAAC3" not in str(caught.value) and "PRIVATE" not in str(caught.value)


def test_key_of_a_type_that_signs_nothing_is_named() -> None:
    blob = b"".join(len(one).to_bytes(4) + one for one in (b"ssh-dss", b"p", b"q", b"g", b"y"))
    with pytest.raises(ValueError, match="an SSH key of the type 'ssh-dss' signs no approval: `ssh-keygen -t"):
        checked_public_key(f"ssh-dss {b64encode(blob).decode()} ana@example.com")


@pytest.mark.parametrize("kept", [-1, 20, 30])
def test_public_key_that_was_cut_off_is_none(make_key: MakeKey, kept: int) -> None:
    kind, blob, _ = public(make_key("ana")).split(" ")
    with pytest.raises(ValueError, match="one line of a .pub file"):
        checked_public_key(f"{kind} {b64encode(b64decode(blob)[:kept]).decode()}")


@pytest.mark.parametrize(("bits", "weak"), [(1024, True), (2048, True), (3072, False)])
def test_rsa_key_below_3072_bits_is_weak(tmp_path: Path, bits: int, weak: bool) -> None:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", str(bits), "-N", "", "-f", path], check=True)
    found = weakness(public(path))
    assert (f"an RSA key of {bits} bits, and at least 3072" in found) if found else not weak


def test_two_lines_are_not_one_public_key(make_key: MakeKey) -> None:
    line = public(make_key("ana"))
    with pytest.raises(ValueError, match="one line of a .pub file"):
        checked_public_key(f"{line}\n{line}")


def test_key_that_was_taken_away_signs_no_more(make_key: MakeKey) -> None:
    """What ssh-keygen confirms is remembered: by the keys, too."""
    ana, other = make_key("ana"), make_key("other")
    signed = sign(TEXT, ana)
    assert signer_of(TEXT, signed, "ana", [public(ana)]) == fingerprint(public(ana))
    assert signer_of(TEXT, signed, "ana", [public(other)]) is None
    assert signer_of(TEXT, signed, "ana", []) is None
    assert signer_of(f"{TEXT} ", signed, "ana", [public(ana)]) is None
    assert signer_of(TEXT, signed, "ben", [public(ana)]) == fingerprint(public(ana))
    assert signer_of(TEXT, signed, "ana", [public(ana)], "git") is None


def test_refusal_of_ssh_keygen_is_asked_again(
    make_key: MakeKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was killed, as where memory is short, must not make a signature bad for good."""
    ana = make_key("ana")
    signed = sign(TEXT, ana)
    with monkeypatch.context() as patch:
        broken = tmp_path / "bin" / "ssh-keygen"
        broken.parent.mkdir()
        broken.write_text("#!/bin/sh\nkill -9 $$\n")
        broken.chmod(0o755)
        patch.setenv("PATH", str(broken.parent))
        assert signer_of(TEXT, signed, "ana", [public(ana)]) is None
    assert signer_of(TEXT, signed, "ana", [public(ana)]) == fingerprint(public(ana))
