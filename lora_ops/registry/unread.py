"""Stop a version of a registry that can't be opened: a hold, beside everything that a gateway may look at."""

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from lora_ops.clock import now, utc
from lora_ops.errors import Damaged, LoraOpsError, Unavailable
from lora_ops.free_text import require_name
from lora_ops.registry.backends import open_copy
from lora_ops.registry.changes import require_reason
from lora_ops.registry.database import registry_parts
from lora_ops.registry.heads import HEADS_FILE, HeadMemory
from lora_ops.registry.holds import ANY_CONTENT, Holds, Statement
from lora_ops.registry.holds import FOLDER as HOLDS
from lora_ops.registry.owners import Owners, Role, load_owners
from lora_ops.registry.roles import MAY, require_role_in
from lora_ops.registry.signing import Signer
from lora_ops.registry.versions import parse_reference
from lora_ops.settings.params import Settings, settings_to_stop

DEEPEST = 4
"""So many folders deep in a clone `serving.path` may lie, so that a revocation finds its gateway."""


def stop_unread(
    root: Path,
    reference: str,
    error: LoraOpsError,
    *,
    actor: str,
    reason: str,
    roles: frozenset[Role] = MAY["revoked"],
) -> str:
    """Stop a version of a registry that can't be opened, by a hold.

    A gateway goes on with what it verified, whatever somebody did to the registry since: moved it away, put a
    file in its place, or let it say that a newer lora-ops wrote it.

    Args:
        root: of the repository.
        reference: the exact version.
        error: why the registry can't be opened.
        actor: who does it.
        reason: why.
        roles: what the actor must be.

    Returns:
        Why the log does not have the revocation yet, without a full stop.

    Raises:
        LoraOpsError: `error`, where there never was such a registry, or where it can be read and something else
            is wrong; else as `stop_by_hold`. Unavailable where one of several places can't be written: the
            gateway that looks there still serves the version.
    """
    try:
        everything = settings_to_stop(root)
    except LoraOpsError:
        raise error from None
    path = root / everything.registry.path
    # Nothing is made where no registry is: a backup is restored there, or the one that was moved comes back.
    is_there, memories = _has_parts(path), _memories(root, everything)
    if not isinstance(error, Damaged) and (_is_sound(root, everything) or not (is_there or memories)):
        raise error
    outside = memories or [root / everything.serving.path]
    owners = load_owners(root / "owners.yaml")
    several = everything.registry.backend != "embedded"
    signer = Signer(path / "keys", everything.registry.signing, several=several)
    places = [[path / HOLDS, outside[0] / HOLDS]] if is_there else [[outside[0] / HOLDS]]
    failed: dict[Path, Unavailable] = {}
    for folders in [*places, *([memory / HOLDS] for memory in outside[1:])]:
        holds = Holds(folders[0], signer)
        holds.outside = folders[1] if len(folders) > 1 else None
        try:
            stop_by_hold(
                holds, owners, reference, actor=actor, reason=reason, at=now(), roles=roles, signs=is_there
            )
        except Unavailable as unkept:
            failed[folders[-1]] = unkept
    if len(failed) == len(outside):
        raise next(iter(failed.values()))
    if failed:
        folder = next(iter(failed)).parent
        raise Unavailable(
            f"{reference} may still answer: a gateway keeps its files in {folder}, and no hold can be written "
            "there. Make that folder writable and run this again, or stop that gateway. Gateways that keep "
            "their files elsewhere in this clone have stopped it."
        )
    advice = "" if is_there else "; nothing could sign this, so run it again once the registry is there"
    return f"{str(error).rstrip('.')}{advice}"


def _is_sound(root: Path, everything: Settings) -> bool:
    """Return whether this machine's copy can be opened, and is what was seen of it last."""
    try:
        with closing(open_copy(root, everything, to_stop=True)) as registry:
            return registry.follower.problem() is None
    except LoraOpsError:
        return False


def _memories(root: Path, everything: Settings) -> list[Path]:
    """Return the folders in which heads of a registry are remembered, that of params.yaml first.

    After a `git switch`, params.yaml may name another `registry.path` or `serving.path` than a gateway began
    with.
    """
    named = root / everything.serving.path
    found = [named] if HeadMemory(named / HEADS_FILE, "").knows_any() else []
    for folder in _folders_with_heads(root):
        path = folder / HEADS_FILE
        # Another program may have a file of that name, and a clone inside this one has its own versions.
        if (
            folder != named
            and not _is_of_inner_clone(path, root)
            and HeadMemory(path, "").knows_any(if_damaged=False)
        ):
            found.append(folder)
    return found


def _folders_with_heads(root: Path) -> Iterator[Path]:
    """Yield the folders of a clone with a file of heads, down to `DEEPEST`.

    `Path.glob` would end in an error where a folder vanishes meanwhile, and a revocation must not.
    """
    level = [root]
    for _ in range(DEEPEST):
        below: list[Path] = []
        for folder in level:
            with suppress(OSError):  # removed since, or closed: no gateway keeps files there
                below += (path for path in sorted(folder.iterdir()) if _is_folder(path))
        yield from (folder for folder in below if os.path.lexists(folder / HEADS_FILE))
        level = below


def _is_folder(path: Path) -> bool:
    with suppress(OSError):
        return path.is_dir()
    return False


def _is_of_inner_clone(path: Path, root: Path) -> bool:
    between = path.relative_to(root).parents
    return any((root / one / "params.yaml").exists() for one in between if one != Path())


def _has_parts(folder: Path) -> bool:
    with suppress(OSError):
        return bool(registry_parts(folder))
    return False


def stop_by_hold(
    holds: Holds,
    owners: Owners,
    reference: str,
    *,
    actor: str,
    reason: str,
    at: datetime,
    roles: frozenset[Role] = MAY["revoked"],
    signs: bool = True,
) -> None:
    """Hold a version of a registry whose database can't be read, whatever content it has.

    A gateway that runs goes on with what it read before, so the version answers still.

    Args:
        holds: of that registry.
        owners: today's owners.yaml.
        reference: the exact version.
        actor: who does it.
        reason: why.
        at: the time.
        roles: what the actor must be.
        signs: whether the registry is there, whose key signs the hold.

    Raises:
        LoraOpsError: no exact version, nobody of its team, no reason, or the hold can't be written.
    """
    actor = require_name(actor, "Say who does this (--actor)")
    tenant, number = parse_reference(reference)
    if not isinstance(number, int):
        raise LoraOpsError(f"Name the exact version that must go ({tenant}@3), not '{reference}'.")
    require_reason(reason)
    require_role_in(owners.team(tenant), actor, roles, f"make {reference} 'revoked'")
    said = {"version": f"{tenant}@{number}", "actor": actor, "reason": reason.strip(), "at": utc(at)}
    holds.keep(Statement(content_digest=ANY_CONTENT, **said), signs=signs)
