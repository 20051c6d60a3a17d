"""`lora-ops rollout replay`: rows as shadow traffic, for CI and before there is live traffic."""

from typing import Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import ExactReference


def replay(
    reference: ExactReference,
    rows: Annotated[
        str,
        typer.Option(help="held-out: the tenant's prepared test rows; or a file of JSON lines with `text`."),
    ] = "held-out",
    as_json: AsJson = False,
) -> None:
    """Let production and a version in shadow answer rows; keep the pairs, which say REPLAYED.

    They open no gate unless rollout.accept_replay is set. The base model stands in for production where the
    tenant has none.
    """
    import asyncio

    from lora_ops.engines.chosen import make_engine
    from lora_ops.registry.versions import parse_reference
    from lora_ops.serving.replay import read_rows
    from lora_ops.serving.replay import replay as replay_rows
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    tenant, _ = parse_reference(reference)
    asked = read_rows(root, tenant, rows)
    with prose_on_stderr(as_json):
        engine = make_engine(root, settings.serving)
        done = asyncio.run(replay_rows(root, settings, engine, reference, asked))
    if as_json:
        print_json(done._asdict())
        return
    show(
        markup(
            f"REPLAYED: {done.version} answered {done.answered} of {done.answered + done.failed} rows beside "
            f"{done.against}. `lora-ops rollout pairs {done.version} --replayed` shows what they say."
        )
    )
