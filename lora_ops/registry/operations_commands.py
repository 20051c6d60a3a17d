"""`lora-ops registry`, for whoever keeps the registry itself: its head, its key, its files, its copies."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lora_ops.escaping import markup, show
from lora_ops.output import AsJson, print_json
from lora_ops.registry.command_options import Actor, Reason, head_remembered, opened_registry, who
from lora_ops.streams import work_is_done

operations = typer.Typer()

Url = Annotated[str, typer.Argument(help="A folder, or a URL such as s3://bucket/registry.")]


@operations.command("accept-head")
def accept_head(reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Let the log go on from where it ends, after an older backup was restored or a registry begun anew."""
    from lora_ops.registry.backends import open_to_accept
    from lora_ops.registry.head_acceptance import accept_head as accept

    person = who(actor)
    registry, memory = open_to_accept(actor=person, reason=reason)
    with closing(registry):
        head = accept(registry, memory, actor=person, reason=reason)
    _done(as_json, f"The audit log goes on from {head.text}.", head=head.text)


@operations.command("rotate-key")
def rotate_key(reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Replace the private key that signs packages and the log, as an entry of the log."""
    from lora_ops.registry.rotation import rotate_key as rotate

    with opened_registry() as registry:
        new = rotate(registry, actor=who(actor), reason=reason)
        path = registry.signer.own.path
        remembered = head_remembered(registry)
    _done(
        as_json,
        f"Key {new} signs from now on; it is {path}: back it up, apart from the registry.",
        key=new,
        path=str(path),
        **remembered,
    )


@operations.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove kept files that nothing names for a day, and verified copies of closed versions."""
    from lora_ops.registry.gc import collect_garbage, find_garbage

    with opened_registry() as registry:
        found = find_garbage(registry) if dry_run else collect_garbage(registry)
    would = "would go" if dry_run else "went"
    _done(
        as_json,
        f"{len(found.orphans)} files and {len(found.copies)} verified copies {would}, {found.bytes:,} bytes.",
        *(f"  file {one.digest}, {one.bytes:,} bytes" for one in found.orphans),
        *(f"  verified copy {name}" for name in found.copies),
        dry_run=dry_run,
        bytes=found.bytes,
        orphans=[one._asdict() for one in found.orphans],
        copies=list(found.copies),
    )


@operations.command()
def backup(
    url: Url,
    expect_head: Annotated[
        str | None,
        typer.Option(
            "--expect-head",
            help="Refuse unless the last snapshot there ends at this head, from which you restored.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy the registry, without its private key, to a folder or any URL that fsspec knows."""
    from lora_ops.registry.backup import backup as make
    from lora_ops.registry.heads import read_head

    follows = read_head(expect_head) if expect_head is not None else None
    with opened_registry() as registry:
        made = make(registry, url, follows=follows)
        key = registry.signer.own.path
    _done(
        as_json,
        f"Backed up to {url}: the log ends at {made.head.text}; {made.files} files, {made.sent} of them new.",
        *(
            [f"Copies of an earlier backup that were damaged and are whole again: {made.mended}."]
            if made.mended
            else []
        ),
        f"The private key is not in it: keep {key} in another place.",
        head=made.head.text,
        files=made.files,
        sent=made.sent,
        mended=made.mended,
        private_key=str(key),
    )


@operations.command()
def restore(
    url: Url,
    head: Annotated[
        str | None,
        typer.Option("--head", help="The snapshot that ends there (17:a0d71c22e54f); default: the last."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the registry back from a backup, verified, where there is none now."""
    from lora_ops.registry.backends import open_restored, registry_path
    from lora_ops.registry.heads import read_head
    from lora_ops.registry.restoring import restore as bring

    path, signing = registry_path()
    snapshot = bring(url, path, head=read_head(head) if head is not None else None, signing=signing)
    with closing(open_restored()) as registry:
        # What was stopped on this machine stays stopped in an older copy, too.
        for hold in registry.holds.all():
            registry.holds.mend(hold)
        held = [hold.text for hold in registry.held()]
        problem = registry.anchor.problem(registry.log.head())
    later = (
        f"It is not the last state that was seen here ({problem}): look what is lost, then run "
        if problem
        else ""
    )
    _done(
        as_json,
        f"Restored to {path}: the log ends at {snapshot.head.text}, backed up at {snapshot.at}.",
        *([f"{later}`lora-ops registry accept-head --reason TEXT`."] if problem else []),
        *(f"{one}: it stays stopped." for one in held),
        path=str(path),
        head=snapshot.head.text,
        at=snapshot.at,
        problem=problem,
        held=held,
    )


@operations.command("export-log")
def export_log(
    target: Annotated[Path, typer.Argument(help="A new file; its signature and public key go beside it.")],
    form: Annotated[
        Literal["json", "csv"], typer.Option("--format", help="One document, or one row for an entry.")
    ] = "json",
    as_json: AsJson = False,
) -> None:
    """Write the whole audit log to a signed file, for an auditor."""
    from lora_ops.registry.log_export import beside
    from lora_ops.registry.log_export import export_log as write

    with opened_registry() as registry:
        made = write(registry, target, form)
    signature, key = beside(target)
    _done(
        as_json,
        f"Written to {target}: {made.entries} entries, the log ends at {made.head.text}.",
        f"It is signed by key {made.key}.",
        f"To check it: openssl dgst -sha256 -verify {key} -signature {signature} {target}",
        "or, with the chain of hashes: lora-ops registry check-export FILE",
        path=str(target),
        signature=str(signature),
        public_key=str(key),
        entries=made.entries,
        head=made.head.text,
        key=made.key,
    )


@operations.command("check-export")
def check_export(
    target: Annotated[Path, typer.Argument(help="An exported log, with .sig and .pub beside it.")],
    as_json: AsJson = False,
) -> None:
    """Check an exported log: its signature and its chain of hashes; no registry is needed."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.registry.backends import registry_path
    from lora_ops.registry.log_export import check_export as check
    from lora_ops.settings.files import find_root

    try:
        root = find_root()
    except LoraOpsError:  # an auditor's machine, where no params.yaml pins a key
        keys: tuple[str, ...] = ()
    else:
        keys = registry_path(root)[1].trusted_keys
    found = check(target, keys=keys)
    whose = "" if keys else ": compare that with the one that you know"
    _done(
        as_json,
        f"{target} is whole: {found.entries} entries, the log ends at {found.head.text}.",
        f"It is signed by key {found.key}{whose}.",
        entries=found.entries,
        head=found.head.text,
        key=found.key,
        pinned=bool(keys),
    )


def _done(as_json: bool, *lines: str, **facts: Any) -> None:
    """Say what was done: `lines` for people, `facts` for programs."""
    if not facts.get("dry_run"):
        work_is_done()
    if as_json:
        print_json(facts)
    else:
        show(*map(markup, lines), sep="\n")
