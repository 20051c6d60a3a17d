"""A reviewer's list as a CSV file and back, for people without JupyterLab.

Spreadsheets change what they touch: they add a byte-order mark, write semicolons and other line ends, sort rows
and leave some out. All of that is read. A text that somebody edited is refused, since the vote would be on
another answer. A cell that begins like a formula is written with an apostrophe before it, which a spreadsheet
shows as text; an answer must not run in a reviewer's office.
"""

import codecs
import csv
import io
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.gates.review.desk import Desk, Pair
from lora_ops.records.review import RATINGS, Judgement
from lora_ops.settings.files import first_problem
from lora_ops.small_files import read_small, write_new

SIDES = ("left", "right")
SHOWN = ("pair", "text", "left", "right")
RATED = tuple(f"{name}_{side}" for side in SIDES for name in RATINGS)
BREACHES = tuple(f"breach_{side}" for side in SIDES)
COLUMNS = (*SHOWN, "vote", *RATED, *BREACHES, "comment", "corrected")
DELIMITERS = (",", ";", "\t")
FORMULA = tuple("=+-@\t\r|%\uff1d\uff0b\uff0d\uff20")
NO_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that a spreadsheet refuses or drops."""


def write_table(desk: Desk, path: Path) -> None:
    """Write a reviewer's pairs, with what they have said so far, into a new file.

    Raises:
        LoraOpsError: the file exists, or can't be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(_row(desk.pair(place)) for place in range(1, desk.total + 1))
    try:
        # With a byte-order mark, or Excel takes the file for another encoding.
        write_new(path, text.getvalue(), "utf-8-sig")
    except FileExistsError as error:
        raise LoraOpsError(f"{path} exists already: name a new file.") from error
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({disk_reason(error)}).") from error


def read_table(desk: Desk, path: Path) -> int:
    """Take the votes of a file that `write_table` wrote; rows without a vote stay open.

    Everything is checked before the first vote is kept.

    Returns:
        How many judgements are new or changed.

    Raises:
        LoraOpsError: no such table, a row twice, an edited text or a wrong value; the text names the line.
    """
    judged: dict[int, Judgement] = {}
    for line, row in _rows(path):
        where = f"{path.name}, line {line}"
        number = row["pair"].strip()
        if not re.fullmatch("[1-9][0-9]{0,5}", number) or int(number) > desk.total:
            raise LoraOpsError(f"{where}: the list of {desk.reviewer} has no pair '{number[:40]}'.")
        place = int(number)
        if place in judged:
            raise LoraOpsError(f"{where}: pair {place} is in the table twice, and each pair counts once.")
        _require_unedited(desk.pair(place), row, where)
        judged[place] = _judgement(row, where)
    changed = [place for place, said in judged.items() if said.vote and said != desk.said(place)]
    for place in changed:
        desk.say(place, judged[place])
    return len(changed)


def _row(pair: Pair) -> dict[str, str]:
    said = pair.said
    row = {
        "pair": str(pair.place),
        "text": _cell(pair.text),
        "left": _cell(pair.left),
        "right": _cell(pair.right),
    }
    row["vote"] = said.vote or ""
    for side, rated in said.ratings.items():
        row |= {f"{name}_{side}": str(value) for name, value in rated.items()}
    row |= {f"breach_{side}": _cell(what or "yes") for side, what in said.breach.items()}
    return {**row, "comment": _cell(said.comment), "corrected": _cell(said.corrected)}


def _cell(text: str) -> str:
    text = NO_CONTROL.sub("", text)
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def _text(cell: str) -> str:
    """Return what `_cell` made a cell of; a cell that somebody typed stays as it is."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith((*FORMULA, "'")) else cell


def _require_unedited(pair: Pair, row: dict[str, str], where: str) -> None:
    for name in ("text", "left", "right"):
        if _compared(row[name]) != _compared(_cell(getattr(pair, name))):
            raise LoraOpsError(
                f"{where}: the column '{name}' of pair {pair.place} was edited: its vote is on another text. "
                "Export the table again; a better answer belongs into the column 'corrected'."
            )


def _compared(cell: str) -> str:
    """Return a cell without what spreadsheets change: line ends, spaces at the ends, the apostrophe."""
    return "\n".join(
        line.rstrip() for line in _text(cell).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    ).strip()


def _judgement(row: dict[str, str], where: str) -> Judgement:
    said: dict[str, Any] = {"vote": row["vote"].strip().casefold() or None, "ratings": {}, "breach": {}}
    for side in SIDES:
        given = {name: row[f"{name}_{side}"].strip() for name in RATINGS}
        rated = {name: _stars(value, f"{where}: {name}_{side}") for name, value in given.items() if value}
        if rated:
            said["ratings"][side] = rated
        breach = _text(row[f"breach_{side}"].strip())
        if breach.casefold() not in ("", "no", "false", "0"):
            said["breach"][side] = breach
    said |= {name: _text(row[name].replace("\r\n", "\n").strip()) for name in ("comment", "corrected")}
    try:
        found = Judgement.model_validate(said)
    except ValidationError as error:
        raise LoraOpsError(f"{where}: {first_problem(error)}.") from error
    if not found.vote and found != Judgement():
        raise LoraOpsError(f"{where}: pair {row['pair']} has ratings or a comment, and no vote.")
    return found


def _stars(value: str, where: str) -> int:
    match = re.fullmatch(r"([1-5])(?:[.,]0+)?", value)
    if match is None:
        raise LoraOpsError(f"{where} is '{value[:40]}': a rating is a whole number from 1 to 5, or empty.")
    return int(match[1])


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    text = _decoded(path)
    for delimiter in DELIMITERS:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            header = [name.strip().casefold() for name in next(lines, [])]
            if not set(COLUMNS) <= set(header):
                continue
            if len(set(header)) < len(header):
                raise LoraOpsError(f"{path.name} has a column twice: export the table again.")
            rows = []
            for values in lines:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(header):
                    raise LoraOpsError(
                        f"{path.name}, line {lines.line_num} has {len(values)} cells, not {len(header)} as the "
                        "header has: save it as CSV again."
                    )
                rows.append((lines.line_num, dict(zip(header, values, strict=True))))
        except csv.Error as error:
            raise LoraOpsError(f"{path.name}, line {lines.line_num}: {error}: save it as CSV again.") from error
        return rows
    raise LoraOpsError(
        f"{path.name} is no table of `lora-ops review export`: it must have the columns {', '.join(COLUMNS)}, "
        "separated by commas, semicolons or tabs."
    )


def _decoded(path: Path) -> str:
    try:
        content = read_small(path)
    except OSError as error:
        raise LoraOpsError(f"{path} can't be read ({disk_reason(error)}).") from error
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoraOpsError(f"{path.name} is not UTF-8 (byte {error.start}): save it as 'CSV UTF-8'.") from error
