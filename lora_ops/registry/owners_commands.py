"""`lora-ops owners`: who answers for which tenant."""

from pathlib import Path
from typing import Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.output import AsJson, print_json
from lora_ops.streams import work_is_done

app = typer.Typer(no_args_is_help=True, help="The people of owners.yaml.")


@app.command("add-key")
def add_key(
    person: Annotated[str, typer.Argument(help="Id, e-mail address or login in owners.yaml.")],
    public_key: Annotated[Path, typer.Argument(help="Their SSH public key, such as ~/.ssh/id_ed25519.pub.")],
    as_json: AsJson = False,
) -> None:
    """Give a person the SSH key that signs their approvals; owners.yaml keeps its comments."""
    from lora_ops.registry.owners import add_key as add
    from lora_ops.settings.files import find_root

    fingerprint = add(find_root() / "owners.yaml", person, public_key)
    work_is_done()
    if as_json:
        print_json({"person": person, "key": fingerprint})
        return
    show(markup(f"owners.yaml has key {fingerprint} of {person}: commit it."))
