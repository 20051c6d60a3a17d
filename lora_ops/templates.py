"""A tenant's template, which makes a row's columns the text of its prompt."""

import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lora_ops.errors import LoraOpsError

ContentIs = Literal["prompt", "column"]
"""What a client's text is to a template: the whole prompt, or the value of its only column."""
SHOWN = 200  # characters of a template in an error


def fill_template(template: str, rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Return the text of each row: the prompt template filled with it, without white space around it.

    What stands in braces is a column's whole name: `{meta.text}` is the column `meta.text`, and nothing is
    looked up inside a value.
    """
    parts = [(before, name) for before, name, _, _ in string.Formatter().parse(template)]
    return [
        "".join(before if name is None else f"{before}{row[name]}" for before, name in parts).strip()
        for row in rows
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


class NotThePrompt(LoraOpsError):
    """A message that can't be what a row's text is to an adapter with a template."""


def user_text(
    adapter: str,
    template: str | None,
    *,
    content: str | None,
    columns: Mapping[str, str] | None,
    content_is: ContentIs | None,
) -> str:
    """Return the text of a user's turn as preparing the adapter's training rows would have written it.

    What a client writes is never guessed: a template that is more than one column and nothing else needs
    either the columns by name or a word on what the text is.

    Args:
        adapter: its name, for errors.
        template: the one that it was trained with; None: it has none, as the base model.
        content: the text that the client wrote.
        columns: what the client wrote instead, by the template's column names.
        content_is: what `content` is, the whole prompt or the value of the template's only column.

    Raises:
        NotThePrompt: these are not the template's columns, or nobody says what `content` is.
    """
    if template is None:
        if columns is not None or content_is == "column":
            raise NotThePrompt(f"{adapter} has no template with columns: send the whole text as content.")
        return content or ""
    names = list(dict.fromkeys(template_fields(template)))
    if columns is not None:
        _require_same(names, columns, adapter)
        return fill_template(template, [columns])[0]
    if content_is == "prompt":
        return (content or "").strip()
    if len(names) == 1 and (content_is == "column" or _is_one_column(template, names[0])):
        return fill_template(template, [{names[0]: content or ""}])[0]
    if content_is == "column":
        raise NotThePrompt(
            f"The template of {adapter} has the columns {', '.join(names)}, so the content can't be one of "
            "them: send all of them as columns."
        )
    one = " or 'column' if it is the value of that column" if len(names) == 1 else ""
    shown = template if len(template) <= SHOWN else f"{template[:SHOWN]}…"
    raise NotThePrompt(
        f"{adapter} was trained on prompts of the template '{shown}': send {', '.join(names)} as columns, or "
        f"say what the content is with content_is: 'prompt' if it is the whole prompt{one}."
    )


def _is_one_column(template: str, name: str) -> bool:
    """Return whether a row's text is the value of this column and nothing else."""
    return fill_template(template, [{name: "x"}]) == ["x"]


def _require_same(names: Sequence[str], columns: Mapping[str, str], adapter: str) -> None:
    missing = [name for name in names if name not in columns]
    unknown = [name for name in columns if name not in names]
    if not (missing or unknown):
        return
    faults = [f"{', '.join(missing)} missing"] * bool(missing)
    faults += [f"{', '.join(unknown[:3])} unknown"] * bool(unknown)
    raise NotThePrompt(
        f"The template of {adapter} has the columns {', '.join(names)}; sent were others: {'; '.join(faults)}."
    )
