"""The run of a registration: it gives the package at W&B its number, and its page to reviewers."""

from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.paths import EVALUATION_PAGE
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.client import is_client_error
from lora_ops.tracking.runs import track


def log_registration(
    tenant: str, number: int, settings: TrackingSettings, root: Path, *, keeps_page: bool = True
) -> str | None:
    """Log that a tenant's package is version `number` now: the alias `version-<number>` names it and its page.

    Args:
        tenant: whose package.
        number: of its version.
        settings: of the tracking.
        root: of the repository.
        keeps_page: whether the version has the page that is there; another one is not given its number.

    Returns:
        A sentence if W&B could not be told. The version is registered all the same.
    """
    page = root / "reports" / tenant / EVALUATION_PAGE
    outputs = ["package", "page"] if keeps_page and page.is_file() else ["package"]
    adapter = f"{tenant}@{number}"
    try:
        with track(
            "register",
            tenant,
            {"adapter": adapter},
            settings,
            root,
            outputs=outputs,
            aliases=[f"version-{number}"],
        ):
            pass
    except Exception as error:
        if not is_client_error(error) and not isinstance(error, LoraOpsError):
            raise
        return f"{adapter} is registered, and W&B was not told: {error}"
    return None
