"""What somebody does to a registry who can write in its folder and has no private key."""

from pathlib import Path

from lora_ops.registry.audit import Anchor
from lora_ops.registry.signing import Signer
from lora_ops.registry.signing_keys import make_key
from lora_ops.registry.store import Registry
from lora_ops.settings.registry import SigningSettings


def weights(registry: Registry, reference: str) -> Path:
    """Return where the weights of a version are kept."""
    files = registry.get(reference).manifest.files
    return registry.files.path(files["adapter_model.safetensors"].sha256)


def swap_weights(registry: Registry, reference: str, other: str) -> None:
    """Put the kept weights of two versions in each other's place."""
    one, two = weights(registry, reference), weights(registry, other)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def flip_weights(registry: Registry, reference: str) -> None:
    """Change one bit of the kept weights of a version."""
    content = bytearray(weights(registry, reference).read_bytes())
    content[-1] ^= 1
    weights(registry, reference).write_bytes(content)


def cut_weights(registry: Registry, reference: str) -> None:
    """Take the last bytes off the kept weights of a version."""
    path = weights(registry, reference)
    path.write_bytes(path.read_bytes()[:-8])


def sign_as_stranger(registry: Registry) -> None:
    """Sign the head with another key, whose public half lies where the registry's own ones are."""
    stranger = Signer(registry.signer.folder, SigningSettings(key=str(registry.path.parent / "own.key")))
    make_key(stranger.own.path)
    Anchor(registry.anchor.path, stranger).confirm(registry.log.head())
