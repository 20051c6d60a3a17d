"""May a version serve: the one place that decides it. Gateway, `show`, promotion and rollback all ask here."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Protocol

from lora_ops.clock import utc
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, Summary, Version

SERVING = frozenset({"shadow", "canary", "production"})
UNREVIEWED = frozenset({"candidate", "validated"})
FRESHNESS_WARNING = timedelta(days=14)


class History(Protocol):
    """Knows what was in production: the log, or the part of it that was verified."""

    def last_in_production(self, tenant: str) -> int | None:
        """Return the version that went into production last, or None."""


def reasons_against(registry: Registry, summary: Summary, now: datetime) -> Iterator[str]:
    """Yield each reason why a version may not serve at `now`, as a sentence; nothing where it may."""
    for reason in (
        state_reason(registry, summary),
        expiry_reason(summary, now),
        stop_reason(registry, summary),
    ):
        if reason:
            yield reason


def state_reason(registry: Registry, summary: Summary, history: History | None = None) -> str | None:
    """Return why the state of a version keeps it from serving, or None.

    A candidate serves only where the settings allow it and only until the tenant has had a version in
    production: from then on people rely on reviewed answers, so a revoked or expired version is never replaced
    by one that nobody has reviewed. A state of a newer release never serves.

    Args:
        registry: where.
        summary: which version.
        history: says what was in production; default: the registry's log.
    """
    if summary.state in CLOSED:
        return f"{summary.id} was {summary.state}: it does not answer any more"
    held = hold_reason(registry, summary)
    if held:
        return held
    if summary.state in SERVING:
        return None
    if summary.state not in UNREVIEWED or not registry.allow_candidates:
        advice = "promote it"
        if summary.state in UNREVIEWED:
            advice += ", or set serving.allow_candidates in params.yaml"
        return f"{summary.id} is '{summary.state}', and only shadow, canary and production serve: {advice}"
    last = (history or registry.log).last_in_production(summary.tenant)
    if last is not None:
        return (
            f"{summary.id} is '{summary.state}', and '{summary.tenant}' has had a version in production "
            f"({summary.tenant}@{last}): from then on only reviewed versions serve, so promote it"
        )
    return None


def hold_reason(registry: Registry, summary: Summary) -> str | None:
    """Return that a version was revoked on this machine, though the log does not say so yet, or None.

    It counts whatever the state is, so nothing that was in production before gives way to a candidate.
    """
    hold = registry.hold_of(summary)
    return f"{hold.text}: it does not answer here any more" if hold else None


def barred_reason(registry: Registry, summary: Summary) -> str | None:
    """Return why a version must not come into production whatever speaks for it, or None."""
    return (
        hold_reason(registry, summary)
        or expiry_reason(summary, registry.clock())
        or stop_reason(registry, summary)
    )


def stop_reason(registry: Registry, summary: Summary) -> str | None:
    """Return that somebody stopped a version, or None."""
    if summary.number not in registry.route(summary.tenant).stopped:
        queued = registry.queued_stop(summary)
        return f"{queued.text}: it does not answer here until it is resumed" if queued else None
    return f"{summary.id} was stopped: `lora-ops route resume {summary.id} --reason TEXT` ends that"


def expiry_reason(summary: Summary, now: datetime) -> str | None:
    """Return why the age of a version's data keeps it from serving at `now`, or None."""
    if utc(now) >= summary.fresh_until:
        return f"{summary.id} expired on {summary.fresh_until[:10]}: train it on fresh data"
    return None


def expiry_warning(summary: Summary, now: datetime) -> str | None:
    """Return when the version stops serving, if that is within `FRESHNESS_WARNING` of `now`, else None."""
    if utc(now) < summary.fresh_until <= utc(now + FRESHNESS_WARNING):
        days = (datetime.fromisoformat(summary.fresh_until) - now).days
        return (
            f"the data of {summary.id} expires on {summary.fresh_until[:10]}, in {days} days, and it does not "
            "answer from then on: train and promote a version on fresh data"
        )
    return None


def base_model_reason(version: Version, base: BaseModelRecord) -> str | None:
    """Return why a version does not belong on the base model `base`, or None.

    Other weights give other answers, and so does another tokenizer, chat template or config. A version of an
    older release names its weights only.
    """
    theirs = version.manifest.base_model
    if base.matches(theirs.sha256, theirs.files_sha256):
        return None
    if theirs.sha256 == base.sha256 and base.files is None:
        return (
            f"{version.id} names the tokenizer and config that it was trained with, and the base model here, "
            "made by an earlier release, names none: run `dvc repro base_model`"
        )
    if theirs.sha256 == base.sha256:
        return (
            f"{version.id} was trained with another {' and '.join(base.other_files(theirs))} of its base model "
            f"{theirs.id} than the one here: train it on this one, or put the files back"
        )
    return (
        f"{version.id} was trained on {theirs.id} {theirs.revision} ({theirs.sha256[:12]}…), and the base "
        f"model here is {base.id} {base.revision} ({base.sha256[:12]}…): train it on this one"
    )
