"""A bad version in production: what goes, what returns, what is captured, and what the record says."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from lora_ops import incidents
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.notebooks import run_notebook
from lora_ops.records.registry import IncidentRecord
from lora_ops.registry import packages
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback
from tests.conftest import ROOT
from tests.registry.conftest import (  # noqa: F401
    Build,
    Clock,
    Story,
    bad_release,
    clock,
    owners,
    package,
    registry,
    resampled_once,
    saved_again,
    story,
    written_by_hand,
)
from tests.serving.conftest import Clone, Served, clone, clone_source, engine, served  # noqa: F401

ON_CALL = "ben"


def test_a_record_needs_a_reason(bad_release: Registry, tmp_path: Path) -> None:  # noqa: F811
    planned = rollback.plan(bad_release, "finance@2")
    with pytest.raises(LoraOpsError, match="Say why"):
        incidents.write_record(bad_release, planned, tmp_path / "x", actor=ON_CALL, reason=" ", captured={})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("gateway", "key"),
    [
        ("http://localhost:9", None),
        ("http://localhost:port", None),
        ("http://localhost:99999", None),
        ("http://localhost:9", "cl\u00e9"),
    ],
)
def test_capture_says_that_a_gateway_does_not_answer(tmp_path: Path, gateway: str, key: str | None) -> None:
    """An incident must not end at an address or a key that was mistyped."""
    says = rf"The dashboards of {gateway} could not be captured \(.*\): `--gateway` names another address\."
    with pytest.raises(LoraOpsError, match=says):
        incidents.capture(gateway, tmp_path, key)


def test_capture_ends_at_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://localhost:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LoraOpsError, match="could not be captured"):
        incidents.capture("http://localhost:9", tmp_path)


@pytest.mark.parametrize("head", ["", "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"])
def test_capture_waits_no_longer_than_it_was_told(tmp_path: Path, head: str) -> None:
    """A gateway that sends a byte now and then held up the rollback for ever."""
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # whoever asked went away
            connection.sendall(head.encode() or b"HTTP/1.1 200 OK\r\nx: ")
            while not ended.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("localhost", 0)) as listener:
        sender = threading.Thread(target=drip, args=(listener,))
        sender.start()
        try:
            with pytest.raises(LoraOpsError, match="console/data did not end in time"):
                incidents.capture(f"http://localhost:{listener.getsockname()[1]}", tmp_path, seconds=1)
        finally:
            ended.set()
            sender.join()


def in_production(clone: Clone, *versions: str) -> None:  # noqa: F811
    """Bring these versions to production one after the other, in a clone that has the runbook."""
    (clone.root / "runbooks").symlink_to(ROOT / "runbooks")
    with clone.registry() as opened:
        for version in versions:
            clone.story(opened).to(version, "production")


def runbook(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from lora_ops.cli import main; main()", "rollback", "finance@2", *arguments],
        env={**os.environ, "LORA_OPS_ROOT": str(root), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("said", ["False", "false"])
def test_a_run_that_is_not_confirmed_changes_nothing(clone: Clone, said: str) -> None:  # noqa: F811
    in_production(clone, "finance@1", "finance@2")
    options = ["--tenant", "finance", "-p", "reason=only looking", "-p", "actor=ben", "-p", f"confirm={said}"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from lora_ops.cli import main; main()",
            "run",
            "runbooks/rollback.ipynb",
            *options,
        ],
        env={**os.environ, "LORA_OPS_ROOT": str(clone.root), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing was changed." in done.stdout
    with clone.registry() as opened:
        assert opened.named("finance", "production") == 2


def test_the_runbook_takes_no_text_for_a_yes(clone: Clone) -> None:  # noqa: F811
    """Papermill's own command line gives text where the notebook has a truth value."""
    in_production(clone, "finance@1", "finance@2")
    given = {"tenant": "finance", "reason": "only looking", "actor": ON_CALL, "confirm": "False"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_OPS_ROOT", str(clone.root))
        patch.setenv("PYTHONPATH", str(ROOT))
        run_notebook(ROOT / "runbooks/rollback.ipynb", clone.root / "out.ipynb", given, clone.root)
    with clone.registry() as opened:
        assert opened.named("finance", "production") == 2


def test_the_runbook_brings_the_earlier_answers_back_and_keeps_the_evidence(
    clone: Clone,  # noqa: F811
    engine: object,  # noqa: F811
) -> None:
    in_production(clone, "finance@1", "finance@2")

    def who_answers(gateway: Served) -> str:
        body = {"model": "finance", "max_tokens": 2, "messages": [{"role": "user", "content": "AIRBNB"}]}
        return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, verify=False).headers[
            "x-lora-ops-adapter"
        ]

    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        assert who_answers(gateway) == "finance@2"
        options = ("--reason", "It leaks card numbers.", "--actor", ON_CALL, "--gateway", gateway.url)
        shown = runbook(clone.root, *options)
        assert shown.returncode == 0, shown.stderr
        assert "Nothing was changed. Confirmed, finance@1 would replace finance@2." in shown.stdout
        assert who_answers(gateway) == "finance@2"
        done = runbook(clone.root, *options, "--yes")
        assert done.returncode == 0, done.stderr
        assert "finance@1 is in production again and finance@2 is revoked, by ben" in done.stdout
        assert who_answers(gateway) == "finance@1"
    kept = [path.parent for path in clone.root.glob("reports/incidents/*/incident.json")]
    assert len(kept) == 1
    said = IncidentRecord.model_validate_json((kept[0] / "incident.json").read_text())
    assert said.not_captured is None
    assert {name: sha256_file(kept[0] / name) for name in said.captured} == said.captured
    assert json.loads((kept[0] / "console.json").read_text())["total"]["requests"] >= 1
    assert 'adapter="finance@2"' in (kept[0] / "metrics.txt").read_text()
    written = (kept[0] / "rollback.html").read_text()
    assert "finance@1 is in production again" in written
    with clone.registry() as opened:
        assert f"verify --expect-head {opened.log.head().text}" in written


def test_runbook_says_what_was_not_captured(clone: Clone) -> None:  # noqa: F811
    in_production(clone, "finance@1", "finance@2")
    options = ("--reason", "It leaks card numbers.", "--gateway", "http://localhost:9")
    shown = runbook(clone.root, *options, "--actor", "mallory")
    assert shown.returncode == 0, shown.stderr
    assert "You act as mallory and may NOT do it" in shown.stdout
    done = runbook(clone.root, *options, "--actor", ON_CALL, "--yes")
    assert done.returncode == 0, done.stderr
    assert "The dashboards were NOT captured" in done.stdout


def test_refused_rollback_names_a_whole_command(clone: Clone) -> None:  # noqa: F811
    """The command's `--reason ...` lost its dots with the sentence's full stop."""
    (clone.root / "runbooks").symlink_to(ROOT / "runbooks")
    with clone.registry() as opened:
        clone.story(opened).to("finance@2", "production")
    refused = runbook(clone.root, "--reason", "It leaks card numbers.", "--actor", ON_CALL)
    assert refused.returncode == 3
    assert "`lora-ops registry revoke finance@2 --reason TEXT`. The partly executed" in refused.stderr


def test_rollback_holds_without_a_place_for_its_page(clone: Clone) -> None:  # noqa: F811
    """On a full disk it said "correct the path", and the bad version went on answering."""
    in_production(clone, "finance@1", "finance@2")
    (clone.root / "reports").write_text("in the way")
    options = ("--reason", "It leaks card numbers.", "--gateway", "http://localhost:9", "--actor", ON_CALL)
    done = runbook(clone.root, *options, "--yes")
    assert done.returncode == 0, done.stderr
    assert "the record of the incident is in" in done.stderr
    with clone.registry() as opened:
        assert opened.named("finance", "production") == 1


def test_rollback_goes_on_without_its_folder(
    bad_release: Registry,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder that couldn't be made stopped the rollback, too."""
    (tmp_path / "blocked").write_text("in the way")
    folder = tmp_path / "blocked" / "incidents" / "now"
    returned = incidents.take_back(bad_release, "finance@2", folder, actor=ON_CALL, reason="It leaks.").returned
    assert (returned.id, returned.state) == ("finance@1", "production")
    assert bad_release.state("finance", 2) == "revoked"
    assert "the record of the incident is in" in caplog.text


def test_rollback_needs_no_jupyter(clone: Clone) -> None:  # noqa: F811
    """On a broken environment whoever was on call had a revocation only, which leaves nobody to answer."""
    in_production(clone, "finance@1", "finance@2")
    for module in (
        "papermill",
        "nbclient",
        "nbconvert",
        "nbformat",
        "jupyter_client",
        "traitlets",
        "httpx",
        "anyio",
    ):
        (clone.root / f"broken/{module}.py").parent.mkdir(exist_ok=True)
        (clone.root / f"broken/{module}.py").write_text(f"raise ImportError('{module} is broken')")
    options = ("--reason", "It leaks card numbers.", "--gateway", "http://localhost:9", "--actor", ON_CALL)
    broken = {"PYTHONPATH": f"{clone.root / 'broken'}:{ROOT}"}
    shown = runbook(clone.root, *options, "--without-notebook", **broken)
    assert shown.stdout == "finance@1 would replace finance@2; nothing was changed.\n"
    with clone.registry() as opened:
        assert opened.named("finance", "production") == 2
    without_page = runbook(clone.root, *options, "--yes", **broken)
    assert (without_page.returncode, without_page.stderr.count("\n")) == (5, 1)
    assert "finance@1 is in production again and finance@2 is revoked. The runbook" in without_page.stderr
    assert "is broken): run the same command with --without-notebook" in without_page.stderr
    with clone.registry() as opened:
        assert opened.named("finance", "production") == 1
    done = runbook(clone.root, *options, "--without-notebook", "--yes", **broken)
    assert done.returncode == 0, done.stderr
    assert "finance@1 is in production again, and finance@2 is revoked." in done.stdout
    assert "http://localhost:9 could not be captured" in done.stdout
    with clone.registry() as opened:
        assert opened.named("finance", "production") == 1
        assert opened.get("finance@2").state == "revoked"
        assert verify(opened).ok
    path = max((clone.root / "reports/incidents").glob("*/incident.json"))
    assert IncidentRecord.model_validate_json(path.read_text()).has_page is False
    again = runbook(clone.root, *options, "--without-notebook", "--yes", "--json", **broken)
    assert (json.loads(again.stdout)["returns"], json.loads(again.stdout)["page"]) == ("finance@1", None)


@pytest.mark.usefixtures("written_by_hand")
def test_rollback_in_json_says_what_the_page_says(clone: Clone) -> None:  # noqa: F811
    in_production(clone, "finance@1", "finance@2")
    with clone.registry() as opened:
        bad = opened.get("finance@2")
        exported = packages.export(opened, bad.id, clone.root / "again")
        again = saved_again(clone.root / "again", exported.manifest)
        for name in ("manifest.json", "model.sig"):
            (clone.root / "again" / name).unlink()
        twin, _ = opened.register(clone.root / "again", again, actor="ana")
    options = ("--reason", "It leaks card numbers.", "--gateway", "http://localhost:9", "--actor", ON_CALL)
    shown = json.loads(runbook(clone.root, *options, "--json").stdout)
    assert (shown["returns"], shown["done"], shown["record"], shown["notes"]) == ("finance@1", False, None, [])
    done = json.loads(runbook(clone.root, *options, "--yes", "--json").stdout)
    assert (done["version"], done["returns"], done["done"]) == ("finance@2", "finance@1", True)
    assert Path(done["record"]).is_file() and Path(done["page"]).is_file()
    assert "could not be captured" in done["not_captured"]
    assert done["notes"] == [f"{twin.id} ('candidate') has the same weights: look whether it must go, too."]
    assert done["head_remembered"] is True


def test_rollback_without_wandb_stops_the_bad_version(
    clone: Clone,  # noqa: F811
    engine: object,  # noqa: F811
) -> None:
    in_production(clone, "finance@1", "finance@2")
    params = clone.root / "params.yaml"
    params.write_text(params.read_text().replace("  backend: embedded\n", "  backend: wandb\n"))
    offline = {"WANDB_MODE": "offline"}
    options = ("--reason", "It leaks card numbers.", "--gateway", "http://localhost:9", "--actor", ON_CALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]

            def ask() -> int:
                body = {
                    "model": "finance",
                    "max_tokens": 2,
                    "messages": [{"role": "user", "content": "AIRBNB"}],
                }
                return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, verify=False).status_code

            assert ask() == 200
            done = runbook(clone.root, *options, "--yes", "--without-notebook", "--json", **offline)
            assert ask() == 503
    said = json.loads(done.stdout)
    assert (done.returncode, said["done"], said["returns"], said["held"]["actor"]) == (
        5,
        False,
        "finance@1",
        ON_CALL,
    )
    assert "WANDB_MODE is 'offline'" in said["not_sent"]
    shown = runbook(clone.root, *options, "--yes", **offline)
    waits = "finance@2 does not answer on this machine any more, and finance@1 has not returned"
    assert (shown.returncode, waits in shown.stdout, waits in shown.stderr) == (5, True, True)
    assert "is in production again" not in shown.stdout
