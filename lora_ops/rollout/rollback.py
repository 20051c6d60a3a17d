"""Going back to the version that served before: who may, which version returns, and what remains to be done."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable, with_text
from lora_ops.registry import closing, lifecycle, packages, reports
from lora_ops.registry.archived_weights import bring_back_if_archived
from lora_ops.registry.eligibility import barred_reason
from lora_ops.registry.files import InArchive
from lora_ops.registry.replay import require_rows
from lora_ops.registry.reports import Report
from lora_ops.registry.requirements import return_notes, returning_lacks
from lora_ops.registry.roles import MOVE, require_role
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins
from lora_ops.registry.versions import CLOSED, Version


class Rollback(NamedTuple):
    """What a rollback does, before it is done.

    Attributes:
        leaves: the version that goes.
        returns: the one that takes its place.
        done_already: whether that has happened.
        notes: what is said of the weights that return, and does not stop them.
    """

    leaves: Version
    returns: Version
    done_already: bool
    notes: tuple[str, ...] = ()


def plan(registry: Registry, reference: str, to: str | None = None, *, from_archive: bool = False) -> Rollback:
    """What must happen so that `reference` no longer answers and the version before it does.

    The version that returns is the one that was in production last before it, unless that one has expired,
    was closed, had an incident since, its evidence speaks against it, or its files or signature are no longer
    what they were; then the one before that. Weights that are here go first: one whose weights are in the
    archive returns only where no other may, and they are brought back before anything changes.

    Args:
        registry: where.
        reference: the exact version that must go (`finance@2`): a second run must not take back the version
            that the first one restored.
        to: the exact version that must return; default: the last one that may.
        from_archive: choose as if all archived weights were here.

    Raises:
        LoraOpsError: it is not in production, or there is no version to go back to.
    """
    leaves = registry.get(reference, whole=False)
    if reference != leaves.id:
        raise LoraOpsError(f"Name the exact version that must go ({leaves.id}): an alias may move meanwhile.")
    serving = registry.named(leaves.tenant, "production")
    if serving is not None and _replaced(registry, leaves, serving):
        returned = registry.get(f"{leaves.tenant}@{serving}", whole=False)
        if to not in (None, returned.id):
            raise Refused(
                f"{returned.id} is in production in the place of {leaves.id} already, not {to}: roll "
                f"{returned.id} back if that is bad, too."
            )
        return Rollback(leaves, returned, True, _notes(registry, returned, leaves))
    if serving is not None and serving != leaves.number:
        raise Refused(
            f"{leaves.id} is '{leaves.state}': {leaves.tenant}@{serving} is in production, so there is nothing "
            f"to roll back.{_to_stop(leaves)}"
        )
    served = _served(registry, leaves.tenant)
    if serving is None and leaves.number not in served:
        raise Refused(f"{leaves.id} is '{leaves.state}' and was never in production.{_to_stop(leaves)}")
    if serving is None and leaves.number != served[0]:
        last = f"{leaves.tenant}@{served[0]}"
        raise Refused(
            f"{last} was in production last, and nothing is now: name it, not {leaves.id} (`lora-ops rollback "
            f"{last} --reason TEXT`)."
        )
    if to:
        returns = _named(registry, leaves, served, to)
    else:
        returns = _before(registry, leaves, served, from_archive=from_archive)
    return Rollback(leaves, returns, False, _notes(registry, returns, leaves))


def roll_back(
    registry: Registry,
    reference: str,
    record: Path,
    *,
    actor: str,
    reason: str,
    planned: Rollback | None = None,
) -> Version:
    """Put the version before `reference` back into production and revoke `reference`; twice is once.

    Where the log is at W&B, `reference` stops on this machine first, at once. Until W&B takes what follows,
    nothing returns, and `registry.not_sent` says why; the same command ends the rollback later.

    Args:
        registry: where.
        reference: the exact version that must go.
        record: the incident's record, which both decisions rest on.
        actor: who does it.
        reason: why.
        planned: what `plan` returned a moment ago, which need not be found twice.

    Returns:
        The version that returned; where W&B did not take it yet, the one that is to return.

    Raises:
        LoraOpsError: as `plan`, or the weights that return can't be brought back from the archive (nothing is
            changed then), or the registry refuses one of the two steps; what was done stays done.
    """
    rollback = planned or plan(registry, reference)
    if not rollback.done_already:
        _bring_back(registry, rollback, actor=actor, reason=reason)
    incident = reports.make(registry, reference, "incident", record, reason)
    if registry.shares_log and rollback.leaves.state not in CLOSED:
        return _roll_back_shared(registry, rollback, incident, actor=actor, reason=reason)
    if not rollback.done_already:
        try:
            lifecycle.promote(
                registry, rollback.returns.id, "production", actor=actor, reason=reason, evidence=[incident]
            )
        except (Damaged, Unavailable):
            # The log takes nothing at this moment. The bad version stops all the same, and nothing returns yet.
            require_role(registry, rollback.returns, actor, MOVE, f"make {rollback.returns.id} 'production'")
            lifecycle.revoke(registry, reference, actor=actor, reason=reason, evidence=[incident])
            if not registry.not_sent:
                raise  # it took the revocation: what is wrong is wrong with the version that returns
            return rollback.returns
    if registry.get(reference, whole=False).state != "revoked":
        lifecycle.revoke(registry, reference, actor=actor, reason=reason, evidence=[incident])
    return registry.get(rollback.returns.id, whole=False)


def _bring_back(registry: Registry, rollback: Rollback, *, actor: str, reason: str) -> None:
    """Bring the weights that return back where they are in the archive alone, before anything else changes.

    Later the bad version would be revoked, and nothing would return.
    """
    leaves, returns = rollback.leaves.id, rollback.returns.id
    try:
        bring_back_if_archived(
            registry, returns, actor=actor, reason=f"it is to return in the place of {leaves}: {reason}"
        )
    except (Damaged, Unavailable) as error:
        raise with_text(
            error,
            f"{returns} can't return in the place of {leaves}, which stays as it is: {str(error).rstrip('.')}. "
            f"Name another version (`--to`), or stop {leaves} all the same: `lora-ops registry revoke {leaves} "
            "--reason TEXT`.",
        ) from error


def _roll_back_shared(
    registry: Registry, rollback: Rollback, incident: Report, *, actor: str, reason: str
) -> Version:
    """Take the steps of `roll_back` where they count once W&B took them, after the bad version stopped here."""
    leaves, returns = rollback.leaves.id, rollback.returns.id
    # Whoever may not put the earlier version back must not leave the tenant without any.
    require_role(registry, rollback.returns, actor, MOVE, f"make {returns} 'production'")
    registry.not_sent = None
    closing.stop(registry, leaves, actor, reason, [incident])
    failure: LoraOpsError | None = None
    if not rollback.done_already:
        try:
            # The return comes before the revocation: no other machine sees a moment without production.
            with closing.without_settling(registry):
                closing.until_first(
                    lambda: lifecycle.promote(
                        registry, returns, "production", actor=actor, reason=reason, evidence=[incident]
                    )
                )
        except Unavailable as error:  # asking once more would wait for W&B twice
            registry.not_sent = closing.why_not_taken(error)
            return rollback.returns
        except LoraOpsError as error:
            failure = error
    if registry.get(leaves, whole=False).state in CLOSED:  # by another machine, meanwhile
        closing.settle(registry)
    else:
        lifecycle.revoke(registry, leaves, actor=actor, reason=reason, evidence=[incident])
    if failure and not registry.not_sent:
        now = plan(registry, leaves)
        if not now.done_already:  # else another machine had put the earlier version back
            raise failure
        return now.returns
    return registry.get(returns, whole=False)


def half_done(
    leaves: str, returns: str, not_sent: str | None, *, returned: bool, shares_log: bool = True
) -> str:
    """Return what is said of a rollback whose revocation holds on this machine alone.

    Args:
        leaves: the version that goes (`finance@2`).
        returns: the one that is to take its place.
        not_sent: why the log did not take the revocation, where that is known.
        returned: whether that one is in production again.
        shares_log: whether the log is at W&B.
    """
    if not shares_log:
        why = f" ({not_sent.rstrip('.')})" if not_sent else ""
        return (
            f"{leaves} does not answer any more, and {returns} has not returned: the registry takes no change"
            f"{why}. Mend that, and run the same command again"
        )
    why = f": {not_sent.rstrip('.')}" if not_sent else " (`lora-ops registry sync` says why)"
    place = "is in production again" if returned else "has not returned"
    return (
        f"{leaves} does not answer on this machine any more, and {returns} {place}: W&B has not taken the "
        f"revocation{why}. Run the same command again once it does. Until then other machines serve "
        f"{leaves}: run `lora-ops registry revoke {leaves} --reason TEXT` there"
    )


def _to_stop(version: Version) -> str:
    """Return how a version that is not in production is stopped; nothing where it is closed already."""
    if version.state in CLOSED:
        return ""
    return (
        f" To stop {version.id}: `lora-ops route stop {version.id} --reason TEXT`, or for good `lora-ops "
        f"registry revoke {version.id} --reason TEXT`."
    )


def _notes(registry: Registry, returns: Version, leaves: Version) -> tuple[str, ...]:
    return tuple(return_notes(registry, returns, leaves, Twins(registry)))


def _served(registry: Registry, tenant: str) -> list[int]:
    """The versions that were ever in production, the last one first."""
    entries = reversed(registry.log.entries(tenant))
    numbers = (entry.number for entry in entries if entry.action == "production")
    return list(dict.fromkeys(number for number in numbers if number is not None))


def _replaced(registry: Registry, leaves: Version, serving: int) -> bool:
    """Whether a rollback put `serving` in the place of `leaves`; the bad one may still have to be revoked."""
    entries = registry.log.entries(leaves.tenant)
    last = next((entry for entry in reversed(entries) if entry.action == "production"), None)
    return (
        last is not None
        and (last.number, last.body.get("concerns")) == (serving, leaves.number)
        and leaves.state in ("superseded", "revoked")
    )


def _before(registry: Registry, leaves: Version, served: list[int], *, from_archive: bool = False) -> Version:
    """The last version in production that may answer again.

    One of which nobody can tell whether it has the same weights returns only if none is known to have others.
    One whose weights are in the archive alone returns only if no other may.
    """
    refused, twins, unknown, away = list[str](), Twins(registry), list[Version](), False
    for number in served:
        if number == leaves.number:
            continue
        try:
            version = registry.get(f"{leaves.tenant}@{number}")
            problem = _unfit(registry, version, leaves, twins, from_archive=from_archive)
        except InArchive as error:
            problem, away = str(error).rstrip("."), True
        except LoraOpsError as error:  # a damaged record of one version must not stop the way back to another
            problem = str(error).rstrip(".")
        else:
            if problem is None:
                if twins.compare(version.summary, leaves.summary) == "other":
                    return version
                unknown.append(version)
                continue
        refused.append(problem)
    if unknown:
        return unknown[0]
    if away and not from_archive:
        return _before(registry, leaves, served, from_archive=True)
    why = "; ".join(refused) or "no other version was in production before"
    raise Refused(
        f"There is no version to go back to from {leaves.id}: {why}. To stop its answers all the same: "
        f"`lora-ops registry revoke {leaves.id} --reason TEXT`."
    )


def _named(registry: Registry, leaves: Version, served: list[int], to: str) -> Version:
    """Return the version that somebody named, where it may answer again.

    Raises:
        LoraOpsError: no version has this name, or it may not return.
    """
    version = registry.get_exact(to)
    if version.tenant != leaves.tenant or version.number not in served or version.number == leaves.number:
        raise Refused(
            f"{to} was never in production before {leaves.id}: name another version, or none (without --to, "
            "the last one that may returns)."
        )
    problem = _unfit(registry, version, leaves, Twins(registry), from_archive=True)
    if problem:
        raise Refused(f"{to} may not return in the place of {leaves.id}: {problem}.")
    return version


def _unfit(
    registry: Registry, version: Version, leaves: Version, twins: Twins, *, from_archive: bool = False
) -> str | None:
    """Return why a version may not answer again, or None.

    With `from_archive`, weights in the archive alone are no reason: whoever rolls back brings them back, and
    checks them.

    Raises:
        InArchive: its weights are in the archive alone.
        LoraOpsError: a record or a kept file of it is missing or damaged.
    """
    if version.state != "superseded":
        return f"{version.id} is '{version.state}'"
    require_rows(registry, version)
    stopped = barred_reason(registry, version.summary)
    if stopped:
        return stopped
    if twins.compare(version.summary, leaves.summary) == "same":
        return f"{version.id} has the weights of {leaves.id}"
    with suppress(*([InArchive] if from_archive else [])):
        packages.check_kept(registry, version)
    lacking = returning_lacks(registry, version, leaves, twins)
    return f"{version.id} lacks {'; '.join(lacking)}" if lacking else None
