"""Templates: which columns one names, and what it makes of a row."""

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.templates import template_fields


def test_templates_name_columns() -> None:
    assert template_fields("{question} ({product})") == ["question", "product"]
    for broken in ("no column", "{", "{}", "{price:.2f}", "{price!r}"):
        with pytest.raises(LoraOpsError, match=r"data\.template"):
            template_fields(broken)
