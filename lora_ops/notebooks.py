"""Run one notebook with parameters through papermill, so that a stage is a notebook and nothing more."""

import ast
import errno
import json
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, Unavailable
from lora_ops.hashing import sha256_file
from lora_ops.page import write_page
from lora_ops.paths import EVALUATION, EVALUATION_PAGE

if TYPE_CHECKING:
    from nbformat import NotebookNode

# A Unix socket's path must fit into 108 bytes with its end; zmq adds `/ipc-` and the number of the channel.
LONGEST_SOCKET_FOLDER = 80
OUR_ERRORS = {one.__name__: one for one in (LoraOpsError, Refused, NotFound, Unavailable, Damaged)}
# Kinds of these, which a cell raises by their own names.
OUR_ERRORS |= {"MissingRegistry": NotFound, "MissingKey": NotFound}
OUR_ERRORS |= {"LostRace": Unavailable, "InUse": Unavailable}
DISK_FULL = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT})\]")
KINDS: dict[str, str] = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list, such as [1, 2]",
    "dict": 'a mapping, such as {"a": 1}',
    "None": "None",
}


def read_notebook(path: Path) -> "NotebookNode":
    """Return a notebook, checked against the schema of its format.

    Raises:
        NotFound: there is no such file.
        LoraOpsError: it is no notebook, or one of another format than 4.
    """
    import nbformat

    if not path.is_file():
        raise NotFound(f"There is no notebook {path}.")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # no UTF-8, or no JSON
        raise LoraOpsError(f"{path} is no notebook, which is a file of JSON: {error}.") from error
    version = content.get("nbformat") if isinstance(content, dict) else None
    if version is None:
        raise LoraOpsError(f"{path} is JSON, and no notebook: it has no 'nbformat'.")
    if version != 4:
        raise LoraOpsError(
            f"{path} has notebook format {str(version)[:20]}, and only 4 runs: convert it with `jupyter "
            "nbconvert --to notebook --inplace FILE`."
        )
    problem = _schema_problem(content)
    if problem:
        raise LoraOpsError(f"{path} is no whole notebook: {problem}; open it in JupyterLab and save it again.")
    return nbformat.reads(text, as_version=4)


def _schema_problem(content: dict[str, Any]) -> str | None:
    """Return where a notebook breaks the schema of format 4, or None."""
    import nbformat

    # nbformat mends ids before it validates, and takes these for granted.
    if type(content.get("nbformat_minor")) is not int:
        return "'nbformat_minor' is no number"
    cells = content.get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        return "'cells' is no list of cells"
    try:
        nbformat.validate(content, relax_add_props=True)
    except nbformat.ValidationError as error:
        place = ".".join(str(part) for part in error.path)
        reason = " ".join(error.message.split())[:200]
        return f"{place}: {reason}" if place else reason
    return None


class Parameter(NamedTuple):
    """One name of the cell tagged `parameters`, and what it takes."""

    kinds: tuple[str, ...]  # of KINDS; empty where neither value nor annotation says
    optional: bool  # None is its value there, or its annotation allows it
    elements: str | None  # of a list whose elements are all of one kind


def declared_parameters(notebook: Path) -> dict[str, Parameter]:
    """Return what the notebook's cell tagged `parameters` assigns, by name.

    The cell is parsed as Python, so text of a value can't be taken for a name. The annotation decides what a
    parameter takes (`threads: int | None = None`), else the value itself.

    Raises:
        LoraOpsError: there is no such notebook, it can't be read, or its cell is not Python.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    cells = read_notebook(notebook).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        return {}
    try:
        statements = ast.parse(TransformerManager().transform_cell(tagged[0])).body
    except SyntaxError as error:
        raise LoraOpsError(
            f"{notebook.name}: the cell tagged `parameters` is not Python ({error.msg}, line {error.lineno})."
        ) from error
    found: dict[str, Parameter] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = _of_value(statement.value)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = _of_annotation(statement.annotation)
    return found


def parse_parameters(notebook: Path, given: Iterable[str]) -> dict[str, Any]:
    """Return `name=value` texts as values of the types that the notebook's parameters have.

    Raises:
        LoraOpsError: no `=`, a name given twice, a name that the notebook does not declare, or a value that is
            not of its parameter's type.
    """
    declared = declared_parameters(notebook)
    values: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            raise LoraOpsError(f"--parameter {each}: write name=value.")
        if name in values:
            raise LoraOpsError(f"--parameter {name} is given twice: give it once.")
        _require_declared(notebook, declared, [name])
        values[name] = _typed(notebook, name, text, declared[name])
    return values


def _require_declared(notebook: Path, declared: dict[str, Parameter], names: Iterable[str]) -> None:
    for name in names:
        if name not in declared:
            raise LoraOpsError(
                f"{notebook.name} declares no parameter '{name}' "
                f"(it declares: {', '.join(declared) or 'none'}): correct the name, or "
                "add it to the cell tagged `parameters`."
            )


def _of_value(node: ast.expr) -> Parameter:
    try:
        value = ast.literal_eval(node)
    except ValueError:  # a call, an expression: only its annotation could say
        return Parameter((), optional=False, elements=None)
    if value is None:
        return Parameter((), optional=True, elements=None)
    kind = type(value).__name__
    inner = {type(one).__name__ for one in value} if isinstance(value, list) else set()
    elements = inner.pop() if len(inner) == 1 else None
    return Parameter((kind,) if kind in KINDS else (), optional=False, elements=elements)


def _of_annotation(node: ast.expr) -> Parameter:
    parts = [one.strip() for one in ast.unparse(node).strip("'\"").split("|")]
    names = [re.sub(r"\[.*", "", one) for one in parts]
    inner = [match[1] for one in parts if (match := re.fullmatch(r"list\[(\w+)\]", one))]
    kinds = tuple(one for one in names if one in KINDS and one != "None")
    return Parameter(kinds, "None" in names, inner[0] if inner and inner[0] in KINDS else None)


def _typed(notebook: Path, name: str, text: str, parameter: Parameter) -> Any:
    """Return `text` as the parameter's type.

    Raises:
        LoraOpsError: it is not of that type, or nothing in the notebook says which type it is.
    """
    if parameter.optional and text == "None":
        return None
    if not parameter.kinds and not parameter.optional:
        raise LoraOpsError(
            f"{notebook.name}: nothing says what '{name}' takes, because its value in the cell tagged "
            f"`parameters` is computed: annotate it there (`{name}: str = ...`)."
        )
    # A parameter that is None and has no annotation takes text.
    for kind in parameter.kinds or ("str",):
        value, fits = _read(text, kind, parameter.elements)
        if fits:
            return value
    wanted = " or ".join([*(KINDS[kind] for kind in parameter.kinds), *(["None"] * parameter.optional)])
    raise LoraOpsError(f"{notebook.name}: {name}={text} does not fit: '{name}' takes {wanted}.")


def _read(text: str, kind: str, elements: str | None) -> tuple[Any, bool]:
    """Return the value of `text` as `kind`, and whether it is one."""
    if kind == "str":
        return text, True
    if kind == "bool":
        return text.lower() == "true", text.lower() in ("true", "false")
    if kind == "int":  # no parameter takes a number of more digits, and Python refuses to read 5,000
        return (int(text), True) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else (None, False)
    if kind == "float":
        try:
            value = float(text)
        except ValueError:
            return None, False
        return value, math.isfinite(value)
    parsed = _literal(text)
    if type(parsed).__name__ != kind:
        return None, False
    allowed = {elements, "int"} if elements == "float" else {elements}
    return parsed, elements is None or {type(one).__name__ for one in parsed} <= allowed


def _literal(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: dict[str, Any],
    root: Path,
    head: Callable[[], str | None] = lambda: None,
) -> None:
    """Execute `notebook` into `output` and write `output` with the suffix .html beside it.

    Args:
        head: asked after the last cell where the registry's audit log ends; the page keeps the answer.

    Raises:
        LoraOpsError: the notebook is missing, would be written over, does not declare one of `parameters`, a
            cell failed or the kernel died; then `output` keeps what was executed, and the text names the cell,
            the error and that path.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    from lora_ops.notebook_engine import ENGINE

    _require_declared(notebook, declared_parameters(notebook), sorted(parameters))
    _require_other_output(notebook, output)
    logging.getLogger("papermill").addFilter(_is_news)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(
            prefix="kernel-", dir=_socket_folder(), ignore_cleanup_errors=True
        ) as sockets:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                engine_name=ENGINE,
                kernel_name="python3",
                cwd=str(root),
                progress_bar=False,
                config=Config(
                    {
                        # Unix sockets: no other user of the machine can talk to the kernel.
                        "KernelManager": {"transport": "ipc", "ip": str(Path(sockets) / "ipc")},
                        # A killed run leaves no kernel at work: see `load_ipython_extension` there.
                        "NotebookClient": {
                            "extra_arguments": ["--IPKernelApp.extra_extensions=lora_ops.processes"]
                        },
                    }
                ),
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
    except KeyboardInterrupt:
        # Ctrl-C interrupts the kernel, too. Its cell then fails in a task that nobody awaits any more.
        logging.getLogger("asyncio").addFilter(_is_awaited)
        raise
    except PapermillExecutionError as error:
        # Our own errors are already a sentence; others need their class to make sense.
        ours = OUR_ERRORS.get(error.ename)
        kind = "" if ours else f"{error.ename}: "
        advice = ""
        if ours is None and DISK_FULL.search(error.evalue):
            ours, advice = Unavailable, "; free some space and run this again"
        line = next(iter(error.source.strip().splitlines()), "")
        raise (ours or LoraOpsError)(
            f"{notebook.name} failed in cell [{error.exec_count}] `{line}`: {kind}{error.evalue.rstrip('.')}"
            f"{advice}. The partly executed notebook is {output}."
        ) from error
    except DeadKernelError as error:
        raise LoraOpsError(
            f"{notebook.name}: the kernel was killed, most often because memory ran out (`dmesg` tells): "
            f"use a smaller batch_size or a machine with more memory. The partly executed notebook is {output}."
        ) from error
    record = output.with_name(EVALUATION)
    is_evaluation = output.with_suffix(".html").name == EVALUATION_PAGE and record.is_file()
    write_page(output, head(), sha256_file(record) if is_evaluation else None)


def _require_other_output(notebook: Path, output: Path) -> None:
    """Refuse a run that would write its result or its page over the notebook that it comes from."""
    for target in (output, output.with_suffix(".html")):
        if target.exists() and target.samefile(notebook):
            raise LoraOpsError(
                f"{notebook} is where its own result goes, which would overwrite it: run the one in "
                "notebooks/, or copy it there."
            )
    if output.suffix != ".ipynb":
        raise LoraOpsError(f"{notebook.name} doesn't end in .ipynb: rename it.")


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for papermill's guess that a parameter is unknown: it misses `x: str | None = None`."""
    return not record.getMessage().startswith("Passed unknown parameter")


def _is_awaited(record: logging.LogRecord) -> bool:
    """Return False for asyncio's complaint about an error that nobody asked a task for."""
    return not record.getMessage().startswith("Task exception was never retrieved")


def _socket_folder() -> Path:
    """Return a folder whose path is short enough for Unix sockets: the temporary one, or /tmp.

    Raises:
        LoraOpsError: neither can be used.
    """
    folders = [Path(tempfile.gettempdir()), Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp"), Path("/tmp")]
    for folder in folders:
        if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise LoraOpsError(
        f"TMPDIR is too long for the kernel's sockets ({folders[0]}), and /tmp can't be written: "
        f"set TMPDIR to a folder of at most {LONGEST_SOCKET_FOLDER} bytes."
    )
