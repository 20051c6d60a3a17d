"""What needs a version: the one place that says which versions must stay where they are."""

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.registry.archived_weights import weights_of
from lora_ops.registry.eligibility import SERVING
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.rollout.rollback import plan


def needed_reason(registry: Registry, version: Version) -> str | None:
    """Return why a version must stay, to be said after its name, or None."""
    if version.aliases:
        return f"is {', '.join(version.aliases)}"
    named = registry.route(version.tenant).about(version.number)
    if named:
        return f"{'; '.join(named)} by the route"
    if registry.stop_of(version.summary) or registry.queued_stop(version.summary):
        return "is held"
    if version.state in SERVING:
        return f"is '{version.state}'"
    return returns_reason(registry, version)


def returns_reason(registry: Registry, version: Version) -> str | None:
    """Return that a rollback of what is, or was last, in production brings a version back, or None.

    A canary that is rolled back leaves its users to production. Two versions return, one after the other, where
    the weights of the first are in the archive alone: until they are back, the other one stays as well.
    """
    serving = registry.named(version.tenant, "production")
    leaves = registry.log.last_in_production(version.tenant) if serving is None else serving
    if leaves is None or version.state != "superseded":
        return None
    bad = f"{version.tenant}@{leaves}"
    try:
        first = plan(registry, bad, from_archive=True).returns
        weights = weights_of(first)
        is_away = weights is not None and not registry.files.holds(weights[0])
        if version.id in {first.id, plan(registry, bad).returns.id if is_away else first.id}:
            return "returns when production is rolled back"
    except Refused:
        return None  # nothing can return
    except LoraOpsError as error:
        return f"may be what a rollback brings back, which nobody can tell ({str(error).rstrip('.')})"
    return None
