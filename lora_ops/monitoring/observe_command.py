"""`lora-ops monitor observe`."""

from lora_ops.output import AsJson


def observe(as_json: AsJson = False) -> None:
    """Run Prometheus, Alertmanager, the gateway and, where there is one, Grafana, until Ctrl-C.

    With --json a refusal to start is JSON; what the parts log goes to stderr in any case.
    """
    from lora_ops.escaping import markup, show
    from lora_ops.monitoring import observing
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    parts = observing.parts(root, settings)
    if not as_json:
        for part in parts:
            show(markup(f"{part.name}: {part.url}"))
        if len(parts) == 3:
            show("There is no Grafana on the PATH: import deploy/grafana/dashboards into yours.")
    patience = settings.serving.drain_timeout_seconds + settings.serving.not_ready_seconds
    observing.observe(parts, root / settings.serving.path / observing.FOLDER, patience + observing.END_SECONDS)
