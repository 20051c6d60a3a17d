"""`lora-ops serve` and `lora-ops keys`."""

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.output import AsJson, print_json, print_problem
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.serving.keys import KeyRole, KeyStore

keys_app = typer.Typer(no_args_is_help=True, help="API keys of the gateway.")


def serve(
    host: Annotated[str | None, typer.Option(help="Instead of serving.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of serving.port.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer on localhost with every tenant's adapter and the base model, as OpenAI's API does.

    With --json a refusal to start is JSON; what the gateway logs while it runs is JSON in any case.
    """
    from lora_ops.serving.server import run
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    changed = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    serving = settings.serving.model_copy(update=changed)
    run(root, settings.model_copy(update={"serving": serving}))


@keys_app.command("create")
def create(
    tenant: Annotated[str | None, typer.Argument(help="The tenant whose models the key reaches.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="A key that reaches everything.")] = False,
    monitor: Annotated[bool, typer.Option("--monitor", help="A key for /metrics and /console only.")] = False,
    base: Annotated[bool, typer.Option("--base", help="It reaches the base model too.")] = False,
    note: Annotated[str, typer.Option(help="Who holds it, what for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, once. From the first key on, the gateway answers nobody without one."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.escaping import show
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    if [tenant is not None, admin, monitor].count(True) != 1:
        raise LoraOpsError("Say whose key it is: a tenant, --admin or --monitor.")
    if tenant is not None:
        load_settings(find_root()).tenant(tenant)
    with closing(_keys()) as keys:
        role: KeyRole = "admin" if admin else "monitor" if monitor else "tenant"
        key, secret = keys.create(role, tenant, base=base or admin, note=note)
        if not as_json:
            show(f"Key {key.id} ({role}{f' {tenant}' if tenant else ''}), shown only now:")
            typer.echo(secret)
        logged = _log(keys)
    if as_json:
        print_json({**key._asdict(), "secret": secret, **logged})


@keys_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every key, revoked ones too; the keys themselves can't be read again."""
    from lora_ops.escaping import show
    from lora_ops.grid import Grid

    with closing(_keys()) as keys:
        rows = keys.all()
    if as_json:
        print_json([key._asdict() for key in rows])
        return
    if not rows:
        show("There are no keys: the gateway is open to this machine.")
        return
    columns = ("key", "role", "tenant", "base model", "created", "revoked")
    table = Grid(*columns, "note", solid={*columns})
    for key in rows:
        reaches = "yes" if key.base else "no"
        table.add_row(key.id, key.role, key.tenant, reaches, key.created_at, key.revoked_at, key.note)
    show(table)


@keys_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, such as k-1a2b3c4d.")], as_json: AsJson = False
) -> None:
    """Refuse a key from the next request on."""
    from lora_ops.escaping import show

    with closing(_keys()) as keys:
        revoked = keys.revoke(key)
        work_is_done()
        logged = _log(keys)
    if as_json:
        print_json({**revoked._asdict(), **logged})
        return
    show(f"{revoked.id} is revoked.")


def _log(keys: "KeyStore") -> dict[str, bool | None]:
    """Write what was done into the audit log; a key holds or is refused all the same where that fails.

    Returns:
        For programs: whether the log tells of it, and whether its head is kept outside the registry.
    """
    from lora_ops.errors import LoraOpsError
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.changes import whoami
    from lora_ops.registry.command_options import head_remembered
    from lora_ops.registry.database import MissingRegistry
    from lora_ops.serving.key_log import log_keys

    try:
        with closing(open_registry()) as registry:
            log_keys(registry, keys, whoami())
            return {"logged": True, **head_remembered(registry)}
    except MissingRegistry:
        pass  # the first `keys` command after the first registration writes it
    except LoraOpsError as error:
        print_problem(f"It is done, and the audit log does not tell of it yet: {error}")
    return {"logged": False, "head_remembered": None}


def _keys() -> "KeyStore":
    from lora_ops.serving.keys import KeyStore
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    return KeyStore(root / load_settings(root).serving.path / "keys.sqlite")
