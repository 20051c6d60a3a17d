"""`lora-ops validate`: the contracts that hold before anything is trained or served."""

from typing import Annotated

import typer

from lora_ops.escaping import markup
from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json
from lora_ops.registry.command_options import print_lines
from lora_ops.streams import work_is_done


def validate(
    packages: Annotated[
        bool, typer.Option("--packages", help="Load each packaged adapter with plain peft, and nothing else.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Take prompts and schemas as they are now for the contracts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare prompts and schemas with those that others rely on, and load an adapter with plain peft."""
    from lora_ops import validation
    from lora_ops.errors import LoraOpsError
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    if packages and update:
        raise LoraOpsError("--update writes contracts, and --packages has none: give one of them.")
    if update:
        written = [str(path.relative_to(root)) for path in validation.write_contracts(settings, root)]
        work_is_done()
        if as_json:
            print_json({"written": written})
        else:
            print_lines(
                f"Written: {len(written)} files under suites/. Look at them (`git diff`) and commit them."
            )
        return
    checks = (validation.validate_packages if packages else validation.validate)(settings, root)
    found = []
    for one in checks:
        found.append(one)
        if not as_json:
            said = f"[red]{markup(one.problem)}[/]" if one.problem else "[green]holds[/]"
            print_lines(f"{markup(one.what)}: {said}")
    if packages and not found:
        raise LoraOpsError("There is no package yet: `dvc repro` makes them.")
    work_is_done()
    broken = [one.what for one in found if one.problem]
    if as_json:
        print_json({"checks": [one._asdict() for one in found], "broken": broken})
    elif broken:
        print_lines(f"{len(broken)} of {len(found)} contracts are broken.")
    else:
        print_lines(f"All {len(found)} contracts hold.")
    raise typer.Exit(ExitCode.CHECK_FAILED if broken else ExitCode.OK)
