"""One file of a pinned package, from whichever package index pip is set to, checked by SHA-256."""

import os
import re
import subprocess
import sys
from pathlib import Path

from lora_ops.errors import Damaged, Unavailable
from lora_ops.folders import working_folder
from lora_ops.hashing import sha256_file


def fetch_package(
    requirement: str, sha256: str, folder: Path, *, sdist: bool = False, pinned_in: str = "params.yaml"
) -> Path:
    """The archive (wheel, or source archive if `sdist`) of a package such as `iso18245==1.4.1`.

    The archive is kept as `folder/<sha256>/<its name>`; when it is there already nothing is downloaded.

    Args:
        requirement: the package and its version.
        sha256: of the archive.
        folder: where archives are kept.
        sdist: whether the source archive is asked for.
        pinned_in: the file that names package and digest, for the reader of an error.

    Raises:
        LoraOpsError: pip can't get the package, or its bytes are not the pinned ones.
    """
    kept = folder / sha256
    if os.path.lexists(kept) and not kept.is_dir():
        raise Damaged(f"{kept} is no folder: delete it and run again.")
    for archive in kept.glob("*"):
        if not archive.is_file():  # a folder, a symlink to nowhere, or a pipe that would be read for ever
            raise Damaged(f"{archive} is no file: delete it and run again.")
        if sha256_file(archive) == sha256:
            return archive
        raise Damaged(
            f"{archive} was changed on disk (its SHA-256 is not {sha256[:12]}…): delete it and run again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with working_folder(folder, ".incoming-") as incoming:
        archive = _download(requirement, sha256, incoming, sdist=sdist, pinned_in=pinned_in)
        kept.mkdir(exist_ok=True)
        return archive.replace(kept / archive.name)


def _download(requirement: str, sha256: str, folder: Path, *, sdist: bool, pinned_in: str) -> Path:
    # With --require-hashes pip compares the digest before it runs a line of a source archive's own code.
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    kind = ["--no-binary", ":all:"] if sdist else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--require-hashes"]
    # A constraints file (PIP_CONSTRAINT) is about what gets installed; nothing is installed here.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    target = folder / "archives"
    done = subprocess.run(
        [*command, "--dest", str(target), "--requirement", str(pinned)],
        capture_output=True,
        text=True,
        env=environment,
    )
    found = re.search(r"Got\s+([0-9a-f]{64})", done.stdout + done.stderr)
    if done.returncode != 0 and found:
        raise Damaged(
            f"{requirement}: the package index gave a file with SHA-256 {found[1]}, {pinned_in} pins {sha256}; "
            f"nothing was used. If the change is expected, put the new digest into {pinned_in}."
        )
    archives = list(target.glob("*"))
    if done.returncode != 0 or len(archives) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip exited with {done.returncode}"
        raise Unavailable(f"Cannot download {requirement}: {reason.rstrip('.')}.")
    return archives[0]
