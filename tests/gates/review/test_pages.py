"""What 05_review opens: the reviewer's desk, by the guidelines that the plan names."""

from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.errors import Refused
from lora_ops.gates.review.pages import desk_of, open_review
from lora_ops.gates.review.sessions import GUIDELINES
from lora_ops.registry.backends import open_registry
from tests.conftest import small_clone, write_params
from tests.gates.sources import file_answers_again
from tests.registry.conftest import build_package


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with finance@1, and guidelines for its reviewers."""
    small_clone(tmp_path)
    write_params(tmp_path, {})
    (tmp_path / GUIDELINES).mkdir(parents=True)
    (tmp_path / GUIDELINES / "finance.md").write_text("Prefer the narrower category.\n")
    with closing(open_registry(tmp_path, create=True)) as registry:
        folder = tmp_path / "package"
        registry.register(folder, build_package(folder, 1, fresh_days=3650), actor="ana.silva")
        file_answers_again(registry, "finance@1", "ana.silva")
    monkeypatch.setenv("LORA_OPS_ACTOR", "chen.wei")
    return tmp_path


@pytest.mark.parametrize("now", ["Prefer the longer answer.\n", None])
def test_desk_refuses_other_guidelines_than_the_plan_names(root: Path, now: str | None) -> None:
    """Two reviewers could judge by different texts, and the evidence named the first one for both."""
    session, path = open_review(root, "finance"), root / GUIDELINES / "finance.md"
    before = path.read_text()
    assert desk_of(root, session).state["guidelines"] == before
    path.unlink()
    if now is not None:
        path.write_text(now)
    with pytest.raises(Refused, match=r"guidelines/finance.md is not what it was when .* was started"):
        desk_of(root, session)
    path.write_text(before)
    assert desk_of(root, session).state["total"]
