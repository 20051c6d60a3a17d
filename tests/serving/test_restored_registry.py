"""A gateway whose registry is replaced by a newer copy of it, as after a promotion by CI."""

import shutil
from pathlib import Path

from lora_ops.engines.protocol import Engine
from lora_ops.registry.backup import backup
from lora_ops.registry.restoring import restore
from tests.serving.conftest import Clone, eventually, served
from tests.serving.shadowing import BODY


def test_gateway_follows_a_registry_that_was_restored(staged: Clone, engine: Engine, tmp_path: Path) -> None:
    """CI promoted in its copy and backed that up: moving and restoring brings it here, without a restart."""
    shutil.copytree(staged.root, tmp_path / "ci")
    url = str(tmp_path / "backups")
    ci = Clone(tmp_path / "ci", staged.base)
    with ci.registry() as registry:
        ci.story(registry).to("finance@2", "production")
        backup(registry, url)
    with served(staged.root, staged.settings(), engine) as gateway, gateway.http() as http:

        def answered_by() -> str:
            return http.post("/v1/completions", json=BODY).headers["x-lora-ops-adapter"]

        assert answered_by() == "finance@1"
        (staged.root / ".registry").rename(staged.root / ".registry.old")
        restore(url, staged.root / ".registry")
        eventually(lambda: answered_by() == "finance@2")
