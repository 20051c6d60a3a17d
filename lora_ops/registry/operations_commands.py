"""`lora-ops registry`, for whoever keeps the registry itself: its head, its key, its files, its copies."""

from contextlib import closing
from typing import Annotated, Any

import typer

from lora_ops.escaping import markup, show
from lora_ops.output import AsJson, print_json

operations = typer.Typer()

Actor = Annotated[
    str | None,
    typer.Option("--actor", envvar="LORA_OPS_ACTOR", help="Who does this; default: the login name."),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in the audit log.")]


@operations.command("accept-head")
def accept_head(reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Let the log go on from where it ends, after an older backup was restored or a registry begun anew."""
    from lora_ops.registry import heads
    from lora_ops.registry.backends import open_to_accept

    registry, memory = open_to_accept()
    with closing(registry):
        head = heads.accept_head(registry, memory, actor=_who(actor), reason=reason)
    _done(as_json, f"The audit log goes on from {head.text}.", head=head.text)


@operations.command("rotate-key")
def rotate_key(reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Replace the private key that signs packages and the log, as an entry of the log."""
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.rotation import rotate_key as rotate

    with closing(open_registry()) as registry:
        new = rotate(registry, actor=_who(actor), reason=reason)
        path = registry.signer.own.path
    _done(
        as_json,
        f"Key {new} signs from now on; it is {path}: back it up, apart from the registry.",
        key=new,
        path=str(path),
    )


def _who(actor: str | None) -> str:
    from lora_ops.registry.changes import whoami

    return actor or whoami()


def _done(as_json: bool, *lines: str, **facts: Any) -> None:
    """Say what was done: `lines` for people, `facts` for programs."""
    if as_json:
        print_json(facts)
    else:
        show(*map(markup, lines), sep="\n")
