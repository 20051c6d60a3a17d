"""How many users people may give a version by hand."""

from lora_ops.registry.rollouts import rollout_of
from lora_ops.registry.store import Registry


def gives_too_much(registry: Registry, adapter: str, percent: float | None) -> str | None:
    """Return why people may not let a version answer users by hand, in words; None where they may.

    A share that is above the plan's has too few users beside it, so that nobody would see a breach. What went
    back has no controller that looks at it any more.

    Args:
        registry: where.
        adapter: the version.
        percent: the canary's share; None: of pinned users and segments.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    found = rollout_of(registry, adapter)
    if found is None or found.phase in ("done", "aborted"):
        return None
    if found.phase == "returned":
        return (
            f"the rollout of {adapter} went back ({found.said}): `lora-ops rollout start {adapter} --reason "
            "TEXT` tries it again"
        )
    if found.phase == "shadow" or (percent or 0) > found.percent:
        return (
            f"the rollout of {adapter} gives it {found.percent:g} % of the users ({found.phase}): wait for it, "
            f"or end it with `lora-ops rollout abort {adapter} --reason TEXT`"
        )
    return None
