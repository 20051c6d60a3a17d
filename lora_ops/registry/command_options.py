"""What the commands of `lora-ops registry` share: arguments, the opened registry, what they print."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ops import escaping
from lora_ops.escaping import markup
from lora_ops.output import print_json
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.registry.store import Registry
    from lora_ops.registry.versions import Version

Reference = Annotated[str, typer.Argument(help="finance@3, finance@production or finance")]
ExactReference = Annotated[
    str, typer.Argument(help="finance@3: the exact version, since an alias may name another one in a moment")
]
Actor = Annotated[
    str | None,
    typer.Option("--actor", envvar="LORA_OPS_ACTOR", help="Who does this; default: the login name."),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in the audit log.")]


@contextmanager
def opened_registry() -> "Iterator[Registry]":
    """Open the registry that params.yaml names, and close it.

    Raises:
        Damaged: as `using`.
    """
    from lora_ops.registry.backends import open_registry

    with using(open_registry()) as registry:
        yield registry


@contextmanager
def using(registry: "Registry") -> "Iterator[Registry]":
    """Close an opened registry at the end.

    Raises:
        Damaged: something broke on a row that is not what lora-ops wrote; the text names the row.
    """
    from lora_ops.errors import Damaged

    try:
        yield registry
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        from lora_ops.registry.verification import verify

        problems = verify(registry, files=False).problems
        if not problems:
            raise  # a fault of lora-ops itself
        raise Damaged(
            f"The registry in {registry.path} was changed: {problems[0]}; restore it from a backup."
        ) from error
    finally:
        registry.close()


def check_tenant(registry: "Registry", tenant: str | None) -> None:
    """Refuse a tenant that neither params.yaml nor the registry has.

    Raises:
        NotFound: there is no such tenant.
    """
    from lora_ops.errors import NotFound
    from lora_ops.settings.params import load_settings

    if tenant is None or registry.summaries(tenant):
        return
    known = load_settings().tenants
    if tenant not in known:
        raise NotFound(f"There is no tenant '{tenant}' (params.yaml has: {', '.join(known)}).")


def who(actor: str | None) -> str:
    """Return who acts: the person named by --actor, else `whoami()`."""
    from lora_ops.registry.changes import whoami

    return whoami() if actor is None else actor


def print_version(
    registry: "Registry",
    version: "Version",
    what: str,
    as_json: bool,
    notes: Sequence[str] | None = None,
    **facts: Any,
) -> None:
    """Say what was done to a version: a line for people, its summary for programs.

    Args:
        registry: where.
        version: as it is now.
        what: what was done, for people.
        as_json: print for programs.
        notes: what whoever decides must know; None for a command that has none.
        facts: what else programs are told.
    """
    work_is_done()
    if as_json:
        damage = {"registry_was_damaged": registry.mended} if registry.mended else {}
        more = {"notes": list(notes)} if notes is not None else {}
        summary = version.summary._asdict()
        print_json({"adapter": version.id, **summary, **more, **facts, **head_remembered(registry), **damage})
    else:
        print_lines(f"[bold]{version.id}[/] {markup(what)}.", *note_lines(notes or ()))


def queued_sentence(version: str, not_sent: str | None, *, shares_log: bool, is_signed: bool = True) -> str:
    """Return what is said after a version's id where only this machine revoked it."""
    if not is_signed:
        return (
            "does not answer on this machine any more, and no log says so: "
            f"{(not_sent or 'nobody knows why').rstrip('.')}. No trusted key signed this: run it again where "
            "the registry's private key is"
        )
    if not shares_log:
        return (
            "does not answer any more, and the audit log does not say so yet: "
            f"{(not_sent or 'nobody knows why').rstrip('.')}. The next change that the registry takes "
            "writes it there"
        )
    return (
        "does not answer on this machine any more. W&B has not taken the revocation: "
        f"{(not_sent or 'nobody knows why').rstrip('.')}. It is queued: a running gateway, the next change and "
        f"`lora-ops registry sync` send it. Until then other machines serve {version}: run this command there"
    )


def note_lines(notes: Sequence[str]) -> list[str]:
    """Return what whoever decides must know, one line each."""
    return [f"[yellow]Note[/]: {markup(one.rstrip('.'))}." for one in notes]


def head_remembered(registry: "Registry") -> dict[str, bool]:
    """Return whether the head of the log is kept outside the registry, as `--json` says it after a change."""
    return {"head_remembered": registry.unremembered() is None}


def print_lines(*parts: Any) -> None:
    """Print what people read, one part a line."""
    if parts:
        escaping.show(*parts, sep="\n")
