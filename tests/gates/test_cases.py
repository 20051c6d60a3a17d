"""Suites as people write them: read, checked, and asked as prompts."""

from pathlib import Path

import numpy as np
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.gates.cases import read_suite
from lora_ops.gates.paired import tango
from lora_ops.settings.files import read_yaml
from lora_ops.settings.suite import Suite
from tests.conftest import ROOT

SUITE = """
owner: ana
slices:
  plain: {about: what everybody asks}
cases:
  - {id: one, slice: plain, text: a, expect: {label: Airlines}}
  - {id: two, slice: plain, text: b, expect: {label: Airlines}}
"""
ONE = "label: Airlines}}\n  - {id: two"


def written(folder: Path, text: str) -> Path:
    path = folder / "suites/finance.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_read_suite_gives_cases_and_digest(tmp_path: Path) -> None:
    suite, digest = read_suite(written(tmp_path, SUITE))
    assert [case.id for case in suite.cases] == ["one", "two"]
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("id: two", "id: one", "the case id 'one' stands twice"),
        ("text: b", "text: a", "the cases 'one' and 'two' ask the same"),
        ("slice: plain, text: b", "slice: odd, text: b", "names the slice 'odd'"),
        ("plain: {", "other: {about: x}\n  plain: {", "the slice 'other' has no case"),
        ("expect: {label: Airlines}}\n  - {id: two", "expect: {}}\n  - {id: two", "case 'one'"),
        ("label: Airlines}}\n  - {id: two", "regex: '('}}\n  - {id: two", "no regular expression"),
        ("label: Airlines}}\n  - {id: two", "json_schema: {type: 3}}}\n  - {id: two", "no JSON schema"),
        (ONE, "regex: '((((((a{99}){99}){99}){99}){99}){99})'}}\n  - {id: two", "more than 100,000 times"),
        (ONE, f"regex: '{'(' * 30}a{'+)' * 30}'}}}}\n  - {{id: two", "more than 100,000 times"),
        (ONE, "regex: '(?R)'}}\n  - {id: two", "calls one of its groups"),
        (ONE, "json_schema: {pattern: '(?R)'}}}\n  - {id: two", "calls one of its groups"),
        (ONE, "json_schema: {const: .nan}}}\n  - {id: two", "has nan, which no JSON has"),
        (ONE, "json_schema: {const: 2020-01-01}}}\n  - {id: two", "which no JSON has"),
        (ONE, "json_schema: {const: !!binary /w==}}}\n  - {id: two", "which no JSON has"),
        (ONE, "json_schema: {properties: {1: true}}}}\n  - {id: two", "has the key 1, which is no text"),
        ("label: Airlines}}\n  - {id: two", "regex: ''}}\n  - {id: two", "case 'one' is found in every answer"),
        ("label: Airlines}}\n  - {id: two", "regex: 'a*|b'}}\n  - {id: two", "it asks nothing"),
        ("label: Airlines}}\n  - {id: two", "contains: ['']}}\n  - {id: two", "case 'one'"),
        ("about: what everybody asks", "about: x, gating: false, least: 0.5", "decides by its least"),
        ("text: b, expect: {label: Airlines}", "text: b, score: {metric: bleu, reference: x}", "'bleu'"),
        ("text: b", "text: b, prompt: c", "it has text and prompt"),
        ("text: b", "text: b, repeats: 3", "repeats needs a temperature"),
        ("about: what everybody asks", "about: x, margin: 1.5", "margin"),
        ("owner: ana", "owner: ana\nheld_out: {exact_match: 2}", "a margin lies between 0 and 1"),
        ("owner: ana", "owner: ana\ncase: []", "check its spelling"),
        (SUITE, "[1]", "suites/finance.yaml"),
        (SUITE, "", "suites/finance.yaml"),
        (SUITE, "a: [", "is not valid YAML"),
    ],
)
def test_read_suite_says_what_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SUITE
    with pytest.raises(LoraOpsError, match="suites/finance.yaml") as error:
        read_suite(written(tmp_path, SUITE.replace(old, new)))
    assert said in str(error.value) and str(error.value).endswith(".")


def test_read_suite_refuses_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    with pytest.raises(LoraOpsError, match="can't be read"):
        read_suite(tmp_path / "suites")
    (tmp_path / "suites/finance.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(LoraOpsError, match="is not UTF-8"):
        read_suite(tmp_path / "suites/finance.yaml")


SHIPPED = sorted(path.stem for path in (ROOT / "suites").glob("*.yaml") if path.stem != "policy")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suite_is_decidable_with_its_rows(name: str) -> None:
    """Two equal versions that differ on one answer in ten pass each gating slice in 80 of 100 cases."""
    suite, _ = read_suite(ROOT / "suites" / f"{name}.yaml")
    generator = np.random.default_rng(5)
    for slice_name, chosen in suite.slices.items():
        rows = sum(case.slice == slice_name for case in suite.cases)
        drawn = generator.multinomial(rows, [0.05, 0.05, 0.9], size=400)
        passed = np.mean([tango(int(gained), int(lost), rows)[0] > -chosen.margin for gained, lost, _ in drawn])
        assert not chosen.gating or passed >= 0.8, slice_name


@pytest.mark.parametrize("name", SHIPPED)
def test_suite_is_read_back_as_it_was_written(name: str) -> None:
    suite, _ = read_suite(ROOT / "suites" / f"{name}.yaml")
    assert Suite.model_validate_json(suite.model_dump_json()) == suite


def test_every_shipped_tenant_has_a_suite() -> None:
    assert read_yaml(ROOT / "params.yaml")["tenants"].keys() <= set(SHIPPED)
