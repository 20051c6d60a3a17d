"""The commit that a working copy is at, and its files."""

import subprocess
from pathlib import Path

from lora_ops.records.git import GitRecord


def committed_text(root: Path, name: str) -> str | None:
    """Return a file of `root` as the last commit has it; None where it has none, or git is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "show", f"HEAD:./{name}"], capture_output=True, text=True, encoding="utf-8"
        )
    except (OSError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def git_state(root: Path) -> GitRecord:
    """The commit of `root` and whether its files differ from it.

    dvc.lock is left out of the question: the pipeline itself writes it while it runs, and the manifest has
    its digest.
    """

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--", ".", ":(exclude)dvc.lock")
    return GitRecord(commit=git("rev-parse", "HEAD"), dirty=changed is None or changed != "")
