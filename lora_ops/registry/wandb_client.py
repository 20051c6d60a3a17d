"""One W&B project: looking up and logging artifacts, and every failure of the client as one sentence.

With `tracking/`, this is where lora-ops talks to W&B. What lies there under which name is in wandb_project.py.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lora_ops.errors import Unavailable
from lora_ops.records.registry import AuditEntry
from lora_ops.settings.registry import WandbSettings
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.client import is_client_error, tracking_mode


class WandbClient:
    """The client of one W&B project; nothing is asked of W&B before the first call.

    Args:
        runs: the project that the pipeline logs into; without it, no version names the run that made it.
    """

    def __init__(self, settings: WandbSettings, runs: TrackingSettings | None = None) -> None:
        self.settings = settings
        self.runs = runs
        self._connected: Any = None

    @property
    def target(self) -> str:
        """`entity/project` as params.yaml gives it; names the project in sentences and in the database."""
        entity = f"{self.settings.entity}/" if self.settings.entity else ""
        return f"{entity}{self.settings.project}"

    def _artifact(self, name: str, kind: str, metadata: dict[str, Any]) -> Any:
        import wandb

        return wandb.Artifact(name, type=kind, metadata=metadata)

    def _log(self, run: Any, artifact: Any, alias: str) -> None:
        if self._find(artifact.name, alias) is None:
            run.log_artifact(artifact, aliases=[alias]).wait()

    def _find_first(self, collections: Sequence[str], alias: str, kind: str | None = None) -> Any:
        for collection in collections:
            found = self._find(collection, alias)
            if found is not None and kind in (None, found.type):
                return found
        return None

    def _find(self, collection: str, alias: str) -> Any:
        return self._look_up(f"{self._path(collection)}:{alias}")

    def _look_up(self, path: str) -> Any:
        from wandb.errors import CommError

        try:
            return self._api().artifact(path)
        except CommError as error:
            if isinstance(error.exc, ValueError):  # W&B answered, and there is none
                return None
            raise

    def _path(self, collection: str) -> str:
        entity = self.settings.entity or self._api().default_entity
        return f"{entity}/{self.settings.project}/{collection}"

    def _api(self) -> Any:
        if self._connected is None:
            import wandb

            if tracking_mode() != "online":
                mode = os.environ.get("WANDB_MODE")
                why = f"WANDB_MODE is '{mode}'" if mode else "WANDB_API_KEY is not set"
                raise Unavailable(f"W&B ({self.target}) is not asked: {why}.")
            wandb.setup(settings=self._client_settings())
            self._connected = wandb.Api(timeout=30)
        return self._connected

    def _client_settings(self) -> Any:
        import wandb

        # Its own patience is hours; somebody waits here, and the next try goes on where this one ended.
        retry: dict[str, Any] = {
            f"x_{part}_retry_{what}": value
            for part in ("graphql", "file_transfer", "file_stream")
            for what, value in (
                ("max", self.settings.retries),
                ("wait_min_seconds", 1),
                ("wait_max_seconds", 5),
            )
        }
        return wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            init_timeout=60,
            **retry,
        )

    @contextmanager
    def _run(self, entry: AuditEntry) -> Iterator[Any]:
        import wandb

        self._api()
        subject = str(entry.subject)
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                id=f"audit-{entry.seq}-{entry.hash[:12]}",
                resume="allow",
                reinit="create_new",
                dir=folder,
                name=f"{entry.action} {subject}",
                group=entry.tenant or entry.subject.kind,
                job_type=entry.action,
                config={
                    "adapter": subject,
                    "actor": entry.actor,
                    "at": entry.at,
                    "why": entry.body.get("reason"),
                },
                settings=self._client_settings(),
            ) as run,
        ):
            yield run

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Every way in which the client fails, as one sentence."""
        try:
            yield
        except Exception as error:
            if not is_client_error(error):
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            raise Unavailable(
                f"W&B ({self.target}) can't be reached or refuses: {text[:200].rstrip('.')}."
            ) from error
