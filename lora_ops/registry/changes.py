"""What one transaction changes: effects on the tables, and the entry of the audit log that states them."""

import getpass
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from lora_ops.errors import Unavailable
from lora_ops.free_text import require_text
from lora_ops.hashing import canonical
from lora_ops.records.registry import State, Subject
from lora_ops.registry.audit import Log
from lora_ops.registry.database import Database
from lora_ops.registry.route_entries import ROUTE, merged, patch_after
from lora_ops.small_files import parse_json

logger = logging.getLogger(__name__)


def whoami() -> str:
    """Who acts when nobody is named: $LORA_OPS_ACTOR, else the login name."""
    named = os.environ.get("LORA_OPS_ACTOR")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid-{os.getuid()}"


def require_reason(reason: str) -> None:
    """Refuse a reason that says nothing.

    Raises:
        LoraOpsError: it has no letter.
    """
    require_text(reason, "Say why (--reason)")


class LostRace(Unavailable):
    """Another change came first, of this machine or of another one; nothing was changed here."""


class Change:
    """What one transaction does: each `record` applies its effects and writes its line in the audit log."""

    def __init__(
        self, db: Database, log: Log, actor: str, at: str, clock_behind: int, key: Callable[[], str]
    ) -> None:
        self._db = db
        self._log = log
        self._actor = actor
        self._clock_behind = clock_behind
        self._key = key
        self.at = at
        self.entries = 0
        """How many entries were written."""
        self.states: dict[str, str] = {}
        """Every version (`finance@3`) whose state was changed, to its new state."""

    def record(
        self,
        action: str,
        tenant: str,
        number: int,
        *,
        states: dict[int, State] | None = None,
        aliases: dict[str, int | None] | None = None,
        review_due: str | None = None,
        returns: bool = False,
        **body: Any,
    ) -> None:
        """Apply one change of a version and append its audit entry.

        A version whose state changes leaves the parts of its tenant's route that only its old state had: by the
        same entry, so that no machine and no kill ever leaves one without the other.

        Args:
            action: what was done, one word.
            tenant: whose version.
            number: which version.
            states: version number to its new state.
            aliases: alias to the version that it names from now on; None takes it away.
            review_due: when this version is to be looked at again.
            returns: whether it returns to production, which ends the canary's share.
            body: what else the entry says.
        """
        effects: dict[str, Any] = {}
        if states:
            effects["states"] = {str(one): state for one, state in states.items()}
            self.states |= {f"{tenant}@{one}": state for one, state in states.items()}
        if aliases:
            effects["aliases"] = aliases
        if review_due:
            effects["review_due"] = review_due
        patch = self._left(tenant, states or {}, returns=returns)
        if patch:
            effects[ROUTE] = patch
        apply(self._db, tenant, number, effects)
        self._append(action, Subject.version(tenant, number), {**body, "effects": effects})

    def _left(self, tenant: str, states: Mapping[int, State], *, returns: bool) -> dict[str, Any]:
        """Return what changes of states take out of a route; a row that can't be read stops no revocation."""
        try:
            row = self._db.row("SELECT route FROM routes WHERE tenant = ?", (tenant,)) if states else None
            return patch_after(parse_json(row[0]), states, returns=returns) if row else {}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("The route of '%s' can't be read, so it stays as it is: %s.", tenant, error)
            return {}

    def reroute(self, action: str, tenant: str, patch: dict[str, Any], **body: Any) -> None:
        """Change a tenant's route by a merge patch and append its audit entry.

        Args:
            action: what was done, one word.
            tenant: whose route.
            patch: see `route_entries`.
            body: what else the entry says.
        """
        effects = {ROUTE: patch}
        apply_route(self._db, tenant, effects)
        self._append(action, Subject(kind=ROUTE, id=tenant), {**body, "effects": effects})

    def note(self, action: str, kind: str, id: str, **body: Any) -> None:
        """Append an entry about something else than a version: owners, an API key, the registry itself."""
        self._append(action, Subject(kind=kind, id=id), body)

    def _append(self, action: str, subject: Subject, body: dict[str, Any]) -> None:
        if self._clock_behind:
            body["clock_behind_seconds"] = self._clock_behind
        if self._log.head().seq == 0:
            # From the first entry on the log names the key that signs it, so that another one shows.
            body["key"] = self._key()
        self._log.append(self.at, self._actor, action, subject, body)
        self.entries += 1


def apply(db: Database, tenant: str, number: int, effects: dict[str, Any]) -> None:
    """Do to the tables what one entry of the audit log says was done."""
    for one, state in effects.get("states", {}).items():
        db.rows("UPDATE versions SET state = ? WHERE tenant = ? AND number = ?", (state, tenant, int(one)))
    for alias, target in effects.get("aliases", {}).items():
        if target is None:
            db.rows("DELETE FROM aliases WHERE tenant = ? AND alias = ?", (tenant, alias))
        else:
            db.rows(
                "INSERT INTO aliases VALUES (?, ?, ?)"
                " ON CONFLICT (tenant, alias) DO UPDATE SET number = excluded.number",
                (tenant, alias, target),
            )
    if "review_due" in effects:
        db.rows(
            "UPDATE versions SET next_review_due = ? WHERE tenant = ? AND number = ?",
            (effects["review_due"], tenant, number),
        )
    apply_route(db, tenant, effects)


def apply_route(db: Database, tenant: str, effects: dict[str, Any]) -> None:
    """Do to a tenant's route what one entry of the audit log says was done."""
    patch = effects.get(ROUTE)
    if not isinstance(patch, dict):
        return  # of no route, or of a form that only a newer release knows
    row = db.row("SELECT route FROM routes WHERE tenant = ?", (tenant,))
    set_route_row(db, tenant, canonical(merged(parse_json(row[0]) if row else {}, patch)))


def set_route_row(db: Database, tenant: str, text: str) -> None:
    """Write the row of a tenant's route."""
    db.rows("INSERT INTO routes VALUES (?1, ?2) ON CONFLICT (tenant) DO UPDATE SET route = ?2", (tenant, text))
