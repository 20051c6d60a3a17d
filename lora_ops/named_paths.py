"""Paths that people name, on the command line or in params.yaml: what is wrong with one, in words."""

from pathlib import Path

from lora_ops.errors import LoraOpsError


def follow(path: Path, what: str) -> Path:
    """Return where `path` really is, its symlinks followed; it may be missing.

    Args:
        path: the path.
        what: who names it, such as "registry.path".

    Raises:
        LoraOpsError: its symlinks lead in a circle, or no file system has such a name.
    """
    try:
        return path.resolve()
    except RuntimeError as error:  # so says Python 3.11 and 3.12 of symlinks in a circle
        raise LoraOpsError(f"{what}: {path} is a symlink that leads back to itself: mend it.") from error
    except (OSError, ValueError) as error:
        raise LoraOpsError(f"{what}: no file can have the name {path} ({error}): correct it.") from error


def why_no_file(path: Path) -> str:
    """Return why there is no file at `path`, as the end of a sentence."""
    if path.is_dir():
        return f"{path} is a folder, not a file"
    if path.is_symlink():
        return f"{path} is a symlink that leads to no file"
    return f"there is no file {path}"
