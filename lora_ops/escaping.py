"""Show text of data as text, wherever it is shown: in a terminal, a notebook, an HTML page or a plot.

Rows, answers, labels and reasons are written by others. None of them may run in a reviewer's browser, move the
cursor of a terminal or vanish as markup. The rule for each of these places is in this module only.
"""

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd
    from IPython.display import Markdown
    from pandas.io.formats.style import Styler
    from rich.console import Console
    from rich.text import Text

# Control characters without tab and line feed, characters that turn the direction of what follows or have no
# width, separators of lines and paragraphs, halves of a pair, fillers and tags. Persian, the scripts of India
# and emojis need joiners, so these stay where no ASCII is beside them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
LONGEST_MESSAGE = 4000
_LONG_WORD = re.compile(r"\S{1000,}")  # no path, address, key or digest that a message names is as long
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+|~$&!])")
_COMMAND = re.compile(r"`(lora-ops [^`]+)`")
_STYLE_BLOCK = re.compile(r"<style\b.*?</style\s*>", re.DOTALL | re.IGNORECASE)

TAGS = frozenset(
    {
        "a",
        "abbr",
        "b",
        "blockquote",
        "br",
        "caption",
        "code",
        "dd",
        "del",
        "div",
        "dl",
        "dt",
        "em",
        "hr",
        "i",
        "s",
    }
    | {
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "li",
        "ol",
        "p",
        "pre",
        "small",
        "span",
        "strong",
        "sub",
        "sup",
        "ul",
    }
    | {"table", "tbody", "td", "tfoot", "th", "thead", "tr"}
)
ATTRIBUTES = {
    "*": ["class", "id", "title", "style"],
    "a": ["href"],
    "ol": ["start"],
    "table": ["border"],
    "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan", "scope"],
}
STYLES = frozenset(
    {"background-color", "color", "font-family", "font-style", "font-weight", "line-height", "overflow-x"}
    | {"text-align", "text-decoration", "vertical-align", "white-space", "width"}
)
PROTOCOLS = frozenset({"http", "https", "mailto"})


def shortened(message: str) -> str:
    """Return a message for people without what floods a terminal, its begin and its end kept.

    Messages quote what somebody gave: a value, a name, a line of a file. The end says what to do about it.
    """
    message = _LONG_WORD.sub(lambda found: f"{found[0][:80]}… ({len(found[0]):,} characters)", message)
    if len(message) <= LONGEST_MESSAGE:
        return message
    half = LONGEST_MESSAGE // 2
    left_out = len(message) - 2 * half
    return f"{message[:half]} … ({left_out:,} characters left out) … {message[-half:]}"


def json_visible(document: str) -> str:
    r"""Return a JSON document with each character that nobody sees as JSON's own escape, such as \u202e.

    A document of one line has none of them outside its texts, so that it means the same.
    """

    def escaped(found: re.Match[str]) -> str:
        return json.dumps(found[0])[1:-1]

    return _INVISIBLE.sub(escaped, document)


def visible(text: str) -> str:
    r"""Return `text` with each character that nobody sees as its escape, such as \x1b or \u202e."""
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""Return `text` as `visible` does, on one line: what follows a line feed (\n) would look like ours."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def cell(text: str) -> "Text":
    """Return `text` for a cell or a title of rich's tables."""
    from rich.text import Text

    return Text(visible(text))


def markup(text: str) -> str:
    """Return `text` for a sentence in rich's markup: brackets in it are no tags."""
    from rich.markup import escape

    return escape(one_line(text))


def markdown(text: str) -> str:
    """Return `text` on one line for Markdown: no link, no tag, no table cell comes of it."""
    return _MARKDOWN.sub(r"\\\1", _on_one_line(text))


def markdown_sentence(text: str) -> str:
    """Return a sentence on one line for Markdown: a command of lora-ops in backticks is code, and no other."""
    parts = _COMMAND.split(_on_one_line(text))
    return "".join(
        code(part) if place % 2 else _MARKDOWN.sub(r"\\\1", part) for place, part in enumerate(parts)
    )


def _on_one_line(text: str) -> str:
    return " ".join(visible(text).split())


def code(text: str) -> str:
    """Return `text` on one line as a code span of Markdown, whatever backticks it has; not for tables."""
    text = _on_one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def bullets(lines: "Iterable[str]") -> "Markdown":
    """Return sentences as a list for a notebook, which wraps them at words; see `markdown_sentence`."""
    from IPython.display import Markdown

    return Markdown("\n".join(f"- {markdown_sentence(line)}" for line in lines))


def plot_text(text: str) -> str:
    """Return `text` for matplotlib: a dollar sign begins no formula."""
    return visible(text).replace("$", r"\$")


def table(frame: "pd.DataFrame", decimals: int = 6) -> "Styler":
    """Return a table of texts for a notebook, without its index; pandas' own Styler would run their HTML."""
    shown = frame.style.format(escape="html", precision=decimals).format_index(escape="html", axis="columns")
    return shown.hide(axis="index")


def facts(values: "Mapping[str, object]", name: str) -> "Styler":
    """Return one value a line for a notebook, each whole: pandas cuts a digest after 50 characters.

    Args:
        values: what each line is called, and its value.
        name: whose values they are, the heading of their column.
    """
    import pandas as pd

    frame = pd.DataFrame({"": list(values), name: [str(value) for value in values.values()]})
    return table(frame)


def console(**options: Any) -> "Console":
    """Return rich's console that changes nothing in a text: no `:cow:` becomes an emoji, no number a colour."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, **options)


def show(*parts: Any, sep: str = " ") -> None:
    """Print rich's markup and tables; text of data in them has gone through `markup` or `cell`."""
    console().print(*parts, sep=sep)


def clean_html(html: str) -> str:
    """Return HTML without anything that could run or load: scripts, handlers, images, `javascript:` links.

    A tag that is not in `TAGS` becomes text, so that a reviewer sees what somebody tried. Blocks of style are
    dropped: pandas writes one before each table.
    """
    import bleach
    from bleach.css_sanitizer import CSSSanitizer

    return bleach.clean(
        _STYLE_BLOCK.sub("", html),
        tags=TAGS,
        attributes=ATTRIBUTES,
        protocols=PROTOCOLS,
        css_sanitizer=CSSSanitizer(allowed_css_properties=STYLES),
    )
