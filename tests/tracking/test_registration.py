"""A registration at W&B: the package that was logged gets its number, and reviewers get the page."""

import sys
from pathlib import Path

from tests import wandb_server
from tests.conftest import run
from tests.wandb_server import WandbServer

PACKAGE_AND_REGISTER = """
import sys
from pathlib import Path
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.registration import log_registration
from lora_ops.tracking.runs import track

root, settings = Path(sys.argv[1]), TrackingSettings(project="adapters")
if len(sys.argv) == 2:
    with track("package", "finance", {}, settings, root, outputs=["package"]):
        pass
print(log_registration("finance", 3, settings, root))
"""


def register(root: Path, **environment: str) -> str:
    (root / "reports/finance/03_evaluate.html").write_text("<html></html>")
    done = run(sys.executable, "-c", PACKAGE_AND_REGISTER, root, cwd=root, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(server: WandbServer) -> None:
    """One version of the package, which has the number; the page has it too."""
    for name, file in (("finance-package", "manifest.json"), ("finance-page", "03_evaluate.html")):
        (version,) = server.collection(name, project="adapters").versions
        assert "version-3" in version.aliases and file in server.files_of(version)


def test_registration_numbers_the_package_online(root: Path, server: WandbServer) -> None:
    said = register(root, WANDB_BASE_URL=server.url, WANDB_API_KEY=wandb_server.API_KEY)
    assert said.strip() == "None"
    check(server)


def test_registration_numbers_the_package_after_a_sync(root: Path, server: WandbServer) -> None:
    register(root)
    key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_server.API_KEY}
    for _ in range(2):
        sent = run("lora-ops", "wandb-sync", cwd=root, **key)
        assert sent.returncode == 0, sent.stderr
    check(server)


def test_registration_stands_when_wandb_is_not_told(root: Path) -> None:
    done = run(sys.executable, "-c", PACKAGE_AND_REGISTER, root, "register only", cwd=root, WANDB_MODE="online")
    assert done.returncode == 0, done.stderr
    assert "finance@3 is registered, and W&B was not told: WANDB_MODE is online" in done.stdout
