"""A regression report is what its source gives, slice by slice, and nothing else."""

from datetime import UTC, datetime

import pytest

from lora_ops.gates.regression import regression_report
from lora_ops.records.evidence import DOCUMENT, RegressionEvidence
from lora_ops.records.regression import RegressionSource
from lora_ops.registry.report_lacks import lacks
from lora_ops.settings.registry import EvidenceSettings
from lora_ops.settings.suite import Case, Expect, Slice

from .sources import BASE, DIGEST, held_out, source, suite

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
BEFORE = ("production", "finance@1", "c" * 64, ())


def report(given: RegressionSource) -> RegressionEvidence:
    return regression_report(given, "finance", NOON)


def test_report_passes_where_nothing_is_lost() -> None:
    found = report(source(suite(), base=BASE, production=BEFORE))
    assert dict(found.verdicts) == {"plain against base": "pass", "plain against finance@1": "pass"}
    assert list(lacks(found, EvidenceSettings())) == []


def test_report_fails_where_production_is_clearly_better() -> None:
    found = report(source(suite(), candidate=range(15), base=BASE, production=BEFORE))
    assert dict(found.verdicts) == {"plain against base": "pass", "plain against finance@1": "fail"}
    [lack] = lacks(found, EvidenceSettings())
    assert lack == "a regression report that passes (plain against finance@1: fail)"


def test_report_of_few_rows_is_undecided() -> None:
    found = report(source(suite(rows=12), production=BEFORE, base=BASE))
    assert dict(found.verdicts)["plain against finance@1"] == "undecided"
    assert found.compared[0].comparison.more_rows


def test_report_counts_what_must_pass_by_itself() -> None:
    """One wrong case that must pass fails, though the slice passes."""
    found = report(source(suite(rows=120, must_pass=3), candidate=[1], base=BASE))
    assert found.must_pass == 3 and found.must_pass_failed == ("plain-1",)
    assert ("case plain-1, which must pass", "fail") in found.verdicts


def test_report_judges_two_cases_of_one_question_apart() -> None:
    """A lenient case that asked the same as one that must pass decided for both."""
    cases = suite(rows=60, must_pass=1)
    first = cases.cases[0]
    lenient = Case(id="lenient", slice="plain", text="x", expect=Expect(lacks=["zebra"]))
    twice = cases.model_copy(update={"cases": (*cases.cases, first.model_copy(update={"case": lenient}))})
    given = source(cases, candidate=[0], base=BASE)
    found = report(given.model_copy(update={"cases": twice}))
    assert found.must_pass_failed == ("plain-0",)


def test_report_shows_slices_that_do_not_gate() -> None:
    shown = Slice(about="shown", gating=False)
    found = report(
        source(suite(plain=Slice(about="a", margin=0.15), odd=shown), candidate=range(40), base=BASE)
    )
    assert [one.gating for one in found.compared] == [True, False]
    assert [name for name, _ in found.verdicts] == ["plain against base"]


def test_report_compares_only_with_named_opponents() -> None:
    only = Slice(about="a", margin=0.15, against=("production",))
    found = report(source(suite(plain=only), candidate=range(50), base=BASE, production=BEFORE))
    assert [name for name, _ in found.verdicts] == ["plain against finance@1"]


def test_report_corrects_for_all_gating_slices() -> None:
    slices = {f"s{number}": Slice(about="a", margin=0.05) for number in range(6)}
    found = report(source(suite(rows=40, **slices), candidate=range(6), production=BEFORE))
    first = found.compared[0].comparison.difference
    assert first.p_corrected == pytest.approx(min(1, 6 * first.p_value))


def test_report_holds_a_slice_to_its_least() -> None:
    least = Slice(about="a", margin=0.15, least=0.9)
    found = report(source(suite(plain=least), candidate=range(20), base=BASE))
    assert ("plain at least 0.9", "fail") in found.verdicts


@pytest.mark.parametrize(("lost", "verdict"), [(0, "pass"), (60, "fail")])
def test_report_compares_held_out_rows(lost: int, verdict: str) -> None:
    cases = suite().model_copy(update={"held_out": {"exact_match": 0.06}})
    found = report(source(cases, base=BASE, production=BEFORE, held_out=held_out(300, lost)))
    assert dict(found.verdicts)["held-out exact_match against finance@1"] == verdict
    assert "held-out macro_f1" in {one.what for one in found.compared if not one.gating}


def test_report_misses_held_out_rows_that_it_lacks() -> None:
    cases = suite().model_copy(update={"held_out": {"exact_match": 0.06}})
    found = report(source(cases, base=BASE, production=BEFORE))
    assert ("held-out exact_match against finance@1", "missing") in found.verdicts


def test_report_with_nothing_that_decides_is_no_evidence() -> None:
    found = report(source(suite(plain=Slice(about="a", gating=False)), base=BASE))
    [lack] = lacks(found, EvidenceSettings())
    assert "in which something decides" in lack
    assert list(lacks(found, EvidenceSettings(regression=False))) == []


def test_report_refuses_a_system_that_lacks_an_answer() -> None:
    given = source(suite(), base=BASE)
    first = given.systems[1].model_copy(update={"answers": given.systems[1].answers[1:]})
    with pytest.raises(ValueError, match="base has no answer to the case 'plain-0'"):
        report(given.model_copy(update={"systems": (given.systems[0], first)}))


def test_report_is_the_same_from_its_kept_source() -> None:
    given = source(suite(), candidate=range(5), base=BASE, production=BEFORE, held_out=held_out(80, 3, 2))
    found = report(given)
    again = report(RegressionSource.model_validate_json(given.to_json()))
    assert again == found == DOCUMENT.validate_json(found.to_json())
    assert found.content_digest == DIGEST
