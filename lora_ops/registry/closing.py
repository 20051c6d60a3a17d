"""How a version is closed: by one entry of the log, or here at once by a hold that becomes that entry later.

Where another place decides what counts (W&B, see shared.py), a revocation can't wait for it: the machine states
a hold first, and stops the version. Then it asks for the entry. Where that fails, the hold stays queued, and
`sync`, a gateway's refresh and the next change try again, each by `settle`. A log of this machine that is
damaged, locked or on a full disk takes no entry either: the hold is all there is until somebody mends that.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeVar

from lora_ops.clock import utc
from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, Unavailable, with_text
from lora_ops.free_text import require_name
from lora_ops.records.evidence import Evidence
from lora_ops.records.registry import State
from lora_ops.registry.changes import LostRace, require_reason
from lora_ops.registry.holds import ANY_CONTENT, Hold, Statement
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.reports import Report
from lora_ops.registry.requirements import require_about
from lora_ops.registry.roles import MAY, require_role
from lora_ops.registry.steps import keep_reports, record_step, require_step
from lora_ops.registry.stops import drop_if_entered, enter_stop
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, Summary, Version, parse_reference

Made = TypeVar("Made")
ATTEMPTS = 5
"""How often a revocation or a return is asked for whose place in the log another machine took."""
logger = logging.getLogger(__name__)


def close(
    registry: Registry,
    reference: str,
    to: State,
    actor: str,
    reason: str,
    evidence: Sequence[Report] = (),
    *,
    hold: Hold | None = None,
    held_at: str | None = None,
) -> Version:
    """Move a version to a closed state by one entry of the log.

    Args:
        registry: where.
        reference: the exact version.
        to: the state.
        actor: who does it.
        reason: why.
        evidence: reports that are kept with it.
        hold: whose revocation it is; its evidence is kept already.
        held_at: since when a hold stopped the version, where that was long before.

    Raises:
        LoraOpsError: unknown version, no role, no reason, or no way to that state; nothing is changed then.
    """
    with change_with_owners(registry, actor, despite_head=to == "revoked") as change:
        version = registry.get_exact(reference, whole=False)
        if hold and not registry.is_stopped_by(hold, version.summary):
            raise Refused(
                f"{version.id} has another content than the one that was stopped here: look at it, and remove "
                f"{registry.holds.files(hold)} where that content is gone."
            )
        require_role(registry, version, actor, MAY[to], f"make {version.id} '{to}'")
        require_step(version, to, reason)
        held = registry.hold_of(version.summary) if to == "archived" else None
        if held:  # put away it would count as good
            raise Refused(f"{held.text}: revoke it instead.")
        require_about(version, evidence)
        gone: dict[str, int | None] = dict.fromkeys(version.aliases)
        record_step(
            registry,
            change,
            version,
            to,
            reason,
            _kept(registry, hold) if hold else keep_reports(registry, evidence),
            states={version.number: to},
            aliases=gone,
            before=version.state,
            **({"held_at": held_at} if held_at else {}),
        )
    return registry.get(version.id, whole=False)


def revoke(registry: Registry, reference: str, actor: str, reason: str, evidence: Sequence[Report]) -> Version:
    """Revoke a version: here at once, and in the log as soon as that takes the entry.

    `registry.not_sent` says afterwards why the log did not take it, if so.

    Raises:
        LoraOpsError: as `close`. Where the log is shared, only what is known here: the role, the reason, the
            version; or the hold can't be written.
    """
    registry.not_sent = None
    hold, is_damaged = None, False
    if registry.shares_log or any(one.version == reference for one in registry.holds.all()):
        is_damaged = _is_damaged(registry)
        hold = stop(registry, reference, actor, reason, evidence, is_damaged=is_damaged)
    if hold is None:
        try:
            # What is queued must not hold this up: whoever keeps the lock would be waited for with each hold.
            with without_settling(registry):
                closed = close(registry, reference, "revoked", actor, reason, evidence)
            _hold_until_seen(registry, closed, actor, reason)
        except LoraOpsError as error:
            return _stop_despite(registry, error, reference, actor, reason, evidence)
        return closed
    queued = _settle(registry, *hold)
    for other in registry.holds.all() if queued is None else ():
        if other.version == reference:
            _drop_if_closed(registry, other)
    registry.not_sent = why_not_taken(queued) if queued else None
    return _known(registry, reference, is_damaged=is_damaged)


def _hold_until_seen(registry: Registry, version: Version, actor: str, reason: str) -> None:
    """Keep a hold of a version that the log closed a moment ago.

    A gateway looks once a second, and at each request. Whoever puts an older copy of the registry back before
    that would keep the version on air, since the routes that were verified go on. The next change drops the
    hold. It is for any content: what is in the registry's place by now may say otherwise. A gateway that can't
    read the log reads the hold.

    Raises:
        Damaged: another copy is in the registry's place already.
    """
    if registry.memory is None:
        return
    at = utc(registry.clock())
    said = {"version": version.id, "actor": actor, "reason": reason.strip(), "at": at}
    try:
        registry.holds.keep(Statement(content_digest=ANY_CONTENT, **said))
    except Unavailable as error:
        logger.warning("%s is revoked in the audit log alone: %s", version.id, error)
    if version.state not in CLOSED:
        raise Damaged(f"Another copy took the place of the registry in {registry.path} meanwhile.")


def _is_damaged(registry: Registry) -> bool:
    try:
        return registry.follower.problem() is not None
    except LoraOpsError:
        return True


def settle(registry: Registry) -> list[str]:
    """Turn each queued hold into a revocation in the log, once, as who decided it; drop those that are in it.

    A run that was killed anywhere is mended by the next one: a hold goes only after the log shows its version
    closed, and a version that is closed is not revoked again.

    Returns:
        What is still queued, and why, a sentence each without its full stop.
    """
    waiting = []
    why: LoraOpsError | None = None
    for hold in registry.holds.all():
        if not isinstance(why, Unavailable):  # a lock that somebody keeps would be waited for with each hold
            why = _settle(registry, hold, is_new=False)
        if why:
            waiting.append(
                f"{hold.version} is revoked on this machine, and not yet {hold.log}: {why_not_taken(why)}"
            )
    for queued in registry.stops.all():
        if not isinstance(why, Unavailable):
            why = _settle_stop(registry, queued)
        if why:
            waiting.append(
                f"{queued.version} is stopped on this machine, and not yet {queued.log}: {why_not_taken(why)}"
            )
    return waiting


def _settle_stop(registry: Registry, queued: Hold) -> LoraOpsError | None:
    """Turn one queued stop into a change of the route; return why it is still queued, or None."""
    if drop_if_entered(registry, queued):
        return None
    registry.stops.mend(queued)
    try:
        with without_settling(registry):
            until_first(lambda: enter_stop(registry, queued))
    except LoraOpsError as error:
        return None if drop_if_entered(registry, queued) else error
    drop_if_entered(registry, queued)
    return None


def why_not_taken(why: LoraOpsError) -> str:
    """Return why the log did not take a change, without its full stop; a hold was written, so not "nothing"."""
    return str(why).removesuffix("; nothing was changed.").rstrip(".")


@contextmanager
def without_settling(registry: Registry) -> Iterator[None]:
    """Let the changes inside leave each hold as it is, where any other change settles them first."""
    before, registry.is_settling = registry.is_settling, True
    try:
        yield
    finally:
        registry.is_settling = before


def until_first(change: Callable[[], Made]) -> Made:
    """Make a change that must not wait because another machine changed something else at the same moment.

    Each try decides everything again on what W&B holds by then.

    Raises:
        LostRace: other machines were first each time.
        LoraOpsError: as `change`.
    """
    for _ in range(ATTEMPTS - 1):
        with suppress(LostRace):
            return change()
    return change()


def _stop_despite(
    registry: Registry,
    error: LoraOpsError,
    reference: str,
    actor: str,
    reason: str,
    evidence: Sequence[Report],
) -> Version:
    """Hold a version whose revocation the log of this machine did not take.

    Raises:
        LoraOpsError: `error`, where it is about the request and not about the state of the registry.
    """
    is_damaged = isinstance(error, Damaged) or _is_damaged(registry)
    try:
        held = stop(registry, reference, actor, reason, evidence, is_damaged=is_damaged)
    except Unavailable as unkept:
        raise with_text(error, f"{str(error).rstrip('.')}. {unkept}") from error
    except LoraOpsError:
        raise error from None
    if held is None:
        raise error
    registry.not_sent = why_not_taken(error)
    return _known(registry, reference, is_damaged=is_damaged)


def _known(registry: Registry, reference: str, *, is_damaged: bool = False) -> Version:
    """Return a version as its row is, or else as the log knows it: somebody may have removed its row.

    Where the registry is damaged, somebody may have removed it from both, and a gateway serves it still.

    Raises:
        LoraOpsError: neither knows it.
    """
    try:
        return registry.get_exact(reference, whole=False)
    except LoraOpsError:
        tenant, number = parse_reference(reference)
        stated = None
        with suppress(LoraOpsError) if is_damaged else nullcontext():
            stated = registry.log.registered_as(reference)
        if not isinstance(number, int) or (stated is None and not is_damaged):
            raise
    if stated is None:
        logger.warning("No record here knows %s: look whether that number is right.", reference)
    digest, author = (stated.content_digest, stated.author) if stated else (ANY_CONTENT, "")
    return Version(Summary(tenant, number, "production", author, "", "", None, "", 0.0, 0, digest, None), "")


def stop(
    registry: Registry,
    reference: str,
    actor: str,
    reason: str,
    evidence: Sequence[Report],
    *,
    is_damaged: bool = False,
) -> tuple[Hold, bool] | None:
    """Stop a version on this machine: write a hold, or find the one that is there, and ask W&B for nothing.

    Where the registry is damaged, nobody believes the state or the content of a row: whoever changed it could
    stop this, or let it stop another content and write the right one back. The hold is for any content then.

    Returns:
        The hold, and whether it is new. None where this machine does not know the version yet, so that it does
        not serve it either.

    Raises:
        LoraOpsError: as `revoke`.
    """
    actor = require_name(actor, "Say who does this (--actor)")
    try:
        version = (
            _known(registry, reference, is_damaged=True)
            if is_damaged
            else registry.get_exact(reference, whole=False)
        )
    except NotFound:
        return None
    require_role(registry, version, actor, MAY["revoked"], f"make {version.id} 'revoked'")
    if is_damaged:
        require_reason(reason)
    else:
        require_step(version, "revoked", reason)
    require_about(version, evidence)
    known = registry.stop_of(version.summary)
    if known and _may_still(registry, version, known):
        # Its time and its reason are those of the first decision.
        return known, False
    kept: list[Evidence] = []
    try:
        kept = keep_reports(registry, evidence)
    except LoraOpsError as error:  # the version must not go on answering because a report can't be kept
        logger.warning("%s is stopped without its evidence: %s", version.id, error)
    at, digests = utc(registry.clock()), [version.summary.content_digest]
    if is_damaged:
        # A hold for any content is about what was registered before it, which a wrong clock may deny.
        digests = [ANY_CONTENT, *(digests if version.summary.registered_at > at else ())]
    for digest in digests:
        registry.holds.keep(
            Statement(
                version=version.id,
                content_digest=digest,
                actor=actor,
                reason=reason.strip(),
                at=at,
                evidence=kept,
            )
        )
    registry.copies.forget(version.id)
    hold = registry.stop_of(version.summary)
    assert hold, "it was written a moment ago"
    return hold, True


def _may_still(registry: Registry, version: Version, hold: Hold) -> bool:
    """Return whether a hold can become a revocation as it is: it is signed, and its actor still has a role."""
    if hold.statement is None or not hold.is_signed:
        return False
    try:
        require_role(registry, version, hold.statement.actor, MAY["revoked"], "revoke it")
    except LoraOpsError:
        return False
    return True


def _settle(registry: Registry, hold: Hold, is_new: bool) -> LoraOpsError | None:
    """Turn one hold into a revocation; return why it is still queued, or None."""
    if _drop_if_closed(registry, hold):
        return None
    registry.holds.mend(hold)
    said = hold.statement
    if said is None or not hold.is_signed:
        return Refused(
            "no key that is trusted here signed its hold: `lora-ops registry revoke "
            f"{hold.version} --reason TEXT` decides it again. If nobody has decided it, remove "
            f"{registry.holds.files(hold)}, also in each gateway's own clone, and restart the gateways"
        )
    held_at = None if is_new else said.at
    try:
        with without_settling(registry):
            until_first(
                lambda: close(
                    registry, said.version, "revoked", said.actor, said.reason, hold=hold, held_at=held_at
                )
            )
    except NotFound as error:
        files = registry.holds.files(hold)
        return Refused(f"{str(error).rstrip('.')}: remove {files} where that version is gone")
    except LoraOpsError as error:
        # Another machine, or another process of this one, may have closed it meanwhile.
        return None if _drop_if_closed(registry, hold) else error
    _drop_if_closed(registry, hold)
    return None


def is_in_log(registry: Registry, hold: Hold) -> bool:
    """Return whether the verified log shows the version of a hold closed, so that nothing waits any more.

    One that another machine archived meanwhile counts as good, so its hold stays and becomes a revocation.
    The row alone is not asked: whoever can write it could let the hold go, and write it back.
    """
    tenant, number = parse_reference(hold.version)
    assert isinstance(number, int)
    with suppress(LoraOpsError):
        stated = registry.log.registered_as(hold.version)
        same = stated is None or hold.content_digest in (ANY_CONTENT, stated.content_digest)
        verified = registry.follower.problem() is None
        return same and verified and registry.follower.state(tenant, number) in CLOSED - {"archived"}
    return False


def _drop_if_closed(registry: Registry, hold: Hold) -> bool:
    """Remove a hold whose version the verified log shows closed; say whether it does."""
    is_closed = is_in_log(registry, hold)
    if is_closed:
        registry.holds.drop(hold)
    return is_closed


def _kept(registry: Registry, hold: Hold) -> list[Evidence]:
    """Return a hold's evidence without what was lost since: a revocation must not wait for a file."""
    kept = []
    for one in hold.statement.evidence if hold.statement else ():
        try:
            for digest in filter(None, (one.sha256, one.source_sha256)):
                registry.files.checked(digest, one.summary)
        except LoraOpsError as error:
            logger.warning("The revocation of %s goes without a report: %s", hold.version, error)
        else:
            kept.append(one)
    return kept
