"""A tenant's template, which makes a row's columns the text of its prompt."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ops.errors import LoraOpsError


def fill_template(template: str, rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Return the prompt template filled with each row.

    What stands in braces is a column's whole name: `{meta.text}` is the column `meta.text`, and nothing is
    looked up inside a value.
    """
    parts = [(before, name) for before, name, _, _ in string.Formatter().parse(template)]
    return [
        "".join(before if name is None else f"{before}{row[name]}" for before, name in parts) for row in rows
    ]


def template_fields(template: str) -> list[str]:
    """Return the column names that a prompt template such as `{question} ({product})` uses.

    Raises:
        LoraOpsError: the template is not a valid format string, names no column or formats one.
    """
    try:
        parsed = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise LoraOpsError(f"data.template: {error} in '{template}': write columns as {{name}}.") from error
    fields = [str(name) for _, name, _, _ in parsed]
    for name, (_, _, spec, conversion) in zip(fields, parsed, strict=True):
        if spec or conversion:
            raise LoraOpsError(
                f"data.template: '{template}' formats a column, and columns are text: write it as {{{name}}}."
            )
    if not fields or "" in fields:
        raise LoraOpsError(f"data.template: '{template}' names no column: write at least one as {{name}}.")
    return fields
