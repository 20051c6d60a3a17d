"""`lora-ops rollout` as people and CI run it."""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_ops import rollout_commands
from lora_ops.cli import app
from lora_ops.errors import LoraOpsError, NotFound, Refused, Unavailable
from lora_ops.escaping import show
from lora_ops.processes import only_one
from lora_ops.records.rollout import Rollout
from lora_ops.registry import rollouts, routes
from lora_ops.registry.backends import open_registry, take_rules
from lora_ops.registry.store import Registry
from lora_ops.rollout.canary import Look
from lora_ops.rollout.guardrails import Shown
from lora_ops.rollout.sample_ratio import SampleRatio
from lora_ops.rollout.sequential import Bounds, excess_margin
from lora_ops.rollout.verdicts import Verdict
from tests.conftest import commit_all, write_params
from tests.registry.conftest import owners, resampled_once  # noqa: F401 - fixtures
from tests.serving.conftest import Clone, clone_source  # noqa: F401 - a fixture

Cli = Callable[..., str]
WHY = ("--reason", "better on held-out rows")
AT_ONCE = {"hours": 0, "requests": 20, "regression": False, "release_notes": False, "policy": "file"}


@pytest.fixture
def cli(clone_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:  # noqa: F811
    """Run `lora-ops` in a clone with finance@1 in production, and finance@2 validated and reviewed."""
    root = tmp_path / "clone"
    shutil.copytree(clone_source, root)
    write_params(root, {"registry.evidence": AT_ONCE})
    clone = Clone(root, root / "models/base")
    with clone.registry() as registry:
        clone.story(registry).to_rollout()
    monkeypatch.setenv("LORA_OPS_ROOT", str(root))
    monkeypatch.setenv("LORA_OPS_ACTOR", "oncall")
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: str, ends: int = 0) -> str:
        result = CliRunner().invoke(app, ["rollout", *words])
        if isinstance(result.exception, LoraOpsError):
            raise result.exception
        assert result.exit_code == ends, result.output
        return " ".join(result.output.split())

    return invoke


def test_rollout_commands_take_a_version_into_shadow(cli: Cli) -> None:
    assert "The rollout of finance@2 begins" in cli("start", "finance@2", *WHY)
    assert "finance@2 (shadow): 20 % of the requests are asked again" in cli("step", "finance@2")
    waiting = cli("step", "finance@2", ends=3)
    assert "hold: no requests yet" in waiting
    shown = cli("status", "finance@2")
    assert "finance@2 beside finance@1: shadow since" in shown and "begun by oncall" in shown
    assert "0 pairs of 0 users" in shown
    told = json.loads(cli("status", "finance@2", "--json"))
    assert (told["phase"], told["shadow"]["verdict"]["decision"], told["canary"]) == ("shadow", "hold", None)


def test_rollout_commands_pause_resume_and_abort(cli: Cli) -> None:
    cli("start", "finance@2", *WHY)
    assert "is paused" in cli("pause", "finance@2", *WHY)
    assert "UTC, paused now (attempt 1" in cli("status", "finance@2")
    assert "paused before its shadow" in cli("step", "finance@2", ends=3)
    assert "goes on" in cli("resume", "finance@2", *WHY)
    assert "production answers everybody" in cli("abort", "finance@2", *WHY)
    with pytest.raises(Refused, match=r"The rollout of finance@2 has ended \(aborted\)"):
        cli("step", "finance@2")
    assert json.loads(cli("start", "finance@2", *WHY, "--json"))["attempt"] == 2


def test_list_shows_every_rollout_in_a_line(cli: Cli) -> None:
    assert "No rollout has begun: `lora-ops rollout start" in cli("list")
    assert json.loads(cli("list", "--json")) == []
    cli("start", "finance@2", *WHY)
    cli("pause", "finance@2", "--reason", "a look at <b>[red]it[/]")
    shown = cli("list")
    assert "finance@2 finance@1 shadow, paused - 2" in shown and "1 a look at <b>[red]it[/]" in shown
    cli("abort", "finance@2", *WHY)
    [told] = json.loads(cli("list", "finance", "--json"))
    assert (told["plan"]["adapter"], told["phase"], told["percent"]) == ("finance@2", "aborted", 0)
    assert "finance@2 finance@1 aborted" in cli("list")
    assert json.loads(cli("list", "media", "--json")) == []
    with pytest.raises(NotFound, match="no tenant 'nobody'"):
        cli("list", "nobody")


def test_list_shows_what_runs_first(cli: Cli, tmp_path: Path) -> None:
    """Whoever is on call looks for what may need them; of those the last change comes first."""
    cli("start", "finance@2", *WHY)
    with closing(open_registry(tmp_path / "clone")) as registry:
        known = rollouts.rollout_of(registry, "finance@2")
        assert known
        plan = known.plan.model_copy(update={"adapter": "healthcare@1"})
        rollouts.begin(registry, plan, actor="oncall", reason="next")

    def listed() -> list[str]:
        return [one["plan"]["adapter"] for one in json.loads(cli("list", "--json"))]

    assert listed() == ["healthcare@1", "finance@2"]
    cli("abort", "healthcare@1", *WHY)
    assert listed() == ["finance@2", "healthcare@1"]


@pytest.mark.parametrize("command", ["status", "step"])
def test_rollout_commands_say_how_to_begin(cli: Cli, command: str) -> None:
    with pytest.raises(NotFound, match="finance@2 has no rollout: `lora-ops rollout start finance@2"):
        cli(command, "finance@2")


def test_open_registry_takes_the_rules_of_now(cli: Cli, tmp_path: Path) -> None:
    """`rollout run` keeps a registry open while owners.yaml and params.yaml are edited."""
    root = tmp_path / "clone"
    with Clone(root, root / "models/base").registry() as registry:
        owners_then, least = registry.owners, registry.least
        file = root / "owners.yaml"
        file.write_text(file.read_text().replace("Payments", "Cards"))
        write_params(root, {"registry.evidence": {**AT_ONCE, "requests": 4000}})
        take_rules(registry, root)
        assert registry.owners and registry.owners != owners_then
        assert (least.requests, registry.least.requests) == (20, 4000)
        file.write_text("default: [")
        kept = registry.owners
        with pytest.raises(LoraOpsError, match="owners.yaml"):
            take_rules(registry, root)
        assert registry.owners is kept


def test_step_goes_only_back_while_owners_are_broken(cli: Cli, tmp_path: Path) -> None:
    """As the loop does: nothing goes on, and a version that was stopped meanwhile goes back."""
    cli("start", "finance@2", *WHY)
    cli("step", "finance@2")
    (tmp_path / "clone/owners.yaml").write_text("default: [")
    assert "hold: no requests yet" in cli("step", "finance@2", ends=3)
    with closing(open_registry(tmp_path / "clone", to_stop="finance@2")) as registry:
        routes.stop(registry, "finance@2", actor="oncall", reason="it insults people")
    shown = cli("step", "finance@2", ends=1)
    assert "No rollout goes on until this is mended" in shown and "(returned): finance@2 was stopped" in shown


def test_step_goes_back_where_no_lock_can_be_kept(cli: Cli, tmp_path: Path) -> None:
    """The disk of `.serving` refuses a file; the registry's takes the way back."""
    cli("start", "finance@2", *WHY)
    (tmp_path / "clone/.serving/rollouts").symlink_to("/proc/self")
    assert "Another controller may look at the same time" in cli("step", "finance@2")
    with closing(open_registry(tmp_path / "clone", to_stop="finance@2")) as registry:
        routes.stop(registry, "finance@2", actor="oncall", reason="it insults people")
    assert "(returned): finance@2 was stopped." in cli("step", "finance@2", ends=1)
    with closing(open_registry(tmp_path / "clone")) as registry:
        routes.resume(registry, "finance@2", actor="oncall", reason="it was the prompt")
    assert "route resume" not in cli("status", "finance@2")


def test_step_beside_another_controller_tries_again_later(cli: Cli, tmp_path: Path) -> None:
    """CI repeats a command that ends with 5, and takes 2 for a wrong call."""
    cli("start", "finance@2", *WHY)
    with (
        only_one(tmp_path / "clone/.serving/rollouts/finance.lock", "looking"),
        pytest.raises(Unavailable, match="is looking at the rollout of 'finance' already: wait until it ends"),
    ):
        cli("step", "finance@2")


@pytest.mark.parametrize("command", ["pause", "abort"])
def test_rollout_is_stopped_though_it_moves_meanwhile(
    cli: Cli, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller's step between reading and writing must not keep people from stopping it."""
    cli("start", "finance@2", *WHY)
    read, times = rollout_commands._known, []

    def read_too_early(registry: Registry, reference: str) -> Rollout:
        known = read(registry, reference)
        if not times:
            rollouts.move(registry, known, "shadow", "20 % are asked again", actor="oncall")
        times.append(known.seq)
        return known

    monkeypatch.setattr(rollout_commands, "_known", read_too_early)
    cli(command, "finance@2", *WHY)
    assert len(times) == 2


def test_resume_is_decided_again_where_it_moved(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lets it go on must have seen why it stayed."""
    cli("start", "finance@2", *WHY)
    cli("pause", "finance@2", *WHY)
    stale = rollout_commands._known

    def read_too_early(registry: Registry, reference: str) -> Rollout:
        known = stale(registry, reference)
        rollouts.move(registry, known, "shadow", "20 % are asked again", actor="oncall")
        return known

    monkeypatch.setattr(rollout_commands, "_known", read_too_early)
    with pytest.raises(Unavailable, match="finance@2 changed meanwhile .*look again"):
        cli("resume", "finance@2", *WHY)


def test_run_keeps_its_lock_while_params_are_broken(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollout goes back while somebody edits params.yaml."""
    cli("start", "finance@2", *WHY)
    locks: list[Callable[[str], AbstractContextManager[None]]] = []
    monkeypatch.setattr("lora_ops.rollout.loop.run_rollouts", lambda *_, lock_of, **__: locks.append(lock_of))
    cli("run")
    (tmp_path / "clone/params.yaml").write_text("serving: [")
    with locks[0]("finance"):
        assert (tmp_path / "clone/.serving/rollouts/finance.lock").is_file()


def test_run_begins_while_owners_are_broken(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that is started again in that hour still takes rollouts back."""
    cli("start", "finance@2", *WHY)
    (tmp_path / "clone/owners.yaml").write_text("default: [")
    rounds: list[Registry] = []
    monkeypatch.setattr("lora_ops.rollout.loop.run_rollouts", lambda given, *_, **__: rounds.append(given))
    cli("run")
    assert len(rounds) == 1


@pytest.mark.parametrize("wrong", ["finanec", "finance@2"])
def test_run_refuses_a_tenant_that_is_not_there(cli: Cli, wrong: str) -> None:
    """A controller that waits for a misspelt tenant would let a breach of the real one stand."""
    with pytest.raises(NotFound, match=f"There is no tenant '{wrong}' .params.yaml has: finance"):
        cli("run", wrong)


def test_run_says_what_it_looks_at(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ops.rollout.loop.run_rollouts", lambda *_, **__: None)
    assert "Looks at the rollouts of finance each 10 seconds, until Ctrl-C" in cli("run", "finance")


def test_rollout_is_ended_while_owners_are_broken(cli: Cli, tmp_path: Path) -> None:
    """The last owners.yaml in the log says who may stop; nothing goes on by it."""
    cli("start", "finance@2", *WHY)
    (tmp_path / "clone/owners.yaml").write_text("default: [")
    assert "is paused" in cli("pause", "finance@2", *WHY)
    assert "UTC, paused now (attempt 1" in cli("status", "finance@2")
    with pytest.raises(LoraOpsError, match="owners.yaml"):
        cli("resume", "finance@2", *WHY)
    assert "production answers everybody" in cli("abort", "finance@2", *WHY)


BROKEN = {"no YAML": "serving: [", "a wrong value": "rollout: {canary: {steps: [50, 5]}}\n"}


@pytest.mark.parametrize("text", BROKEN)
def test_way_back_is_open_while_params_are_broken(cli: Cli, tmp_path: Path, text: str) -> None:
    """Whoever edits a step breaks the file, and whoever is on call must not wait for them."""
    root = tmp_path / "clone"
    commit_all(root)
    cli("start", "finance@2", *WHY)
    cli("step", "finance@2")
    (root / "params.yaml").write_text(BROKEN[text])
    with pytest.raises(LoraOpsError, match="params.yaml"):
        cli("start", "finance@2", *WHY)
    assert "hold: no requests yet" in cli("step", "finance@2", ends=3)
    stopped = CliRunner().invoke(app, ["route", "stop", "finance@2", *WHY])
    assert stopped.exit_code == 0 and "finance@2 answers nobody until" in stopped.output
    assert "production answers everybody" in cli("abort", "finance@2", *WHY)


def test_way_back_names_the_file_where_git_has_none(cli: Cli, tmp_path: Path) -> None:
    cli("start", "finance@2", *WHY)
    (tmp_path / "clone/params.yaml").write_text("serving: [")
    with pytest.raises(LoraOpsError, match="params.yaml is not valid YAML.*`git checkout params.yaml`"):
        cli("abort", "finance@2", *WHY)


def test_run_begins_while_params_are_broken(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that is started again in that hour takes rollouts back, and lets none go on."""
    commit_all(tmp_path / "clone")
    cli("start", "finance@2", *WHY)
    (tmp_path / "clone/params.yaml").write_text("serving: [")
    rules: list[Callable[[], None]] = []
    monkeypatch.setattr(
        "lora_ops.rollout.loop.run_rollouts", lambda *_, take_rules, **__: rules.append(take_rules)
    )
    cli("run")
    with pytest.raises(LoraOpsError, match="params.yaml"):
        rules[0]()


def test_guardrails_are_shown_on_the_scale_of_their_margins(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests compare excesses and ratios, and params.yaml has parts: 1.0 is twice as many tokens."""
    guardrails = (
        Shown("task", 0.19, 0.05, Bounds(-0.1, 0.4), 0.15, 1, 1, 21),
        Shown("tokens", 3, 3, Bounds(-0.2, 0.2), excess_margin(1.0), 1, 9, 21),
        Shown("P95 latency", 1, 1, Bounds(0.9, math.inf), 5, 1, 1, 21),
    )
    look = Look(Verdict("hold", "more users"), guardrails, 21, 38, SampleRatio(1.0, False, 59))
    show(rollout_commands._guardrails(look, threshold=5))
    task, tokens, latency = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[3:6])
    assert task == "task missed 0.19 0.05 -10.0 to +40.0 15% 21 undecided"
    assert tokens == "tokens 3 3 -33.3 to +50.0 100% 21 not worse"
    assert latency == "P95 latency 1 1 -10.0 to inf 400% 21 undecided"
