"""The page and the tables of a version: what reviewers said stands beside the answers."""

import pandas as pd

from lora_ops.evaluation.compare import samples
from lora_ops.gates.gate import gate_rows
from lora_ops.gates.report import Shown, before_after, read_shown, report_page
from lora_ops.gates.review.annotated import annotated_pairs
from lora_ops.gates.review.sessions import start
from lora_ops.gates.tables import version_tables
from lora_ops.hashing import sha256_file
from lora_ops.paths import ANSWERS, SAMPLES
from lora_ops.records.manifest import FileRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.tenant import TenantSettings
from tests.gates.review.test_evidence import RATED, hand_in, make_report
from tests.gates.sources import file_answers_again
from tests.registry.conftest import AUTHOR, Build

SAID = "reads like <b>a lawyer</b> & co"


def review(registry: Registry, package: Build, pairs: int = 20, **more: object) -> None:
    folder, manifest = package(1)
    answers = pd.read_csv(folder / ANSWERS, dtype=str, keep_default_na=False)
    evaluate = TenantSettings.model_validate(manifest.params).evaluate
    samples(answers, evaluate.samples, evaluate.seed).to_csv(folder / SAMPLES, index=False)
    drawn = FileRecord(bytes=(folder / SAMPLES).stat().st_size, sha256=sha256_file(folder / SAMPLES))
    manifest = manifest.model_copy(update={"files": {**manifest.files, SAMPLES: drawn}})
    registry.register(folder, manifest, actor=AUTHOR)
    file_answers_again(registry, "finance@1")
    people = ("ben", "chen", "dana")
    session = start(registry, "finance@1", actor="ci", reviewers=people, pairs=pairs, annotators=2, seed=7)
    hand_in(registry, session, **more)  # type: ignore[arg-type]
    lifecycle.file_evidence(registry, "finance@1", make_report(registry, "finance@1")[0], actor="ben")


def everything(registry: Registry, version: Version) -> Shown:
    return read_shown(registry, version, gate_rows(registry, version))


def test_annotations_stand_beside_the_answers(registry: Registry, package: Build) -> None:
    review(registry, package, comment=SAID, corrected="Airlines", breach={"left": "advice"}, **RATED)
    version = registry.get("finance@1")
    pairs = annotated_pairs(registry, version)
    assert len(pairs) == 21 and all(len(pair.said) == 2 and pair.has_words for pair in pairs)
    page = report_page(registry, version, everything(registry, version))
    assert "reads like &lt;b&gt;a lawyer&lt;/b&gt; &amp; co; should be: Airlines" in page
    assert "<b>a lawyer" not in page and "answer breaches: advice" in page
    assert "Krippendorff&#39;s alpha is 1.000" in page or "Krippendorff's alpha is 1.000" in page
    tables = version_tables(everything(registry, version))
    notes = tables["annotations"]
    assert len(notes) == 42 and set(notes["reviewer"]) == {"ben", "chen", "dana"}
    assert set(notes["comment"]) == {SAID} and set(notes["accuracy (adapter)"]) == {4}


def test_samples_carry_what_was_said_of_their_row(registry: Registry, package: Build) -> None:
    review(registry, package, pairs=60, comment=SAID)
    version = registry.get("finance@1")
    pairs = annotated_pairs(registry, version)
    shown = before_after(registry, version, None, pairs)
    judged = {pair.text for pair in pairs}
    assert {one.text for one in shown if one.reviewers} == {one.text for one in shown} & judged
    assert any(one.reviewers for one in shown)


def test_samples_are_answers_given_again(registry: Registry, package: Build) -> None:
    """Approvers read the packaged samples, a quarter of which could be dressed up."""
    review(registry, package)
    version = registry.get("finance@1")
    packaged = before_after(registry, version, None)
    assert {one.adapter for one in packaged} == {"Food", "Travel"}
    file_answers_again(registry, "finance@1", adapter=["Food!"] * 300, base=["Travel?"] * 300)
    shown = before_after(registry, version, None)
    assert {(one.base, one.adapter, one.right) for one in shown} == {("Travel?", "Food!", True)}
    assert [one.text for one in shown] == [one.text for one in packaged]


def test_hidden_repeats_and_uncounted_votes_are_left_out(registry: Registry, package: Build) -> None:
    review(registry, package)
    version = registry.get("finance@1")
    pairs = annotated_pairs(registry, version)
    assert all(len({one.person for one in pair.said}) == len(pair.said) == 2 for pair in pairs)
    assert not any(pair.has_words for pair in pairs)


def test_page_without_a_review_says_so(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    version = registry.get("finance@1")
    assert annotated_pairs(registry, version) == []
    assert "No human review is filed." in report_page(registry, version, everything(registry, version))
    assert len(version_tables(everything(registry, version))["annotations"]) == 0
