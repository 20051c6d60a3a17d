"""A manifest that says something else than its package."""

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.paths import EVALUATION_PAGE
from lora_ops.records.manifest import FileRecord
from lora_ops.registry.consistency import require_consistent

from .conftest import Build


def test_page_of_another_evaluation_is_refused(package: Build) -> None:
    folder, manifest = package(1)
    page = folder / EVALUATION_PAGE
    page.write_text(f'<head><meta name="lora-ops-evaluation" content="{"0" * 64}"></head><body>')
    file = FileRecord(bytes=page.stat().st_size, sha256=sha256_file(page))
    whole = manifest.model_copy(update={"files": {**manifest.files, page.name: file}})
    with pytest.raises(LoraOpsError, match="is the page of another evaluation than the one in the package"):
        require_consistent(folder, whole)
    own = manifest.files["evaluation.json"].sha256
    page.write_text(f'<head><meta name="lora-ops-evaluation" content="{own}"></head><body>')
    require_consistent(folder, whole)
