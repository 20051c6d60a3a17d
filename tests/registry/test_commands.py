"""`lora-ops registry` as people and CI run it: a real process, a real folder, tables or JSON."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from lora_ops.cli import app
from lora_ops.clock import now
from lora_ops.errors import Damaged, LoraOpsError, Refused
from lora_ops.records.evaluation import GroupMetric, Interval
from lora_ops.records.registry import AdapterRecord
from lora_ops.registry import tables
from lora_ops.registry.backends import open_registry
from lora_ops.registry.cards import Difference
from lora_ops.registry.lifecycle import file_evidence
from lora_ops.registry.owners import add_key
from lora_ops.rollout.gateways import announced
from tests.conftest import small_clone, write_params
from tests.wandb_server import WandbServer

from .conftest import AT_ONCE, build_package, reviewed, rows_of, saved_again, ssh_key, with_evaluation, won

ROOT = Path(__file__).parents[2]
Cli = Callable[..., Result]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small clone of the repository with two registered versions."""
    small_clone(tmp_path)
    (tmp_path / "report.md").write_text("# all is well\n\nWhat happened, and what was done.\n")
    write_params(tmp_path, {"registry.evidence": AT_ONCE})
    for person in ("ben.okafor", "chen.wei", "dana.roth"):
        add_key(tmp_path / "owners.yaml", person, ssh_key(person).with_suffix(".pub"))
    registry = open_registry(tmp_path, create=True)
    for seed in (1, 2):
        folder = tmp_path / f"package-{seed}"
        registry.register(folder, build_package(folder, seed, fresh_days=3650), actor="ana.silva")
    registry.close()
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("LORA_OPS_ACTOR", "ben.okafor")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def cli(root: Path) -> Cli:
    runner = CliRunner()

    def invoke(*words: str) -> Result:
        words = tuple(word.replace("REPORT", str(root / "report.md")) for word in words)
        result = runner.invoke(app, ["registry", *words])
        if isinstance(result.exception, LoraOpsError):
            raise result.exception
        return result

    return invoke


def results(root: Path, kind: str, reference: str) -> str:
    """Write raw results of one kind, and return the path of their file."""
    path = root / f"{kind}.jsonl"
    path.write_text(rows_of(kind, reference, now()))
    return str(path)


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_a_change_is_done_whatever_the_disk_under_stdout(root: Path, words: tuple[str, ...]) -> None:
    """`reject > /dev/full` said "run this again" though the version was rejected."""
    command = [Path(sys.executable).parent / "lora-ops", "registry", "reject", "finance@1", "--reason=worse"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr == "lora-ops: It is done, and can't be printed: No space left on device.\n"
    with closing(open_registry(root)) as registry:
        assert registry.get("finance@1").state == "rejected"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE versions SET next_review_due = 'soon'", "finance@1"),
        ("UPDATE versions SET content_digest = 'x' WHERE number = 1", "finance@1"),
        (
            "DROP TRIGGER audit_stays; UPDATE audit SET body = '{\"evidence\": [1]}' WHERE seq = 1",
            "entry 1 (registered finance@1",
        ),
        (
            "DROP TRIGGER audit_stays; UPDATE audit SET body = CAST(x'ff41' AS TEXT) WHERE seq = 1",
            "registry.sqlite is damaged",
        ),
    ],
)
def test_show_of_a_damaged_row_names_it(cli: Cli, root: Path, damage: str, says: str) -> None:
    """It was a traceback."""
    with closing(sqlite3.connect(root / ".registry/registry.sqlite")) as db:
        db.executescript(damage)
    with pytest.raises(Damaged) as raised:
        cli("show", "finance@1")
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "words",
    [
        ("promote", "finance@candidate", "validated"),
        ("reject", "finance"),
        ("revoke", "finance@candidate"),
        ("archive", "finance"),
        ("approve", "finance@candidate"),
        ("withdraw", "finance"),
        ("file", "finance@candidate", "review", "REPORT"),
        ("review", "finance", "--evidence", "review=REPORT"),
        ("incident", "finance", "--evidence", "incident=REPORT"),
    ],
    ids=lambda words: words[0],
)
def test_change_takes_an_exact_version_and_says_so(cli: Cli, words: tuple[str, ...]) -> None:
    told = " ".join(cli(words[0], "--help").output.split())
    assert "finance@3: the exact version" in told and "finance@production" not in told
    reason = () if words[0] == "file" else ("--reason", "now")
    with pytest.raises(LoraOpsError, match="may name another version in a moment"):
        cli(*words, *reason)


@pytest.mark.parametrize("manifest", ["null", "[]", "{}"])
def test_show_passes_over_another_damaged_manifest(cli: Cli, root: Path, manifest: str) -> None:
    with closing(open_registry(root)) as registry:
        registry.db.rows("UPDATE manifests SET manifest = ? WHERE number = 2", (manifest,))
    shown = " ".join(cli("show", "finance@1").output.split())
    assert "The manifest of finance@2 is none: run `lora-ops registry verify`" in shown


def approve(cli: Cli, reference: str, person: str) -> Result:
    key = str(ssh_key(person))
    return cli("approve", reference, "--actor", person, "--reason", f"{person} agrees", "--key", key)


def review(root: Path, reference: str) -> None:
    with closing(open_registry(root)) as registry:
        report = reviewed(registry, reference, won, ("dana.roth", "chen.wei"))
        file_evidence(registry, reference, report, actor="ben.okafor")


def into_canary(cli: Cli, root: Path, reference: str) -> None:
    for stage, kind in (("validated", "policy"), ("shadow", "votes"), ("canary", "shadow")):
        given = [f"--evidence={kind}={results(root, kind, reference)}"] if kind != "votes" else []
        if kind == "votes":
            review(root, reference)
        assert cli("promote", reference, stage, "--reason", "fine", *given).exit_code == 0
    rows = results(root, "canary", reference)
    assert cli("file", reference, "canary", rows, "--summary=no regressions in 24 h").exit_code == 0


def into_production(cli: Cli, root: Path) -> None:
    into_canary(cli, root, "finance@2")
    for person in ("ben.okafor", "chen.wei"):
        assert approve(cli, "finance@2", person).exit_code == 0
    cli("promote", "finance@2", "production", "--reason=canary is [bold]fine[/bold]", "--expect=none")


def test_promote_waits_for_a_gateway_that_answers(cli: Cli, root: Path) -> None:
    """By hand, too, nobody gets a version that a gateway can't answer with."""
    with announced(root / ".serving", "127.0.0.1", 9):
        into_canary(cli, root, "finance@2")
        for person in ("ben.okafor", "chen.wei"):
            approve(cli, "finance@2", person)
        to_production = ("promote", "finance@2", "production", "--reason=fine")
        with pytest.raises(Refused, match=r"did not become 'production': http://127.0.0.1:9 can't be asked"):
            raise cli(*to_production).exception or AssertionError
        assert cli(*to_production, "--unprobed").exit_code == 0
    assert "finance@2 is production" in cli("show", "finance@2").output


def test_show_answers_who_let_it_in_on_what_evidence(cli: Cli, root: Path) -> None:
    into_production(cli, root)
    page = cli("show", "finance@2").output
    for part in (
        "finance@2 is production (candidate) and may serve today.",
        "smol at r1",
        "iso18245 1.4.1",
        "by ana.silva",
        "exact_match  0.520 [0.470, 0.570], base 0.100",
        "Payments intelligence",
        "12 better than base, 5 same, 3 worse of 20 pairs (2 annotators, alpha 1.000)",
        "ben.okafor (key SHA256:",
        "ben.okafor agrees",
        "chen.wei agrees",
        "canary is [bold]fine[/bold]",
        "canary: no regressions in 24 h",
    ):
        assert part in page
    assert len(page.splitlines()) <= 52  # two of them say which gates these tests go without


def test_promote_names_a_limit_that_was_loosened(cli: Cli, root: Path) -> None:
    write_params(root, {"registry.evidence": AT_ONCE, "tenants.finance.evaluate.max_gap": 0.1})
    into_production(cli, root)
    write_params(root, {"registry.evidence": AT_ONCE})
    told = "judged by looser gates than finance@2, which was in production: evaluate.max_gap none, not 0.1"
    step = ("promote", "finance@1", "validated", "--reason=fine")
    given = f"--evidence=policy={results(root, 'policy', 'finance@1')}"
    assert f"Note: it is {told}." in cli(*step, given).output
    assert told in cli("show", "finance@1").output
    review(root, "finance@1")
    printed = json.loads(cli("promote", "finance@1", "shadow", "--reason=fine", "--json").output)
    assert printed["notes"] == [f"it is {told}"]


def test_show_as_json_is_the_record_of_the_published_schema(cli: Cli, root: Path) -> None:
    into_production(cli, root)
    record = AdapterRecord.model_validate_json(cli("show", "finance@production", "--json").output)
    assert record.verdict.may_serve
    assert json.loads(cli("schema").output) == AdapterRecord.model_json_schema()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.usefixtures("written_by_hand")
def test_no_table_cuts_a_number(cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    into_production(cli, root)
    registry = open_registry(root)
    folder = root / "package-3"
    manifest = build_package(folder, 3, fresh_days=-1)
    value = Interval(value=0.938, low=0.911, high=0.988)
    groups = {"Business services of many kinds": GroupMetric(rows=1234, value=value)}
    registry.register(folder, with_evaluation(folder, manifest, groups=groups, rows=1234), actor="ana.silva")
    registry.close()
    for command in (
        ("list",),
        ("show", "finance@2"),
        ("show", "finance@3"),
        ("history", "finance@2"),
        ("diff", "finance@1", "finance@2"),
        ("due",),
        ("status",),
    ):
        monkeypatch.setenv("COLUMNS", "1000")
        numbers = set(re.findall(r"(?<![\w.-])[\d.]*\d(?![\w-])", cli(*command).output))
        assert numbers
        monkeypatch.setenv("COLUMNS", str(width))
        page = cli(*command).output
        assert [number for number in numbers if number not in page] == []


def test_list_shows_every_version_or_those_of_a_tenant(cli: Cli) -> None:
    assert "finance@1" in cli("list").output
    rows = json.loads(cli("list", "finance", "--json").output)
    assert [(row["adapter"], row["state"], row["aliases"]) for row in rows] == [
        ("finance@1", "candidate", []),
        ("finance@2", "candidate", ["candidate"]),
    ]
    assert json.loads(cli("list", "media", "--json").output) == []
    assert "'media' has no version yet" in cli("list", "media").output


def test_list_shows_the_versions_of_one_state(cli: Cli) -> None:
    cli("reject", "finance@1", "--reason=worse")
    rows = json.loads(cli("list", "--state", "rejected", "--json").output)
    assert [row["adapter"] for row in rows] == ["finance@1"]
    assert "No version of finance is 'canary'." in cli("list", "finance", "--state=canary").output
    with pytest.raises(LoraOpsError, match="There is no state 'dead': write one of candidate, validated, "):
        cli("list", "--state=dead")


def test_status_says_what_the_next_step_needs(cli: Cli) -> None:
    (finance, *others) = json.loads(cli("status", "--json").output)
    assert [row["tenant"] for row in (finance, *others)] == ["finance", "healthcare", "media", "publishing"]
    assert (finance["production"], finance["candidate"]) == (None, "finance@2")
    assert (finance["next_version"], finance["next_stage"]) == ("finance@2", "validated")
    assert any("policy" in one for one in finance["missing"])
    assert others[0]["candidate"] is None and others[0]["missing"] == []
    page = " ".join(cli("status").output.split())
    assert "finance@2 -> validated needs" in page
    assert "evidence of kind 'policy' (`lora-ops gate finance@2`)" in page


def test_status_follows_the_version_furthest_on_its_way(cli: Cli, root: Path) -> None:
    into_canary(cli, root, "finance@1")
    (row,) = json.loads(cli("status", "finance", "--json").output)
    assert (row["canary"], row["candidate"]) == ("finance@1", "finance@2")
    assert (row["next_version"], row["next_stage"]) == ("finance@1", "production")
    assert "approval" in " ".join(row["missing"])


def test_status_waits_for_no_older_candidate_than_production(cli: Cli, root: Path) -> None:
    into_production(cli, root)
    (row,) = json.loads(cli("status", "finance", "--json").output)
    assert (row["production"], row["next_version"], row["missing"]) == ("finance@2", None, [])


def test_diff_rounds_numbers_unless_that_hides_them() -> None:
    """A loss was shown with sixteen digits."""
    rows = [
        Difference("training", "final_loss", "0.5170875787734985", "0.6088711619377136"),
        Difference("training", "validation_loss", "0.41788274", "0.41788279"),
        Difference("params", "train.learning_rate", "0.0005", "0.00051"),
    ]
    console = Console(width=120, file=StringIO())
    console.print(tables.differences("finance@1", "finance@2", rows))
    words = console.file.getvalue().split()
    assert {"0.5171", "0.6089", "0.41788274", "0.41788279", "0.0005", "0.00051"} <= set(words)


def test_diff_shows_data_params_and_metrics_side_by_side(cli: Cli) -> None:
    page = cli("diff", "finance@1", "finance@2").output
    for part in ("source.sha256", "train.seed", "exact_match.adapter"):
        assert part in page
    rows = json.loads(cli("diff", "finance@1", "finance@2", "--json").output)["differences"]
    assert {"section": "params", "name": "train.seed", "left": "1", "right": "2"} in rows
    assert "record the same" in cli("diff", "finance@1", "finance@1").output


def test_history_is_the_audit_log_of_one_version(cli: Cli, root: Path) -> None:
    into_production(cli, root)
    entries = json.loads(cli("history", "finance@2", "--json").output)
    assert [entry["action"] for entry in entries] == [
        "registered",
        "validated",
        "evidence",
        "shadow",
        "canary",
        "evidence",
        "approved",
        "approved",
        "production",
    ]
    assert "chen.wei agrees" in cli("history", "finance@2").output
    at = f"{entries[0]['at'][:16].replace('T', ' ')} UTC"
    assert at in cli("history", "finance@2").output
    assert f"by ana.silva on {at}" in cli("show", "finance@2").output


def test_an_approval_says_what_was_seen_and_what_is_missing(cli: Cli, root: Path) -> None:
    into_canary(cli, root, "finance@1")
    said = " ".join(approve(cli, "finance@1", "dana.roth").output.split())
    assert "finance@1 approved by dana.roth, signed, until " in said
    assert "1 more approval (by ben.okafor, chen.wei)" in said
    evaluation = build_package(root / "again", 1).files["evaluation.json"].sha256[:12]
    assert "seen: content " in said and f"evaluation {evaluation}…, policy " in said
    assert (
        "is no longer approved by dana.roth"
        in cli("withdraw", "finance@1", "--actor=dana.roth", "--reason=next").output
    )


def test_file_says_what_does_not_suffice_yet(cli: Cli, root: Path) -> None:
    path = root / "policy.jsonl"
    path.write_text('{"adapter": "finance@1", "check": "cards", "prompt": "p", "passed": true}\n')
    said = " ".join(cli("file", "finance@1", "policy", str(path)).output.split())
    assert "finance@1 has new evidence of kind 'policy'" in said
    assert (
        "It does not suffice: a step needs a policy report with at least 30 prompts a check (cards has 1)"
        in said
    )
    printed = json.loads(cli("file", "finance@1", "policy", str(path), "--json").output)
    assert printed["checks"][0]["prompts"] == 1 and len(printed["lacks"]) == 1


def test_reason_begins_no_line_of_its_own(cli: Cli) -> None:
    """Whoever reads the history would take the second line for another entry."""
    cli("reject", "finance@2", "--reason", "ok\nAPPROVED by bob\u202e")
    for words in (("show", "finance@2"), ("history", "finance@2")):
        assert r"ok\nAPPROVED by bob\u202e" in cli(*words).output


def test_reject_revoke_archive_and_review_say_what_they_did(cli: Cli) -> None:
    assert "'rejected'" in cli("reject", "finance@1", "--reason=worse").output
    assert "'archived'" in cli("archive", "finance@1", "--reason=old").output
    assert "next review" in cli("review", "finance@2", "--reason=next", "--evidence=review=REPORT").output
    assert json.loads(cli("revoke", "finance@2", "--reason=bad", "--json").output)["state"] == "revoked"


def test_json_of_a_change_names_what_the_text_names(cli: Cli, root: Path) -> None:
    """A pipeline that reads JSON learnt nothing of a twin, a digest, a path or a signature."""
    with closing(open_registry(root)) as registry:
        folder = root / "package-1"
        again = saved_again(folder, build_package(folder, 1, fresh_days=3650))
        registry.register(folder, again, actor="ana.silva")
    note = "finance@3 ('candidate') has the same weights: look whether it must go, too."
    assert json.loads(cli("reject", "finance@1", "--reason=worse", "--json").output)["notes"] == [note]
    said = cli("incident", "finance@1", "--reason=leaks", "--evidence=incident=REPORT").output
    assert f"Note: {note}" in said
    printed = json.loads(cli("file", "finance@2", "review", "REPORT", "--json").output)
    assert printed["sha256"][:12] in cli("history", "finance@2", "--json").output
    target = str(root / "exported")
    printed = json.loads(cli("export", "finance@2", target, "--for-review", "--json").output)
    assert printed["path"] == target
    assert all(row["notes"] == [] for row in json.loads(cli("status", "--json").output))


def test_json_of_an_approval_says_whether_it_is_signed(cli: Cli, root: Path) -> None:
    into_canary(cli, root, "finance@2")
    key = str(ssh_key("chen.wei"))
    said = ("approve", "finance@2", "--actor", "chen.wei", "--reason", "I read it", "--key", key, "--json")
    printed = json.loads(cli(*said).output)
    assert printed["signed"] is True and "1 more approval" in printed["missing"][0]


def test_due_is_empty_on_the_first_day_and_lists_what_expires(cli: Cli, root: Path) -> None:
    first = cli("due", "--check")
    assert "Nothing is due" in first.output and first.exit_code == 0
    registry = open_registry(root)
    registry.register(root / "package-3", build_package(root / "package-3", 3, fresh_days=-1))
    registry.close()
    (item,) = json.loads(cli("due", "--json").output)
    assert (item["id"], item["what"], item["overdue"]) == ("finance@3", "freshness", True)
    assert "overdue" in cli("due").output
    checked = cli("due", "--check")
    assert "overdue" in checked.output and checked.exit_code == 1


def test_verify_ends_with_1_and_names_the_record_when_something_is_off(cli: Cli, root: Path) -> None:
    result = cli("verify")
    assert (result.exit_code, "The registry verifies" in result.output) == (0, True)
    registry = open_registry(root)
    registry.db.rows("UPDATE versions SET state = 'production' WHERE number = 1")
    registry.close()
    result = cli("verify")
    assert result.exit_code == 1
    assert "the state of finance@1 was changed" in result.output
    result = cli("verify", "--no-files", "--json")
    assert (result.exit_code, json.loads(result.output)["ok"]) == (1, False)


def test_verify_says_which_keys_to_pin(cli: Cli, root: Path) -> None:
    assert "Note: no key is pinned" in cli("verify").output
    (key,) = (root / ".registry" / "keys").glob("*.pub")
    params = (root / "params.yaml").read_text(encoding="utf-8")
    pinned = f"  path: .registry\n  signing: {{trusted_keys: [{key.stem}]}}\n"
    (root / "params.yaml").write_text(params.replace("  path: .registry\n", pinned))
    result = cli("verify")
    assert (result.exit_code, "Note" in result.output) == (0, False)
    assert json.loads(cli("verify", "--json").output)["warnings"] == []


def test_a_tenant_that_nobody_knows_is_refused(cli: Cli) -> None:
    for command in ("list", "due"):
        with pytest.raises(LoraOpsError, match="There is no tenant 'nobody' \\(params.yaml has: finance, "):
            cli(command, "nobody")


def test_an_incident_is_linked_and_shown(cli: Cli) -> None:
    said = cli(
        "incident", "finance@1", "--reason=INC-7", "--evidence=incident=REPORT=leaks card numbers"
    ).output
    assert "has one more incident" in said
    assert "incidents    leaks card numbers" in cli("show", "finance@1").output
    with pytest.raises(LoraOpsError, match="evidence of kind 'incident'"):
        cli("incident", "finance@1", "--reason=INC-8")


@pytest.mark.usefixtures("written_by_hand")
def test_show_tells_of_the_gateways_setting_and_of_groups(cli: Cli, root: Path) -> None:
    folder = root / "package-3"
    manifest = build_package(folder, 3, fresh_days=3650)
    groups = {
        name: GroupMetric(rows=rows, value=Interval(value=value, low=value, high=value))
        for name, rows, value in (("Lodging", 81, 0.9), ("Airlines", 51, 0.6), ("Other", 3, 0.0))
    }
    registry = open_registry(root)
    measured = with_evaluation(folder, manifest, groups=groups, rows=135)
    registry.register(folder, measured, actor="ana.silva")
    registry.close()
    page = cli("show", "finance@3").output
    assert page.startswith("finance@3 is candidate and may serve today.\nNote: ")
    assert "nobody has approved it: the gateway serves it because serving.allow_candidates is on" in page
    report = str(measured.evaluation_report_sha256)[:8]
    assert f"largest gap 0.300 between groups with at least 10 rows (2 of 3), report {report}…" in page
    assert [line.split()[0] for line in page.splitlines() if " to 0." in line] == [
        "Lodging",
        "Airlines",
        "Other",
    ]


def test_sync_without_a_mirror_says_how_to_have_one(cli: Cli) -> None:
    with pytest.raises(LoraOpsError, match="no mirror: set `mirror: wandb` under `registry` in params.yaml"):
        cli("sync")


def test_sync_says_what_it_sent_and_what_it_put_back(cli: Cli, root: Path, server: WandbServer) -> None:
    write_params(root, {"registry": {"mirror": "wandb"}})
    assert "W&B (lora-ops-registry): 2 changes sent." in cli("sync").output
    collection = server.collection("finance")
    collection.aliases["candidate"] = collection.versions[0]
    said = cli("sync").output
    assert "nothing was missing" in said
    assert "put back: finance@candidate names finance@1 at W&B, and finance@2 in the audit log" in said
    assert json.loads(cli("sync", "--json").output) == {
        "target": "lora-ops-registry",
        "sent": 0,
        "restored": [],
    }
    assert cli("verify", "--mirror").exit_code == 0


def test_export_writes_a_verified_folder(cli: Cli, root: Path) -> None:
    assert "signature verified" in " ".join(cli("export", "finance@1", str(root / "out")).output.split())
    assert (root / "out" / "model.sig").is_file()


def test_what_is_given_empty_is_not_left_out(cli: Cli, root: Path) -> None:
    """A script whose variable is unset must not pass as if it had asked for nothing."""
    with pytest.raises(LoraOpsError, match="'' is no head of an audit log"):
        cli("verify", "--expect-head", "")
    with pytest.raises(LoraOpsError, match="'' is no head of an audit log"):
        cli("restore", str(root / "backups"), "--head", "")
    with pytest.raises(LoraOpsError, match="Say who does this"):
        cli("revoke", "finance@1", "--reason", "leaks names", "--actor", "")
    with pytest.raises(LoraOpsError, match="There is no tenant ''"):
        cli("list", "")


@pytest.mark.parametrize("option", ["gossip=REPORT", "policy", "policy=", "=REPORT"])
def test_what_is_no_evidence_is_refused(cli: Cli, option: str) -> None:
    with pytest.raises(LoraOpsError, match="is no evidence: write KIND=FILE"):
        cli("promote", "finance@1", "validated", "--reason=next", f"--evidence={option}")


def test_a_refusal_is_one_sentence_on_stderr(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lora_ops", "registry", "show", "finance@9"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LORA_OPS_ROOT": str(root)},
    )
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr == (
        "lora-ops: The registry has no finance@9 (there are: finance@candidate, finance@1, finance@2).\n"
    )


def test_the_commands_load_without_the_registry() -> None:
    """So that `lora-ops --help` stays quick."""
    code = "import sys, lora_ops.registry.commands as _; print('lora_ops.registry.store' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr
