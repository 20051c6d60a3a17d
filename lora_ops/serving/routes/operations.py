"""What probes, Prometheus and whoever is on call ask: /health, /ready, /metrics, /console."""

from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response

from lora_ops.serving import console
from lora_ops.serving.auth import allowed
from lora_ops.serving.errors import ApiError
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import Caller
from lora_ops.serving.response_schemas import HTML, TEXT
from lora_ops.serving.turns import Kept
from lora_ops.versions import installed_versions


def add_operations(app: FastAPI, gateway: Gateway) -> None:
    """Add these endpoints to the application."""
    console_data = Kept(partial(console.snapshot, gateway), console.FRESH_SECONDS)
    scrape = Kept(gateway.telemetry.scrape)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ping")
    @app.post("/ping")
    async def ping() -> dict[str, str]:
        """The same, by the name that some platforms probe."""
        return {"status": "ok"}

    @app.get("/version")
    async def version(_: Annotated[Caller, allowed("tenant", "admin", "monitor")]) -> dict[str, str]:
        """The version of this gateway."""
        return {"version": installed_versions(("lora-ops",))["lora-ops"]}

    @app.get("/ready")
    async def ready() -> Response:
        """It may be sent requests: the engine runs, and the registry is what its signed log says."""
        damage = gateway.router.damage()
        if damage:
            text = f"The registry can't be trusted: {damage}. What was verified before goes on answering."
            raise ApiError(503, text, "server_error", "registry_damaged")
        if not gateway.ready:
            text = "The gateway is starting or stopping, or its engine does not answer."
            raise ApiError(503, text, "server_error", "not_ready", retry_after=1)
        gateway.router.route(gateway.base_model.id)
        # Answers don't depend on it, so it is a warning: only an older copy of the registry would not show.
        behind = gateway.router.unremembered()
        # Nor do they on the flags: without them production answers everybody.
        warnings = [f"{one}." for one in (behind, gateway.assigned_routes.problem) if one]
        return JSONResponse({"status": "ready", **({"warning": " ".join(warnings)} if warnings else {})})

    @app.get("/metrics", response_model=None, responses=TEXT)
    async def metrics(_: Annotated[Caller, allowed("admin", "monitor")]) -> Response:
        """What Prometheus scrapes."""
        return Response(await scrape.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/console", response_model=None, responses=HTML)
    async def page(_: Annotated[Caller, allowed("admin", "monitor")]) -> Response:
        """The read-only page for whoever is on call; a browser asks for a key as password."""
        return HTMLResponse(console.PAGE, headers={"content-security-policy": console.security_policy()})

    @app.get("/console/data", response_model=dict[str, Any])
    async def page_data(_: Annotated[Caller, allowed("admin", "monitor")]) -> Response:
        """What the page shows."""
        return Response(await console_data.page(), media_type="application/json")
