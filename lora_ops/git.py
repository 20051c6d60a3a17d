"""The commit that a working copy is at."""

import subprocess
from pathlib import Path

from lora_ops.records.git import GitRecord


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
