"""No version is validated without a regression report against what is in production now."""

import json
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.gates.gate import gate_rows, replay
from lora_ops.gates.gather import gather
from lora_ops.gates.held_out import packaged_rows
from lora_ops.gates.packages_differ import unlike_packages
from lora_ops.gates.regression import regression_report
from lora_ops.hashing import canonical, sha256_file, sha256_text
from lora_ops.paths import CASE_ANSWERS, CASES
from lora_ops.records.evaluation import ADAPTER, ColumnBias, GroupMetric, Interval
from lora_ops.records.evidence import Source
from lora_ops.records.manifest import FileRecord
from lora_ops.records.regression import PackagedAnswers, RegressionSource
from lora_ops.records.suite import AnswersRecord
from lora_ops.registry import lifecycle, requirements
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.reports import Report, make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.suite import Slice

from ..gates.sources import BASE, DIGEST, EVALUATED, answers, given_again, source, suite, with_answers_again
from .conftest import AUTHOR, Build, Story, with_card


@pytest.fixture
def asking(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 is in production by the rules of a registry without suites; from now on a report is needed."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    registry.least = registry.least.model_copy(update={"regression": True})
    return registry


def report(
    registry: Registry, *, against: str | None = "finance@1", wrong: int = 0, **options: object
) -> Report:
    version = registry.get("finance@2")
    others = {"base": BASE}
    if against:
        digest = registry.get(against).summary.content_digest
        others["production"] = ("production", against, digest, ())
    given = source(suite(**options), candidate=range(wrong), digest=version.summary.content_digest, **others)
    given = with_answers_again(registry, version, given)
    document = regression_report(given, "finance", registry.clock())
    return Report(document, given.to_json().encode(), "its suite")


def file(registry: Registry, given: Report) -> None:
    lifecycle.file_evidence(registry, "finance@2", given, actor="ci")


def lacking(registry: Registry) -> str:
    return "; ".join(missing_for(registry, "finance@2")[1])


def test_a_version_needs_a_report(asking: Registry, story: Story) -> None:
    story.file("policy", about="finance@2")
    assert lacking(asking).startswith("evidence of kind 'regression' (`lora-ops gate finance@")
    file(asking, report(asking))
    assert lacking(asking) == ""
    lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes")
    assert not verify(asking).problems


def test_a_gap_of_answers_given_again_refuses(asking: Registry, story: Story) -> None:
    """The package showed none: some of its answers may be others than the adapter gives."""
    story.file("policy", about="finance@2")
    given = source(suite(), digest=asking.get("finance@2").summary.content_digest)
    of = {"a": GroupMetric(rows=50, value=Interval(value=0.9, low=0.8, high=1))}
    of["b"] = GroupMetric(rows=10, value=Interval(value=0.1, low=0, high=0.2))
    wide = ColumnBias(groups=of, best="a", worst="b", gap=Interval(value=0.8, low=0.6, high=0.9))
    assert given.evaluated
    given = given.model_copy(update={"evaluated": given.evaluated.model_copy(update={"bias": {"part": wide}})})
    document = regression_report(given, "finance", asking.clock())
    file(asking, Report(document, given.to_json().encode(), "its suite"))
    assert "gap" not in lacking(asking)
    asking.max_gap["finance"] = 0.3
    assert "held-out answers, given again, whose gap by part is not clearly above" in lacking(asking)
    rows = {row.gate: row.verdict for row in gate_rows(asking, asking.get("finance@2"))}
    assert rows["gap by part, answered again"] == "fail"


def test_failed_answers_given_again_stay_a_note(asking: Registry, story: Story) -> None:
    """A newer report took the place of one by which the package was made up, and nobody saw that."""
    story.file("policy", about="finance@2")
    given = source(suite(), digest=asking.get("finance@2").summary.content_digest)
    assert given.evaluated
    wrong = given.model_copy(update={"evaluated": given.evaluated.model_copy(update={"is_alike": False})})
    document = regression_report(wrong, "finance", asking.clock())
    file(asking, Report(document, wrong.to_json().encode(), "its suite"))
    file(asking, report(asking))
    assert lacking(asking) == ""
    notes = " ".join(gate_notes(asking, asking.get("finance@2")))
    assert "an earlier regression report did not pass" in notes
    assert "held-out rows answered again: fail), and a newer one counts" in notes


def test_a_failing_report_refuses_the_step(asking: Registry, story: Story) -> None:
    story.file("policy", about="finance@2")
    file(asking, report(asking, wrong=20))
    with pytest.raises(Refused, match=r"plain against finance@1: fail"):
        lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="no")


def test_an_undecided_report_refuses_the_step(asking: Registry, story: Story) -> None:
    story.file("policy", about="finance@2")
    file(asking, report(asking, rows=12))
    assert "plain against finance@1: undecided" in lacking(asking)


@pytest.mark.parametrize("against", [None, "finance@2"])
def test_a_report_against_another_baseline_is_none(asking: Registry, story: Story, against: str | None) -> None:
    """A version can't be its own baseline, and one of a time without production proves nothing today."""
    story.file("policy", about="finance@2")
    file(asking, report(asking, against=against))
    assert "a regression report against finance@1, which is in production now" in lacking(asking)


def test_nobody_files_a_report_by_hand(asking: Registry, tmp_path: Path) -> None:
    path = tmp_path / "regression.json"
    path.write_bytes(report(asking).source)
    with pytest.raises(LoraOpsError, match="lora-ops gate finance@2"):
        make(asking, "finance@2", "regression", path)


def test_a_version_of_before_returns_without_a_report(asking: Registry, story: Story, tmp_path: Path) -> None:
    """A rollback to what was promoted by earlier rules must not wait for a report."""
    file(asking, report(asking))
    for step in ("validated", "shadow", "canary"):
        kinds = {"validated": ["policy"], "shadow": ["human_evaluation"], "canary": ["shadow"]}[step]
        given = story.evidence(*kinds, about="finance@2")
        lifecycle.promote(asking, "finance@2", step, actor="ci", reason="next", evidence=given)  # type: ignore[arg-type]
    story.file("canary", about="finance@2")
    story.approve("finance@2")
    lifecycle.promote(asking, "finance@2", "production", actor="ci", reason="next")
    given = story.evidence("incident", about="finance@2")
    lifecycle.promote(asking, "finance@1", "production", actor="ben", reason="bad", evidence=given)
    assert asking.named("finance", "production") == 1
    assert not verify(asking).problems


def test_a_later_report_keeps_no_version_from_returning(asking: Registry, story: Story) -> None:
    """Somebody gated the version of before by today's suite, which it fails."""
    asking.least = asking.least.model_copy(update={"regression": False})
    story.to("finance@2", "production")
    digest = asking.get("finance@1").summary.content_digest
    given = source(suite(must_pass=1), candidate=range(40), adapter="finance@1", digest=digest, base=BASE)
    document = regression_report(given, "finance", asking.clock())
    late = Report(document, given.to_json().encode(), "its suite")
    lifecycle.file_evidence(asking, "finance@1", late, actor="ci")
    told = story.evidence("incident", about="finance@2")
    lifecycle.promote(asking, "finance@1", "production", actor="ben", reason="bad", evidence=told)
    assert asking.named("finance", "production") == 1
    assert not verify(asking).problems


def test_a_stale_report_that_nobody_asks_for_stops_no_step(asking: Registry, story: Story) -> None:
    story.file("policy", about="finance@2")
    file(asking, report(asking, against=None))
    asking.least = asking.least.model_copy(update={"regression": False})
    assert lacking(asking) == ""


def test_gate_rows_and_replay_read_the_kept_report(asking: Registry) -> None:
    given = report(asking, wrong=20)
    source_of = RegressionSource.model_validate_json(given.source)
    document = regression_report(source_of, "finance", asking.clock())
    file(asking, Report(document, source_of.to_json().encode(), "its suite"))
    rows = {row.gate: row for row in gate_rows(asking, asking.get("finance@2"))}
    assert rows["held-out rows answered again"].verdict == "pass"
    assert rows["plain against finance@1"].verdict == "fail"
    assert rows["plain against base"].verdict == "pass"
    assert rows["policy"].verdict == rows["human review"].verdict == "missing"
    assert list(replay(asking, asking.get("finance@2"))) == []


def test_replay_says_where_a_report_was_made_up(asking: Registry) -> None:
    """Whoever files a kinder document over honest answers is found by anybody."""
    honest = report(asking, wrong=20)
    kinder = honest._replace(
        document=report(asking).document.model_copy(update={"source": honest.document.source})
    )
    file(asking, kinder)
    found = list(replay(asking, asking.get("finance@2")))
    assert any("verdict" in one or "candidate" in one for one in found), canonical(found)


def test_gate_notes_name_a_suite_that_asks_less(asking: Registry, story: Story) -> None:
    file(asking, report(asking, rows=40, plain=Slice(about="a", margin=0.3)))
    given = source(suite(), adapter="finance@1", digest=asking.get("finance@1").summary.content_digest)
    document = regression_report(given, "finance", asking.clock())
    before = Report(document, given.to_json().encode(), "its suite")
    lifecycle.file_evidence(asking, "finance@1", before, actor="ci")
    notes = " ".join(gate_notes(asking, asking.get("finance@2")))
    assert "its suite leaves out cases of finance@1, which was in production: plain-40, " in notes
    assert "and 15 more" in notes
    assert "plain margin 0.3, not 0.15" in notes


def test_gate_notes_compare_with_the_suite_of_the_promotion(
    registry: Registry, package: Build, story: Story
) -> None:
    """Whoever gated production again by a kinder suite hid that its follower is held to less."""

    def gated(reference: str, **options: Slice) -> None:
        digest = registry.get(reference).summary.content_digest
        given = source(suite(**options), adapter=reference, digest=digest, base=BASE)
        given = with_answers_again(registry, registry.get(reference), given)
        kept = Report(regression_report(given, "finance", registry.clock()), given.to_json().encode(), "suite")
        lifecycle.file_evidence(registry, reference, kept, actor="ci")

    registry.register(*package(1), actor=AUTHOR)
    gated("finance@1")
    registry.least = registry.least.model_copy(update={"regression": True})
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    kinder = Slice(about="a", margin=0.6)
    gated("finance@1", plain=kinder)
    gated("finance@2", plain=kinder)
    assert "plain margin 0.6, not 0.15" in " ".join(gate_notes(registry, registry.get("finance@2")))


def without_base(registry: Registry, package: Build, root: Path, wrong: int) -> RegressionSource:
    """Gather what a report on finance@3 rests on, whose package claims answers, where no base model is."""
    folder, manifest = package(3)
    one = registry.get("finance@1").manifest.base_model
    data = manifest.data.model_copy(update={"base_model_sha256": one.sha256})
    training = manifest.training.model_copy(update={"base_model_sha256": one.sha256})
    manifest = with_card(
        folder, manifest.model_copy(update={"base_model": one, "data": data, "training": training})
    )
    weights, base = (manifest.files["adapter_model.safetensors"].sha256, manifest.base_model.sha256)
    cases = suite().model_copy(update={"base_model_sha256": base})
    claimed = AnswersRecord(
        tenant="finance",
        base_model_sha256=base,
        adapter_sha256=weights,
        adapter_config_sha256=None,
        cases_sha256=DIGEST,
        answers=answers(cases, range(wrong)),
    )
    (folder / CASES).write_text(cases.to_json())
    (folder / CASE_ANSWERS).write_text(claimed.to_json())
    more = {
        name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
        for name in (CASES, CASE_ANSWERS)
    }
    registry.register(folder, manifest.model_copy(update={"files": {**manifest.files, **more}}), actor=AUTHOR)
    for before in ("finance@1", "finance@2"):
        others = {"base": ("base", "base", manifest.base_model.digest, range(30))}
        digest = registry.get(before).summary.content_digest
        given = source(cases, adapter=before, digest=digest, **others)  # type: ignore[arg-type]
        document = regression_report(given, "finance", registry.clock())
        kept = Report(document, given.to_json().encode(), "its suite")
        lifecycle.file_evidence(registry, before, kept, actor="ci")
    return gather(registry, registry.get("finance@3"), root).source


def test_packaged_answers_that_nobody_gave_again_are_no_evidence(
    asking: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """Whoever edited the answers in the package passed wherever the base model was not there to ask again."""
    given = without_base(asking, package, tmp_path, wrong=0)
    assert given.packaged == PackagedAnswers(packaged=60, given_again=0, differing=0, suite="package")
    story.file("policy", about="finance@3")
    document = regression_report(given, "finance", asking.clock())
    kept = Report(document, given.to_json().encode(), "its suite")
    lifecycle.file_evidence(asking, "finance@3", kept, actor="ci")
    rows = {row.gate: row for row in gate_rows(asking, asking.get("finance@3"))}
    assert rows["plain against finance@1"].verdict == "pass"
    assert rows["packaged answers given again"].verdict == "missing"
    assert "`dvc repro base_model`, then `lora-ops gate finance@3`" in rows["packaged answers given again"].note
    with pytest.raises(Refused, match="its 60 packaged answers again"):
        lifecycle.promote(asking, "finance@3", "validated", actor="ci", reason="no")
    assert rows["held-out rows answered again"].verdict == "missing"
    asking.least = asking.least.model_copy(update={"answers_again": False})
    with pytest.raises(Refused, match="answer its 300 held-out rows again"):
        lifecycle.promote(asking, "finance@3", "validated", actor="ci", reason="no")
    asking.least = asking.least.model_copy(update={"evaluation_again": False})
    lifecycle.promote(asking, "finance@3", "validated", actor="ci", reason="its machine has no base model")
    assert not verify(asking).problems


def test_gate_without_base_keeps_what_an_earlier_one_asked(
    asking: Registry, package: Build, tmp_path: Path
) -> None:
    """A second gate on a machine without the base model took the place of the report that had asked."""
    given = without_base(asking, package, tmp_path, wrong=3)
    asked = given.model_copy(update={"packaged": given_again(60)})
    kept = Report(regression_report(asked, "finance", asking.clock()), asked.to_json().encode(), "its suite")
    lifecycle.file_evidence(asking, "finance@3", kept, actor="ci")
    assert gather(asking, asking.get("finance@3"), tmp_path).source == asked


def test_report_of_an_earlier_release_lets_production_stand(asking: Registry, story: Story) -> None:
    """What rested on it stands, and the next step needs a new one."""
    older = report(asking)
    given = RegressionSource.model_validate_json(older.source).model_dump(mode="json", exclude={"packaged"})
    text = json.dumps(given)
    document = older.document.model_copy(
        update={"packaged": None, "source": Source(name="regression.json", sha256=sha256_text(text), bytes=9)}
    )
    asking.least = asking.least.model_copy(update={"answers_again": False})
    story.file("policy", about="finance@2")
    file(asking, Report(document, text.encode(), "its suite"))
    lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes")
    asking.least = asking.least.model_copy(update={"answers_again": True})
    assert not verify(asking).problems
    assert "an earlier release made it: run `lora-ops gate finance@2`" in lacking(asking)
    assert not [one for one in replay(asking, asking.get("finance@2")) if "source" in one]


def test_replay_compares_a_source_with_the_packages(asking: Registry, package: Build, tmp_path: Path) -> None:
    """A source of made-up answers gives its own report again; the package has others."""
    given = without_base(asking, package, tmp_path, wrong=9)
    kinder = given.systems[0].model_copy(update={"answers": answers(given.cases)})
    few = given_again(40)
    made_up = given.model_copy(update={"systems": (kinder, *given.systems[1:]), "packaged": few})
    document = regression_report(made_up, "finance", asking.clock())
    kept = Report(document, made_up.to_json().encode(), "its suite")
    lifecycle.file_evidence(asking, "finance@3", kept, actor="ci")
    assert list(replay(asking, asking.get("finance@3"))) == [
        "regression.systems.finance@3 has other answers than its package to plain-0, plain-1, plain-2, "
        "plain-3, plain-4 and 4 more",
        "regression.packaged is 40, and the package has 60 answers to these cases",
    ]


def test_replay_compares_held_out_rows_with_the_packages(
    asking: Registry, package: Build, tmp_path: Path
) -> None:
    given = without_base(asking, package, tmp_path, wrong=0)
    assert len(given.held_out) == 300
    row = given.held_out[0].model_copy(update={"candidate": "Nothing"})
    made_up = given.model_copy(update={"held_out": (row, *given.held_out[1:])})
    for source_of, said in ((given, []), (made_up, ["299 of the 300 rows"])):
        document = regression_report(source_of, "finance", asking.clock())
        kept = Report(document, source_of.to_json().encode(), "its suite")
        lifecycle.file_evidence(asking, "finance@3", kept, actor="ci")
        found = list(replay(asking, asking.get("finance@3")))
        assert len(found) == len(said) and all(part in one for part, one in zip(said, found, strict=True))


def test_held_out_rows_compare_the_answers_given_again(
    asking: Registry, package: Build, tmp_path: Path
) -> None:
    """Of 300 packaged answers 9 may be others, which is more than the margin of some comparisons."""
    given = without_base(asking, package, tmp_path, wrong=0)
    again = {ADAPTER: tuple(f"again {place}" for place in range(300))}
    asked = given.model_copy(update={"evaluated": EVALUATED, "evaluation_answers": again})
    kept = Report(regression_report(asked, "finance", asking.clock()), asked.to_json().encode(), "its suite")
    lifecycle.file_evidence(asking, "finance@3", kept, actor="ci")
    version = asking.get("finance@3")
    found = gather(asking, version, tmp_path).source
    texts = [sha256_text(text) for text in packaged_rows(asking, version)["text"]]
    assert {one.key: one.candidate for one in found.held_out} == dict(zip(texts, again[ADAPTER], strict=True))
    for source_of in (found, asked):  # an earlier release compared the packaged ones
        assert not [one for one in unlike_packages(asking, version, source_of) if "held_out" in one]
    made_up = found.model_copy(update={"held_out": (*given.held_out[:9], *found.held_out[9:])})
    assert [one for one in unlike_packages(asking, version, made_up) if "291 of the 300 rows" in one]


def test_verify_names_a_step_that_rests_on_another_baseline(
    asking: Registry, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes the log by another program rests a step on a report against something weaker."""
    story.file("policy", about="finance@2")
    file(asking, report(asking, against=None))
    monkeypatch.setattr(requirements, "_other_baseline", lambda *given: iter(()))
    lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes")
    [problem] = verify(asking).problems
    assert "a regression report against finance@1, which was in production then" in problem
    assert "(the last one is against no version)" in problem
