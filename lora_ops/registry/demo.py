"""The registry of a demo: sample reviews count in it, and it goes nowhere else.

Its first entry says what it is, so that no registry becomes one later, and none stops being one.
"""

from contextlib import suppress

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.registry.store import Registry

BEGUN, KIND = "demo_begun", "registry"
SAMPLE = "SAMPLE"


def begin_demo(registry: Registry) -> None:
    """Let an empty registry be that of a demo; one that has entries stays what it is.

    Raises:
        LoraOpsError: the registry can't be changed.
    """
    if registry.log.head().seq == 0:
        with registry.change("lora-ops demo") as change:
            if registry.log.head().seq == 0:
                change.note(BEGUN, KIND, "demo", reason="registry.demo in params.yaml")


def is_demo(registry: Registry) -> bool:
    """Return whether a registry was begun as that of a demo; a log that can't be read is none."""
    with suppress(LoraOpsError):
        first = registry.log.of_kind(KIND)[:1]
        return any((entry.seq, entry.action) == (1, BEGUN) for entry in first)
    return False


def require_same_kind(registry: Registry, demo: bool) -> None:
    """Refuse the registry of a demo where params.yaml names none, and the other way round.

    Raises:
        Refused: it is of the other kind.
    """
    if registry.log.head().seq == 0 or is_demo(registry) == demo:
        return
    if demo:
        raise Refused(
            f"params.yaml says registry.demo, and the registry in {registry.path} was not begun as one: remove "
            "`demo` there, or name another folder (registry.path)."
        )
    raise Refused(
        f"The registry in {registry.path} is that of a demo, whose sample reviews nobody wrote: it is no "
        "registry of this repository. Move it away, and restore yours (`lora-ops registry restore URL`)."
    )


def require_no_demo(registry: Registry, what: str) -> None:
    """Refuse to take the registry of a demo anywhere.

    Raises:
        Refused: it is one.
    """
    if is_demo(registry):
        raise Refused(f"This is the registry of a demo: it is not {what}. `make demo` makes it again.")


def demo_notes(registry: Registry) -> list[str]:
    """Return that a registry is that of a demo, in words; nothing of any other one."""
    if not is_demo(registry):
        return []
    return ["DEMO: this registry was begun for a demo, and its reviews are samples that no person gave"]
