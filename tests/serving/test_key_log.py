"""Making and revoking an API key are entries of the audit log, without the key."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.registry.owners import Owners
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.serving.key_log import log_keys
from lora_ops.serving.keys import KeyStore
from tests.conftest import run
from tests.registry.conftest import Build, Clock, clock, owners, package, registry  # noqa: F401 - fixtures
from tests.serving.conftest import Clone, clone, clone_source  # noqa: F401 - fixtures


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    with closing(KeyStore(tmp_path / "keys.sqlite")) as store:
        yield store


def told(registry: Registry) -> list[tuple[str, str, str]]:  # noqa: F811
    return [(one.action, one.subject.id, one.actor) for one in registry.log.of_kind("key")]


def test_keys_are_logged_once_and_without_their_secret(
    registry: Registry,  # noqa: F811
    package: Build,  # noqa: F811
    keys: KeyStore,
) -> None:
    registry.register(*package(1), actor="ana")
    key, secret = keys.create("tenant", "finance", note="ERP")
    assert [log_keys(registry, keys, "ben") for _ in range(2)] == [1, 0]
    keys.revoke(key.id)
    assert log_keys(registry, keys, "eve") == 1
    assert told(registry) == [("created", key.id, "ben"), ("revoked", key.id, "eve")]
    (entry, _) = registry.log.of_kind("key")
    assert (entry.body["tenant"], entry.body["reason"]) == ("finance", "ERP")
    assert secret not in json.dumps([one.body for one in registry.log.entries()])
    assert verify(registry).ok


def test_logged_key_notes_changed_owners(
    registry: Registry,  # noqa: F811
    package: Build,  # noqa: F811
    owners: Owners,  # noqa: F811
    keys: KeyStore,
) -> None:
    registry.register(*package(1), actor="ana")
    with change_with_owners(registry, "ana"):
        pass  # the first decision about a version brings this entry
    registry.owners = Owners(default=owners.default.model_copy(update={"review_cadence_days": 30}))
    keys.create("admin")
    log_keys(registry, keys, "ben")
    assert [one.action for one in registry.log.entries()[-2:]] == ["changed", "created"]


def test_what_a_kill_kept_from_the_log_comes_with_the_next(
    registry: Registry,  # noqa: F811
    package: Build,  # noqa: F811
    keys: KeyStore,
) -> None:
    registry.register(*package(1), actor="ana")
    first, _ = keys.create("admin")
    keys.revoke(first.id)
    second, _ = keys.create("monitor")
    assert log_keys(registry, keys, "ben") == 3
    assert [(action, key) for action, key, _ in told(registry)] == [
        ("created", first.id),
        ("created", second.id),
        ("revoked", first.id),
    ]


def test_keys_command_writes_the_log(clone: Clone) -> None:  # noqa: F811
    environment = {"LORA_OPS_ACTOR": "ben", "PYTHONPATH": str(Path(__file__).parents[2])}
    made = json.loads(
        run("lora-ops", "keys", "create", "--admin", "--json", cwd=clone.root, **environment).stdout
    )
    assert (made["logged"], made["head_remembered"]) == (True, True)
    assert run("lora-ops", "keys", "revoke", made["id"], cwd=clone.root, **environment).returncode == 0
    with clone.registry() as opened:
        assert told(opened) == [("created", made["id"], "ben"), ("revoked", made["id"], "ben")]
