"""The desk as a widget of JupyterLab: what the browser shows, and what a click does."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets
from pydantic import ValidationError

from lora_ops.clock import to_the_minute, utc
from lora_ops.errors import LoraOpsError
from lora_ops.escaping import visible
from lora_ops.gates.review.desk import Desk
from lora_ops.records.review import Judgement
from lora_ops.settings.files import first_problem

HERE = Path(__file__).parent


class ReviewDesk(anywidget.AnyWidget):
    """Shows one pair at a time. Each click is on the disk before the browser is told that it is saved.

    The browser gets two texts without a name: which side is the adapter's stays in this process.
    """

    _esm = (HERE / "review.js").read_text(encoding="utf-8")
    _css = (HERE / "review.css").read_text(encoding="utf-8")
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, desk: Desk, guidelines: str | None = None) -> None:
        """Show a reviewer's first pair without a vote."""
        super().__init__()
        self._desk, self._guidelines = desk, guidelines or ""
        self._load = self._saved = 0
        message = "Each click is saved at once. Click here, and the keys below work."
        if desk.dropped:
            message = f"The last click before a break was half written ({desk.dropped} bytes) and is dropped."
        self._show(desk.next_open() or 1, message)
        self.on_msg(self._on_message)

    def _on_message(self, _: Any, said: Any, __: Any) -> None:
        place = self.state["place"]
        try:
            if said.get("do") == "say":
                self._say(said)
            elif said.get("do") == "back":
                self._show(max(1, place - 1))
            elif said.get("do") == "next":
                self._next(place)
        except ValidationError as error:
            self._show(place, problem=f"This is not kept: {first_problem(error)}.")
        except LoraOpsError as error:
            self._show(place, problem=str(error))

    def _say(self, said: dict[str, Any]) -> None:
        place = int(said["place"])
        try:
            self._desk.say(place, Judgement.model_validate(said["said"]))
        except LoraOpsError:
            if not self._desk.is_submitted:
                self._desk.load_again()
            raise
        self._saved += 1
        if place == self.state["place"]:
            at = to_the_minute(utc(self._desk.now()))
            self.state = {**self.state, **self._counts(), "message": f"Saved at {at}.", "problem": ""}

    def _next(self, place: int) -> None:
        """Show the pair behind this one; behind the last one, the first that was skipped."""
        if place < self._desk.total:
            self._show(place + 1)
            return
        open_ = self._desk.next_open()
        if open_ is not None:
            self._show(open_, "These pairs were skipped.")
            return
        adapter = self._desk.session.plan.adapter
        self._show(place, f"Every pair is judged. Hand the votes in: lora-ops review submit {adapter}")

    def _show(self, place: int, message: str = "", problem: str = "") -> None:
        pair = self._desk.pair(place)
        self.state = {
            "title": f"{self._desk.session.plan.adapter} · {self._desk.reviewer}",
            "place": place,
            "text": visible(pair.text),
            "left": visible(pair.left),
            "right": visible(pair.right),
            "said": pair.said.model_dump(mode="json"),
            "guidelines": visible(self._guidelines),
            "message": message,
            "problem": problem,
            "load": self._load,
            **self._counts(),
        }
        self._load += 1

    def _counts(self) -> dict[str, int]:
        return {"total": self._desk.total, "judged": self._desk.judged, "saved": self._saved}
