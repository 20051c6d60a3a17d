"""Templates: which columns one names, and what a row and a client's message become by it."""

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.templates import ContentIs, NotThePrompt, fill_template, template_fields, user_text

TWO = "Where is {name} in {city}?"


def test_templates_name_columns() -> None:
    assert template_fields("{question} ({product})") == ["question", "product"]
    for broken in ("no column", "{", "{}", "{price:.2f}", "{price!r}"):
        with pytest.raises(LoraOpsError, match=r"data\.template"):
            template_fields(broken)


def text(
    template: str | None, content: str | None = None, is_a: ContentIs | None = None, **columns: str
) -> str:
    return user_text("x@1", template, content=content, columns=columns or None, content_is=is_a)


@pytest.mark.parametrize("template", [TWO, "{city}\n{name}\n{city}", "{name}{city}", " {name} {{{city}}} "])
def test_columns_become_the_rows_text(template: str) -> None:
    row = {"name": " AIRBNB {city} ", "city": "Porto"}
    assert text(template, **row) == fill_template(template, [row])[0]


@pytest.mark.parametrize("template", ["{name}", " {name}\n"])
def test_content_is_the_row_of_a_bare_column(template: str) -> None:
    for kind in (None, "prompt", "column"):
        assert text(template, " AIRBNB ", kind) == "AIRBNB"
    assert text(template, name=" AIRBNB ") == "AIRBNB"


def test_content_is_what_the_client_says() -> None:
    assert text("Classify: {name}", "AIRBNB", "column") == "Classify: AIRBNB"
    assert text("Classify: {name}", "Classify: AIRBNB\n", "prompt") == "Classify: AIRBNB"
    assert text(TWO, "Where is AIRBNB in Porto?", "prompt") == "Where is AIRBNB in Porto?"


@pytest.mark.parametrize(
    ("template", "content", "kind", "columns", "told"),
    [
        (
            TWO,
            "AIRBNB",
            None,
            {},
            r"send name, city as columns.*content_is: 'prompt' if it is the whole prompt\.",
        ),
        ("{name}{name}", "AIRBNB", None, {}, "or 'column' if it is the value of that column"),
        ("Classify: {name}", "Classify: A", None, {}, "of the template 'Classify: {name}'"),
        (TWO, "AIRBNB", "column", {}, "columns name, city, so the content can't be one of them"),
        (TWO, None, None, {"name": "A", "town": "B"}, "sent were others: city missing; town unknown"),
        ("{name}", None, None, {"text": "A"}, "name missing; text unknown"),
        (None, "AIRBNB", "column", {}, "x@1 has no template"),
        (None, None, None, {"name": "A"}, "x@1 has no template"),
    ],
)
def test_what_may_be_another_prompt_is_refused(
    template: str | None, content: str | None, kind: ContentIs | None, columns: dict[str, str], told: str
) -> None:
    with pytest.raises(NotThePrompt, match=told):
        text(template, content, kind, **columns)


def test_without_a_template_content_is_the_text() -> None:
    assert text(None, " AIRBNB ") == text(None, " AIRBNB ", "prompt") == " AIRBNB "
