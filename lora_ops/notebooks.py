"""Run one notebook with parameters through papermill, so that a stage is a notebook and nothing more."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError


def run_notebook(notebook: Path, output: Path, parameters: dict[str, Any], root: Path) -> None:
    """Execute `notebook` into `output` and write `output` with the suffix .html beside it.

    Raises:
        LoraOpsError: the notebook is missing, does not declare one of `parameters`, a cell failed or the kernel
            died; then `output` keeps what was executed, and the text names the cell, the error and that path.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    if not notebook.is_file():
        raise LoraOpsError(f"There is no notebook {notebook}.")
    declared = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - set(declared))
    if unknown:
        names = ", ".join(declared) or "none"
        raise LoraOpsError(
            f"{notebook.name} declares no parameter '{unknown[0]}' (it declares: {names}): "
            "correct the name, or add it to the cell tagged `parameters`."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as sockets:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(root),
                progress_bar=False,
                # Unix sockets: no other user of the machine can talk to the kernel.
                config=Config({"KernelManager": {"transport": "ipc", "ip": str(Path(sockets) / "ipc")}}),
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
    except PapermillExecutionError as error:
        # Our own errors are already a sentence; others need their class to make sense.
        kind = "" if error.ename == LoraOpsError.__name__ else f"{error.ename}: "
        line = next(iter(error.source.strip().splitlines()), "")
        raise LoraOpsError(
            f"{notebook.name} failed in cell [{error.exec_count}] `{line}`: {kind}{error.evalue.rstrip('.')}. "
            f"The partly executed notebook is {output}."
        ) from error
    except DeadKernelError as error:
        raise LoraOpsError(
            f"{notebook.name}: the kernel was killed, most often because memory ran out (`dmesg` tells): "
            f"use a smaller batch_size or a machine with more memory. The partly executed notebook is {output}."
        ) from error
    write_html(output)


def write_html(executed: Path) -> Path:
    """An executed notebook as a page that opens without Jupyter; its path."""
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    exporter = HTMLExporter(
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        preprocessors=[CoalesceStreamsPreprocessor],  # of a progress bar, its last state
    )
    body, _ = exporter.from_filename(str(executed))
    page = executed.with_suffix(".html")
    page.write_text(body, encoding="utf-8")
    return page
