"""Reports that the record quotes: what is read, what is left to people, what is refused."""

from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import EvidenceKind, PolicyCheck
from lora_ops.registry.reports import check, read_human_evaluation, read_policy
from lora_ops.registry.store import Registry

VOTES = '{"annotators": 2, "pairs": 20, "adapter_better": 12, "same": 6, "base_better": 2}'
DIGEST = "a" * 64


def written(folder: Path, text: str) -> Path:
    path = folder / "report.json"
    path.write_text(text)
    return path


def test_votes_and_policy_checks_are_read_with_the_digest_of_their_report(tmp_path: Path) -> None:
    votes = read_human_evaluation(written(tmp_path, VOTES), DIGEST)
    assert votes is not None
    assert (votes.adapter_better, votes.report_sha256) == (12, DIGEST)
    one = '{"name": "no-advice", "passed": true, "prompts": 40, "failed": 0}'
    expected = PolicyCheck(name="no-advice", passed=True, prompts=40, failed=0, report_sha256=DIGEST)
    assert read_policy(written(tmp_path, one), DIGEST) == [expected]
    assert read_policy(written(tmp_path, f"[{one}, {one}]"), DIGEST) == [expected, expected]


@pytest.mark.parametrize("read", [read_human_evaluation, read_policy])
def test_a_page_is_left_to_people(tmp_path: Path, read: object) -> None:
    assert callable(read)
    assert read(written(tmp_path, "<html>fine</html>"), DIGEST) is None


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("human_evaluation", VOTES.replace("20", "0"), "'human_evaluation' has a wrong value: pairs: .*got 0"),
        ("human_evaluation", "[1]", "'human_evaluation' has a wrong value: annotators: Field required"),
        ("policy", '[{"name": "no-advice"}]', "'policy' has a wrong value: 0.passed: Field required"),
        ("policy", "3", "'policy' has a wrong value"),
    ],
)
def test_json_that_does_not_fit_its_kind_is_not_kept(
    registry: Registry, tmp_path: Path, kind: EvidenceKind, text: str, told: str
) -> None:
    with pytest.raises(LoraOpsError, match=told):
        registry.keep(kind, written(tmp_path, text))
    assert not list(registry.files.root.glob("??/*"))


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        (
            "policy",
            '[{"name": "a", "passed": true, "prompts": 9, "failed": 1}]',
            "can't have passed with failed prompts",
        ),
        ("policy", '[{"name": "a", "passed": false, "prompts": 9, "failed": 10}]', "more prompts than it has"),
        ("policy", "[]", "at least 1 item"),
        (
            "human_evaluation",
            '{"annotators": 1, "pairs": 9, "adapter_better": 5, "same": 3, "base_better": 2}',
            "more votes than pairs",
        ),
    ],
)
def test_numbers_that_do_not_add_up_are_refused(tmp_path: Path, kind: str, content: str, says: str) -> None:
    report = tmp_path / "report.json"
    report.write_text(content)
    with pytest.raises(LoraOpsError, match=says):
        check(kind, report)  # type: ignore[arg-type]
