"""The console in a real browser, over a gateway with real traffic."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_ops.registry import eligibility, lifecycle, routes
from lora_ops.rollout.canary import look
from lora_ops.rollout.controller import one_round, start
from lora_ops.rollout.kept_looks import LookKeeper
from lora_ops.settings.rollout import RolloutSettings
from tests.monitoring.kpi_files import write_events
from tests.registry.conftest import Clock
from tests.rollout import test_canary, test_shadow_verdict
from tests.rollout.rolling import Traffic
from tests.serving.conftest import Clone, Served, served

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.problems = []  # type: ignore[attr-defined]
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))  # type: ignore[attr-defined]
    opened.on("console", lambda m: m.type == "error" and opened.problems.append(m.text))  # type: ignore[attr-defined]
    yield opened
    context.close()


def send(gateway: Served, model: str, times: int) -> None:
    client = gateway.client()
    for number in range(times):
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": f"AIRBNB {number}"}], max_tokens=4
        )


def test_it_shows_who_answers_how_fast_and_what_is_in_memory(
    gateway: Served, clone: Clone, page: "sync_api.Page"
) -> None:
    with clone.registry() as registry:
        clone.story(registry).to("finance@1", "production")
        clone.story(registry).to("finance@2", "shadow")
    send(gateway, "finance", 6)
    send(gateway, "finance@2", 2)
    send(gateway, "healthcare", 3)
    gateway.http().post("/v1/chat/completions", json={})
    page.goto(f"{gateway.url}/console")
    page.wait_for_selector("#tenants table")
    tenants = page.inner_text("#tenants")
    assert "finance@1 production 75 %" in tenants and "finance@2 pinned 25 %" in tenants
    assert "healthcare@1 candidate 100 %" in tenants
    adapters = page.inner_text("#adapters")
    assert "finance@1" in adapters and "production" in adapters and "KiB" in adapters
    assert page.inner_text("#state") == "ready"
    assert "open: no API keys" in page.inner_text("header")
    assert "400 × 1" in page.inner_text("#errors")
    assert page.problems == []  # type: ignore[attr-defined]
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "console.png", full_page=True)


def test_it_shows_who_shares_a_tenants_requests(gateway: Served, clone: Clone, page: "sync_api.Page") -> None:
    why: Any = {"actor": "ci", "reason": "next step"}
    with clone.registry() as registry:
        clone.story(registry).to("finance@1", "production")
        clone.story(registry).to("finance@2", "canary")
        routes.set_canary(registry, "finance@2", 12.5, **why)
        routes.pin(registry, "finance@2", segments=["beta"], **why)
    page.goto(f"{gateway.url}/console")
    page.wait_for_selector("#tenants >> text=finance@2 canary of 12.5 %")
    page.wait_for_selector("#tenants >> text=1 pinned")
    with clone.registry() as registry:
        routes.stop(registry, "finance@2", **why)
    page.wait_for_selector("#tenants >> text=finance@2 stopped", timeout=5000)
    assert page.problems == []  # type: ignore[attr-defined]


def test_it_shows_a_rollout_and_who_may_act(clone: Clone, gateway: Served, page: "sync_api.Page") -> None:
    """From shadow to ready: step, verdicts, the sequences of each phase, what is missing, and who may act."""
    keeper = LookKeeper(clone.root / ".serving/rollouts")
    with clone.registry() as registry:
        clone.story(registry).to_rollout()
        evidence = Traffic(clone.story(registry), Clock())
        begun = start(
            registry, "finance@2", RolloutSettings(), actor="oncall", reason="better on held-out rows"
        )
        mirrored = one_round(registry, begun, evidence).rollout
        page.goto(f"{gateway.url}/console")
        page.wait_for_selector("#rollouts >> text=no controller has looked yet")
        page.wait_for_selector("#rollouts >> text=finance@2 shadow of 20 %")
        for pairs in (30, 120, 400):
            rows = [test_shadow_verdict.pair(number) for number in range(pairs)]
            keeper.keep(mirrored, test_shadow_verdict.look(rows), registry.clock())
        in_canary = one_round(registry, mirrored, evidence).rollout
        assert in_canary.phase == "canary"
        for users in (40, 160, 500):
            came = [evidence._of(in_canary, one) for one in test_canary.traffic(users)]
            found = look(in_canary.plan, came, since=test_canary.MORNING, now=test_canary.after(users))
            keeper.keep(in_canary, found, registry.clock())
    page.wait_for_selector("#rollouts >> text=500 users beside 500", timeout=5000)
    shown = page.inner_text("#rollouts")
    assert "finance@1 99 %" in shown and "finance@2 1 %" in shown and "not worse" in shown
    assert "lora-ops rollout pause finance@2" in shown and "ben" in shown
    assert page.locator("#rollouts .charts svg").count() == 11
    assert page.inner_text("#rollouts .steps .here") == "1 %"
    assert page.problems == []  # type: ignore[attr-defined]
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "rollout.png", full_page=True)


def test_it_shows_what_is_left_of_the_risk_budgets(clone: Clone, engine: object, page: "sync_api.Page") -> None:
    """As `lora-ops monitor risk` counts it; the page comes first, and no count outlives its gateway."""
    scored: dict[str, Any] = {"time": datetime.now(UTC) - timedelta(minutes=40), "insult_detector": "made"}
    scored |= {"answer_insults": 0.1, "answer_new_identifiers": 0}
    leak, other = scored | {"answer_new_identifiers": 1}, {"tenant": "media", "adapter": "media@1"}
    second = {"adapter": "finance@2"}
    write_events(clone.root, *[leak] * 30, *[scored] * 170, *[scored | second] * 300, *[scored | other] * 40)
    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        page.goto(f"{gateway.url}/console")
        page.wait_for_selector("#risk >> text=Being counted")
        page.wait_for_selector("#risk table", timeout=30_000)
        rows = [line.inner_text().split("\t") for line in page.locator("#risk tbody tr").all()]
        first = [cell.strip() for cell in rows[0]]
        assert first[:5] == ["finance", "all versions", "identifiers", "broken", "30 of 500"]
        assert first[5].startswith("4.08 % to 8.4") and first[6:8] == ["1.00 %", "600 %"]
        assert first[8] == "– / – / 6× / 6× / 6×"
        versions = [(row[1].strip(), row[3].strip()) for row in rows[1:3]]
        assert versions == [("finance@1", "broken"), ("finance@2", "cannot tell")]
        assert rows[-1][3].strip() == "cannot tell" and len(rows) == 10
        assert page.query_selector("#risk .range .limit") and page.problems == []  # type: ignore[attr-defined]
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "risk.png", full_page=True)
    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        assert gateway.http().get("/console/data").json()["risk"]["ago"] is None
        counting = [one for one in psutil.Process().children() if "monitor" in one.cmdline()]
    assert len(counting) == 1 and not any(one.is_running() for one in counting)


def test_it_shows_what_keeps_rollouts_from_being_read(
    clone: Clone, gateway: Served, page: "sync_api.Page"
) -> None:
    page.goto(f"{gateway.url}/console")
    page.wait_for_selector("#rollouts >> text=None yet")
    (clone.root / "owners.yaml").write_text("default: [<img src=x onerror=alert(1)>]")
    page.wait_for_selector("#rollouts >> text=They can't be read: owners.yaml", timeout=5000)
    assert page.query_selector("main img") is None and page.inner_text("#state") == "ready"
    assert page.problems == []  # type: ignore[attr-defined]


def test_it_marks_data_that_expires_soon(
    clone: Clone, engine: object, page: "sync_api.Page", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eligibility, "FRESHNESS_WARNING", timedelta(days=50_000))
    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        page.goto(f"{gateway.url}/console")
        marked = page.wait_for_selector("#adapters span.warn")
        assert "the data of finance@2 expires on" in str(marked.get_attribute("title"))
    assert page.query_selector("#adapters span.bad") is None


def test_it_follows_a_rollback_without_being_reloaded(
    gateway: Served, clone: Clone, page: "sync_api.Page"
) -> None:
    send(gateway, "finance", 1)
    page.goto(f"{gateway.url}/console")
    page.wait_for_selector("#tenants >> text=finance@2")
    with clone.registry() as registry:
        lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks")
        clone.story(registry).to("finance@1", "production")
    page.wait_for_selector("#tenants td >> text=finance@1", timeout=5000)


def test_it_says_that_what_it_shows_is_old_when_the_gateway_is_gone(
    clone: Clone, engine: object, page: "sync_api.Page"
) -> None:
    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        page.goto(f"{gateway.url}/console")
        page.wait_for_selector("#state >> text=ready")
    page.wait_for_selector("#stale >> text=does not answer", timeout=5000)
    assert page.inner_text("#state") == "no answer"


def test_a_name_that_is_markup_stays_text(clone: Clone, engine: object, page: "sync_api.Page") -> None:
    markup = "<img src=x onerror=alert(1)>"
    record = clone.base / "base_model.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "id": markup}))
    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        body = {"model": "base", "prompt": "AIRBNB", "max_tokens": 2}
        assert gateway.http().post("/v1/completions", json=body).status_code == 200
        page.goto(f"{gateway.url}/console")
        page.wait_for_selector("#tenants table")
        assert markup in page.inner_text("header") and markup in page.inner_text("#tenants")
        assert page.query_selector("main img") is None
    assert page.problems == []  # type: ignore[attr-defined]


def test_a_snapshot_is_counted_once_a_second_however_many_look(gateway: Served) -> None:
    http = gateway.http()
    shown = [http.get("/console/data").json()["gateway"]["uptime"] for _ in range(5)]
    assert len(set(shown)) < 5


def test_with_keys_a_browser_is_asked_for_one(
    clone: Clone, engine: object, browser: "sync_api.Browser"
) -> None:
    from lora_ops.serving.keys import KeyStore

    store = KeyStore(clone.root / ".serving/keys.sqlite")
    _, monitor = store.create("monitor")
    _, tenant = store.create("tenant", "finance")
    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        assert gateway.http().get("/console").status_code == 401
        assert gateway.http(tenant).get("/console/data").status_code == 403
        context = browser.new_context(http_credentials={"username": "on-call", "password": monitor})
        page = context.new_page()
        page.goto(f"{gateway.url}/console")
        page.wait_for_selector("#state >> text=ready")
        context.close()
    store.close()
