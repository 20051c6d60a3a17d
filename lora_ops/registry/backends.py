"""Opens the registry that params.yaml names, embedded or shared at W&B, and its mirror."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.named_paths import follow
from lora_ops.registry.closing import settle
from lora_ops.registry.database import MissingRegistry
from lora_ops.registry.demo import begin_demo, require_same_kind
from lora_ops.registry.head_acceptance import require_may_accept
from lora_ops.registry.heads import HEADS_FILE, HeadMemory
from lora_ops.registry.mirror import Mirror
from lora_ops.registry.owners import Owners, load_owners
from lora_ops.registry.owners_log import KIND, kept_owners
from lora_ops.registry.shared import SharedRegistry
from lora_ops.registry.store import Registry
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.files import find_root
from lora_ops.settings.params import Settings, load_settings, settings_to_stop
from lora_ops.settings.registry import SigningSettings

logger = logging.getLogger(__name__)


def open_registry(root: Path | None = None, *, create: bool = False, to_stop: str | None = None) -> Registry:
    """Open the registry that params.yaml names, with the owners of owners.yaml.

    Args:
        root: of the repository; default: the one around the working directory.
        create: make the registry if it is missing; only registering a version does.
        to_stop: a version (`finance@3`) that is about to be taken out of service. Where this machine knows it,
            W&B is not asked first: a network that swallows each request would hold that up for minutes. A
            params.yaml that is wrong holds nothing up (`settings_to_stop`).

    Raises:
        MissingRegistry: there is none, and `create` is not set.
        LoraOpsError: params.yaml or owners.yaml is wrong, the registry can't be opened, or W&B, which holds it,
            can't be reached for the first copy.
    """
    root = root or find_root()
    everything = load_settings(root) if to_stop is None else _settings_to_stop(root)
    opened = open_copy(root, everything, create=create, to_stop=to_stop is not None)
    if isinstance(opened, SharedRegistry) and not _knows(opened, to_stop):
        try:
            _take_what_is_new(opened, create)
        except BaseException:
            opened.close()
            raise
    return opened


def _settings_to_stop(root: Path) -> Settings:
    try:
        return load_settings(root)
    except LoraOpsError as error:
        everything = settings_to_stop(root)
        logger.warning(
            "%s The registry in %s counts, as the last commit or the rest of the file says.",
            error,
            root / everything.registry.path,
        )
        return everything


def open_to_accept(root: Path | None = None, *, actor: str, reason: str) -> tuple[Registry, HeadMemory]:
    """Open the registry whatever head is remembered of it, and return both.

    A registry that is missing is begun only if a head of it is remembered, and by whom may accept another one.

    Raises:
        LoraOpsError: params.yaml or owners.yaml is wrong, the registry can't be opened, or W&B holds it; the
            actor may not accept another head, or gives no reason. Nothing is made then.
    """
    root = root or find_root()
    everything = load_settings(root)
    if everything.registry.backend != "embedded":
        raise LoraOpsError(
            "This registry is at W&B: its log there says where it ends, so there is nothing to accept."
        )
    file = root / "owners.yaml"
    require_may_accept(load_owners(file) if file.is_file() else None, actor, reason)
    memory = _memory(root, everything)
    try:
        is_remembered = memory.recall() is not None
    except Damaged:
        is_remembered = True
    return open_copy(root, everything, create=is_remembered, compare=False), memory


def registry_path(root: Path | None = None) -> tuple[Path, SigningSettings]:
    """Return the folder of the registry that params.yaml names, which may be missing, and who signs it.

    Raises:
        LoraOpsError: params.yaml is wrong, or the folder is a symlink that leads back to itself.
    """
    root = root or find_root()
    settings = load_settings(root).registry
    follow(root / settings.path, "registry.path")
    return root / settings.path, settings.signing


def open_restored(root: Path | None = None) -> Registry:
    """Open a registry that was just restored; what W&B holds is not asked for."""
    root = root or find_root()
    return open_copy(root, load_settings(root))


def remembered_head(root: Path) -> str | None:
    """Return the last head of the audit log that this machine saw, such as `17:a0d71c22e54f`; None without one.

    A damaged file of heads is logged and is no head: a page in an incident must not wait for it, and `verify`
    and each change name it.

    Raises:
        LoraOpsError: params.yaml is wrong.
    """
    try:
        head = _memory(root, load_settings(root)).recall()
    except Damaged as error:
        logger.warning("The page names no head of the audit log: %s", error)
        return None
    return None if head is None else head.text


def _memory(root: Path, everything: Settings) -> HeadMemory:
    # By where it really is: `./.registry` is the same folder, and must not begin without a memory. And by where
    # params.yaml says: whoever puts a link to an older copy in its place must not get one without a memory.
    inside = root.resolve()
    real = follow(root / everything.registry.path, "registry.path")
    said = Path(os.path.normpath(inside / everything.registry.path))
    return HeadMemory(root / everything.serving.path / HEADS_FILE, _place(inside, real), [_place(inside, said)])


def _place(root: Path, path: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _knows(registry: SharedRegistry, version: str | None) -> bool:
    if version is None:
        return False
    with suppress(LoraOpsError):
        registry.get_exact(version, whole=False)
        return True
    return False


def _take_what_is_new(registry: SharedRegistry, create: bool) -> None:
    if registry.log.head().seq:
        registry.refresh()
        return
    # Without the first entry nobody can tell an empty registry from one that was not reached.
    registry.pull()
    if registry.log.head().seq == 0 and not create:
        raise MissingRegistry(registry.path)


def open_copy(
    root: Path, everything: Settings, *, create: bool = False, compare: bool = True, to_stop: bool = False
) -> Registry:
    """Open the registry as this machine has it; what other machines changed meanwhile is not asked for.

    Args:
        root: of the repository.
        everything: its settings.
        create: make the registry if it is missing.
        compare: refuse a log that is not the one whose head is remembered in `serving.path`.
        to_stop: to take a version out of service. Where owners.yaml can't be read, the last one that the log
            holds says who may.

    Raises:
        MissingRegistry: there is none, and `create` is not set.
        LoraOpsError: owners.yaml is wrong, or the registry can't be opened, or it is that of a demo and
            params.yaml names none.
    """
    settings = everything.registry
    path, file = root / settings.path, root / "owners.yaml"
    owners, problem = None, LoraOpsError(f"There is no {file}.")
    try:
        owners = load_owners(file) if file.is_file() else None
    except LoraOpsError as error:
        if not to_stop:
            raise
        problem = error
    memory = _memory(root, everything) if compare else None
    registry: Registry
    if settings.backend == "embedded":
        registry = Registry(path, create=create, owners=owners, signing=settings.signing, memory=memory)
    else:
        project = WandbProject(settings.wandb, everything.tracking)
        registry = SharedRegistry(path, project, owners=owners, signing=settings.signing, memory=memory)
    if to_stop and owners is None:
        registry.owners = _last_owners(registry, problem)
    registry.settle = settle
    _follow(registry, everything)
    try:
        if create and settings.demo:
            begin_demo(registry)
        if not to_stop:
            require_same_kind(registry, settings.demo)
    except BaseException:
        registry.close()
        raise
    return registry


def take_rules(registry: Registry, root: Path) -> None:
    """Take owners.yaml and the rules of params.yaml as they are now, in a registry that stays open for days.

    Raises:
        LoraOpsError: one of both can't be read, or the registry is that of a demo and params.yaml names none;
            nothing is changed then.
    """
    everything, owners = load_settings(root), load_owners(root / "owners.yaml")
    require_same_kind(registry, everything.registry.demo)
    registry.owners = owners
    _follow(registry, everything)


def _follow(registry: Registry, everything: Settings) -> None:
    """Let a registry go by the rules of params.yaml."""
    settings = everything.registry
    registry.allow_candidates = everything.serving.allow_candidates
    registry.accept_replay = everything.rollout.accept_replay
    registry.first_step = everything.rollout.canary.steps[0]
    registry.approvals, registry.least = settings.approvals, settings.evidence
    registry.max_looks = settings.max_looks
    registry.max_gap = {name: tenant.evaluate.max_gap for name, tenant in everything.tenants.items()}


def _last_owners(registry: Registry, problem: LoraOpsError) -> Owners:
    """Return the last owners.yaml that the log holds: a version must not go on answering for want of the file.

    Raises:
        LoraOpsError: `problem`, where the log holds none.
    """
    known = registry.log.of_kind(KIND)
    try:
        found = kept_owners(known[-1])
    except (IndexError, LoraOpsError):
        registry.close()
        raise problem from None
    logger.warning(
        "%s The owners.yaml of entry %d of the audit log says who may stop a version: restore the file "
        "(git checkout owners.yaml).",
        problem,
        known[-1].seq,
    )
    return found


def open_mirror(registry: Registry, root: Path | None = None) -> Mirror:
    """The copy at W&B of an opened registry.

    Raises:
        LoraOpsError: params.yaml names no mirror.
    """
    if isinstance(registry, SharedRegistry):
        return registry.mirror
    everything = load_settings(root or find_root())
    settings = everything.registry
    if settings.mirror is None:
        raise LoraOpsError(
            "This registry has no mirror: set `mirror: wandb` under `registry` in params.yaml; every change "
            "that was made before is sent too."
        )
    return Mirror(registry, WandbProject(settings.wandb, everything.tracking))
