"""`lora-ops monitor`: the app that every subject of monitoring adds its command to, in `lora_ops.cli`."""

import typer

app = typer.Typer(no_args_is_help=True, help="Is each adapter fast, safe, as it was, and worth it?")
