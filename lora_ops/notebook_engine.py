"""How papermill executes a notebook here: as it always does, without standing in for the browser's widgets."""

from typing import Any

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

ENGINE = "lora_ops"


class _Client(PapermillNotebookClient):  # type: ignore[misc]
    """nbclient's, without its own `Output` widget.

    That one answers the kernel by a plain `send` on the socket whose replies nbclient awaits through asyncio.
    Such a send can swallow the event by which asyncio learns of a reply: sockets of zmq.asyncio are
    edge-triggered. The cell that made the widget, as `interact` does, then never ended, now and then. Without
    it, what a widget captures is among the cell's outputs, where a page shows it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.widget_registry: dict[str, dict[str, Any]] = {}


class _Engine(NBClientEngine):  # type: ignore[misc]
    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        """Execute the cells of a notebook in a kernel of its own."""
        options.pop("input_path", None)
        timeouts = {
            "startup_timeout": options.pop("start_timeout", 60),
            "timeout": options.pop("execution_timeout", None),
        }
        return _Client(nb_man, kernel_name=kernel_name, log=logger, **timeouts, **options).execute()


papermill_engines.register(ENGINE, _Engine)
