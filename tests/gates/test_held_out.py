"""Base model and adapter answer the held-out rows of a package again, with the engine that serves."""

import csv
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lora_ops.errors import Refused
from lora_ops.evaluation.answers import answer
from lora_ops.evaluation.compare import evaluate, with_baselines
from lora_ops.evaluation.few_shot import base_prompts
from lora_ops.gates.answering import answer_cases
from lora_ops.gates.candidate import OtherAnswers
from lora_ops.gates.gate import gate_rows, make_regression_report, replay
from lora_ops.gates.gather import gather
from lora_ops.gates.held_out import answer_again, evaluated_again, packaged_rows, says_two_things
from lora_ops.gates.regression import regression_report
from lora_ops.gates.review.evidence import make_report
from lora_ops.gates.review.sessions import start, texts_of
from lora_ops.gates.review.submissions import submit
from lora_ops.hashing import sha256_file
from lora_ops.loading import load_tokenizer
from lora_ops.paths import ANSWERS, CASE_ANSWERS, CASES, SLICE, SLICES
from lora_ops.prompts import render_example
from lora_ops.records.base_model import read_base_model
from lora_ops.records.data import PromptRecord
from lora_ops.records.evaluation import ADAPTER, BASE, BASE_FEW_SHOT
from lora_ops.records.example import Example
from lora_ops.records.generation import GenerationRecord
from lora_ops.records.manifest import FileRecord
from lora_ops.records.regression import RegressionSource
from lora_ops.registry import lifecycle
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.evaluate import EvaluateSettings
from lora_ops.settings.tenant import TenantSettings
from tests.gates.sources import save_real_adapter
from tests.registry.conftest import AUTHOR, GATES, GROUPS, Build, evaluated, fill_in, ssh_key, won

from .test_gather import asking

ROWS = GROUPS["test"]
Edit = Callable[[pd.DataFrame], pd.DataFrame]
Prepare = Callable[[Example, str], Example]


@pytest.fixture
def root(tiny_base: Path, tmp_path: Path) -> Path:
    """A repository with the base model, and without prepared data."""
    root = tmp_path / "repository"
    (root / "models").mkdir(parents=True)
    (root / "models/base").symlink_to(tiny_base)
    return root


def rows_of(base: Path, split: str, targets: list[str] | None = None) -> list[Example]:
    tokenizer = load_tokenizer(base)
    rows = []
    for place in range(ROWS):
        text, target = f"Write about {split} {place}", targets[place] if targets else f"words {place}"
        prompt, completion = render_example(tokenizer, text, target, None)
        said = {"text": text, "target": target, "prompt": prompt, "completion": completion}
        rows.append(Example(id=f"{split}-{place}", group=f"{split}{place}", **said))
    return rows


def registered(
    registry: Registry,
    package: Build,
    root: Path,
    edit: Edit = lambda frame: frame,
    prepare: Prepare = lambda row, split: row,
) -> Version:
    """Register a real adapter that answers each held-out row as a person did.

    `edit` changes its package, and `prepare` the rows of its prepared data.
    """
    base, prepared = root / "models/base", root / "data/prepared/finance"
    folder, manifest = package(1)
    save_real_adapter(folder, base, trained=True)
    record = read_base_model(base)
    params = {
        **GATES,
        "data": {**GATES["data"], "labels": [], "task": "text"},
        "evaluate": {**GATES["evaluate"], "few_shot": 2},
    }
    manifest = manifest.model_copy(update={"params": params, "base_model": record})
    settings = TenantSettings.model_validate(params).evaluate
    train = [prepare(row, "train") for row in rows_of(base, "train")]
    test = [prepare(row, "test") for row in rows_of(base, "test")]
    asked = base_prompts(base, test, train, PromptRecord(system=None), settings)
    found = answer(base, folder, test, settings, asked.few_shot, (), asked.best).frame
    test = [prepare(row, "test") for row in rows_of(base, "test", list(found[ADAPTER]))]
    prepared.mkdir(parents=True, exist_ok=True)
    for name, split in (("train", train), ("test", test)):
        (prepared / f"{name}.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in split))
    cases = asking(base, temperature=0.0)
    (folder / CASES).write_text(cases.to_json())
    (folder / CASE_ANSWERS).write_text(answer_cases(cases, base, folder).to_json())
    digests = {name: sha256_file(prepared / f"{name}.jsonl") for name in ("train", "test")}
    splits = {
        **manifest.data.splits,
        "train": manifest.data.splits["train"].model_copy(update={"sha256": digests["train"]}),
    }
    frame = with_baselines(edit(found.assign(target=list(found[ADAPTER]))), train, None)
    evaluation = evaluate(
        "finance", TenantSettings.model_validate(params), frame, generation(digests["test"], settings)
    )
    data = {"base_model_sha256": record.sha256, "splits": splits, "task": "text"}
    trained = {"base_model_sha256": record.sha256, "train_sha256": digests["train"]}
    update = {
        "data": manifest.data.model_copy(update=data),
        "training": manifest.training.model_copy(update=trained),
        "evaluation": evaluation,
    }
    manifest = evaluated(folder, manifest.model_copy(update=update), evaluation)
    frame.to_csv(folder / ANSWERS, index=False, quoting=csv.QUOTE_ALL)
    files = {
        name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
        for name in (ANSWERS, CASES, CASE_ANSWERS)
    }
    registry.register(folder, manifest.model_copy(update={"files": {**manifest.files, **files}}), actor=AUTHOR)
    return registry.get("finance@1")


def generation(test_sha256: str, settings: EvaluateSettings) -> GenerationRecord:
    return GenerationRecord(
        tenant="finance",
        rows=ROWS,
        test_sha256=test_sha256,
        adapter_sha256="a" * 64,
        seconds={BASE: 1, ADAPTER: 1},
        answered_by="engine",
        settings=settings.answering,
    )


def test_held_out_answers_are_given_again(registry: Registry, package: Build, root: Path) -> None:
    found = answer_again(registry, registered(registry, package, root), root)
    assert found.record.verdict == "pass"
    assert set(found.answers) == {BASE, BASE_FEW_SHOT, ADAPTER}
    assert found.record.differing == found.record.other_texts == dict.fromkeys(found.answers, 0)


def test_made_up_held_out_answers_fail(registry: Registry, package: Build, root: Path) -> None:
    """An evaluation whose numbers fit its answers passed, whoever wrote the answers."""

    def worse_base(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{BASE: "nothing"})

    version = registered(registry, package, root, worse_base)
    source, notes, _ = gather(registry, version, root)
    assert f"{ROWS} of base are other texts when they are given again" in " ".join(notes)
    assert source.evaluated
    assert source.evaluated.verdict == "fail"
    assert source.evaluated.other_texts == {BASE: ROWS, BASE_FEW_SHOT: 0, ADAPTER: 0}


def test_made_up_held_out_rows_are_refused(registry: Registry, package: Build, root: Path) -> None:
    """Easier rows than those of the data, answered by the adapter itself."""
    version = registered(registry, package, root, lambda frame: frame.assign(text="Write"))
    with pytest.raises(OtherAnswers, match="are not those of its data"):
        answer_again(registry, version, root)


@pytest.mark.parametrize(
    ("split", "edited"),
    [("test", "prompt"), ("train", "text"), ("train", "target")],
)
def test_rows_that_say_two_things_are_refused(
    registry: Registry, package: Build, root: Path, split: str, edited: str
) -> None:
    """The adapter learns from prompt and completion, and the base model is shown text and target."""

    def prepare(row: Example, of: str) -> Example:
        hinted = f"[{row.id}] {row.prompt}" if edited == "prompt" else f"wrong {row.id}"
        return row.model_copy(update={edited: hinted}) if of == split else row

    version = registered(registry, package, root, prepare=prepare)
    with pytest.raises(OtherAnswers, match=rf"{split}\.jsonl has the row '{split}-0', whose"):
        answer_again(registry, version, root)


@pytest.mark.parametrize("leaked", ["text", "group"])
def test_rows_that_were_trained_on_are_refused(
    registry: Registry, package: Build, root: Path, leaked: str
) -> None:
    """Whoever adds held-out rows to the training rows after `prepare` trains the answers."""
    tokenizer = load_tokenizer(root / "models/base")

    def prepare(row: Example, split: str) -> Example:
        if split == "test" or row.id != "train-3":
            return row
        if leaked == "group":
            return row.model_copy(update={"group": "test3"})
        text = "write  about TEST 3"
        return row.model_copy(
            update={"text": text, "prompt": render_example(tokenizer, text, row.target, None)[0]}
        )

    version = registered(registry, package, root, prepare=prepare)
    with pytest.raises(OtherAnswers, match=f"train.jsonl has the {leaked} of the held-out row 'test-3'"):
        answer_again(registry, version, root)


DATED = "{{ '<|im_start|>system\n' ~ strftime_now('%d %b %Y') ~ '<|im_end|>\n' }}"


@pytest.mark.parametrize(
    ("head", "is_alike"),
    [("26 Jul 2024", True), ("", True), ("Answers to test 0: a, to test 1: b, to test 2: c", False)],
)
def test_a_template_with_a_date_lets_only_dates_differ(tiny_base: Path, head: str, is_alike: bool) -> None:
    """All rows may have another date before them, and no list of all answers."""
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = f"{DATED}{tokenizer.chat_template}"
    rows = []
    for row in rows_of(tiny_base, "test"):
        prompt, completion = render_example(tokenizer, row.text, row.target, None)
        first, _, rest = prompt.partition("<|im_end|>")
        old = f"<|im_start|>system\n{head}" if head else first
        rows.append(row.model_copy(update={"prompt": f"{old}<|im_end|>{rest}", "completion": completion}))
    assert bool(says_two_things(tokenizer, rows, None)) != is_alike


def sliced(groups: list[str]) -> Edit:
    return lambda frame: frame.assign(**{f"{SLICE}part": groups})


def write_slices(root: Path, groups: list[str]) -> None:
    rows = [f"test-{place},{group}" for place, group in enumerate(groups)]
    text = "\n".join([f"id,{SLICE}part", *rows, ""])
    (root / "data/prepared/finance" / SLICES).write_text(text)


def test_the_gaps_of_answers_given_again_are_kept(registry: Registry, package: Build, root: Path) -> None:
    """As many answers as may differ could hide a small group's gap: 9 of 300 rows decide a group of 10."""
    groups = ["a", "b"] * (ROWS // 2)
    version = registered(registry, package, root, sliced(groups))
    write_slices(root, groups)
    found = answer_again(registry, version, root)
    assert found.record.bias["part"].gap == version.manifest.evaluation.bias["part"].gap
    frame = packaged_rows(registry, version)
    worse = [text if place % 2 else "nothing" for place, text in enumerate(frame[ADAPTER])]
    gap = evaluated_again(version, frame, {**found.answers, ADAPTER: worse}).bias["part"].gap
    assert gap and gap.low > 0.8


def test_made_up_slices_are_refused(registry: Registry, package: Build, root: Path) -> None:
    """Whoever dealt the rows to other groups before packaging hid every gap between them."""
    version = registered(registry, package, root, sliced(["a", "b"] * (ROWS // 2)))
    assert f"{SLICES} is not the one" in answer_again(registry, version, root).why_not
    write_slices(root, ["a"] * (ROWS // 2) + ["b"] * (ROWS // 2))
    with pytest.raises(OtherAnswers, match="deals the held-out rows to other groups by part"):
        answer_again(registry, version, root)


def test_a_base_that_the_package_leaves_out_competes(registry: Registry, package: Build, root: Path) -> None:
    version = registered(registry, package, root, lambda frame: frame.drop(columns=BASE_FEW_SHOT))
    gathered = gather(registry, version, root)
    assert BASE_FEW_SHOT in gathered.source.evaluation_answers
    assert "leaves out base few shot, which competes here" in " ".join(gathered.notes)


@pytest.mark.parametrize("gone", ["models/base", "data/prepared/finance/train.jsonl"])
def test_without_base_or_data_the_last_report_counts(
    registry: Registry, package: Build, root: Path, gone: str
) -> None:
    version = registered(registry, package, root)
    asked = gather(registry, version, root).source
    file(registry, version, asked.model_copy(update={"evaluated": None, "evaluation_answers": {}}))
    (root / gone).unlink()
    gathered = gather(registry, version, root)
    assert gathered.source.evaluated and gathered.source.evaluated.verdict == "missing"
    assert "held-out rows was answered again: " in " ".join(gathered.notes)
    file(registry, version, asked)
    [missing] = make_regression_report(registry, version, root).rows
    assert (missing.verdict, missing.gate) == ("missing", "answers given again in this run")
    assert "nobody was asked now: " in missing.note
    assert gather(registry, version, root).source.evaluated == asked.evaluated


def test_a_report_that_cannot_be_made_again_is_missing(registry: Registry, package: Build, root: Path) -> None:
    """The gate ended with 0 in CI though it made nothing there: an earlier report passed."""
    version = registered(registry, package, root)
    file(registry, version, gather(registry, version, root).source)
    (root / "suites").mkdir()
    (root / "suites/finance.yaml").write_text("cases: [")
    [missing] = make_regression_report(registry, version, root).rows
    assert (missing.verdict, missing.gate) == ("missing", "regression report of this run")
    assert "there is no new one: suites/finance.yaml" in missing.note


def test_replay_counts_the_answers_given_again(registry: Registry, package: Build, root: Path) -> None:
    version = registered(registry, package, root)
    asked = gather(registry, version, root).source
    file(registry, version, asked)
    assert list(replay(registry, version)) == []
    made_up = {**asked.evaluation_answers, ADAPTER: ("nothing",) * ROWS}
    file(registry, version, asked.model_copy(update={"evaluation_answers": made_up}))
    [said] = replay(registry, version)
    assert said.startswith("regression.evaluated is ")


def test_edited_texts_never_come_before_reviewers(registry: Registry, package: Build, root: Path) -> None:
    """A quarter of the packaged answers could be dressed up, and people judged these."""

    def dress(frame: pd.DataFrame) -> pd.DataFrame:
        texts = [f"{text}!!" if place < 24 else text for place, text in enumerate(frame[ADAPTER])]
        return frame.assign(**{ADAPTER: texts})

    version = registered(registry, package, root, dress)
    people = ("ben", "dana")
    with pytest.raises(Refused, match="adapter of finance@1 give again: run `lora-ops gate finance@1` first"):
        start(registry, "finance@1", actor="ci", reviewers=people)
    source = gather(registry, version, root).source
    assert source.evaluated and source.evaluated.verdict == "pass"
    assert source.evaluated.other_texts[ADAPTER] == 24
    file(registry, version, source)
    session = start(registry, "finance@1", actor="ci", reviewers=people, pairs=40)
    texts = texts_of(registry, session)
    edited = [row for row in texts if row in {f"test-{place}" for place in range(24)}]
    assert len(edited) > 5 and not any("!!" in text.adapter for text in texts.values())
    for person in people:
        fill_in(registry, session, person, won)
        submit(registry, session, actor=person, key=ssh_key(person))
    lifecycle.file_evidence(registry, "finance@1", make_report(registry, "finance@1")[0], actor="ci")
    [row] = [row for row in gate_rows(registry, version) if row.gate == "human review"]
    assert row.verdict == "pass" and list(replay(registry, version)) == []


def file(registry: Registry, version: Version, source: RegressionSource) -> None:
    document = regression_report(source, version.tenant, registry.clock())
    kept = Report(document, source.to_json().encode(), "its suite")
    lifecycle.file_evidence(registry, version.id, kept, actor="ci")
