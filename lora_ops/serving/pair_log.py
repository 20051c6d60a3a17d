"""The pairs of a shadow version: one JSON line for each, judged by a process of its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_ops.records.pair import ShadowPair
from lora_ops.serving.line_log import LineLog
from lora_ops.serving.pair_scores import PairTexts
from lora_ops.serving.risk_worker import RiskWorker
from lora_ops.settings.serving import EventSettings

TEXTS = ("prompt_text", "production_text", "shadow_text")


@dataclass(frozen=True)
class UnjudgedPair:
    """A pair without its scores, and the texts that they are of."""

    pair: ShadowPair
    texts: PairTexts

    @property
    def request_id(self) -> str:
        """The request's."""
        return self.pair.request_id


class PairLog(LineLog[UnjudgedPair]):
    """The log of pairs. Their scores are always kept, their texts where the tenant allows it, redacted.

    Args:
        folder: where the files go.
        settings: when a new file begins, and when an old one goes.
        keeps_text: whether a tenant's texts may be kept.
        lost: called with a number of pairs that are lost.
        unscored: called with a number of pairs that nobody could judge.
    """

    def __init__(
        self,
        folder: Path,
        settings: EventSettings,
        keeps_text: Callable[[str], bool],
        lost: Callable[[int], None] = lambda count: None,
        unscored: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._keeps_text = keeps_text
        self._judge = RiskWorker(missed=unscored)
        super().__init__(folder, "pairs", settings, lost=lost)

    def _size(self, item: UnjudgedPair) -> int:
        return item.texts.characters

    def _prepared(self, items: Sequence[UnjudgedPair]) -> Callable[[UnjudgedPair], str]:
        return self._as_json

    def _as_json(self, item: UnjudgedPair) -> str:
        scores = self._judge.judge(item.texts)
        judged = asdict(scores) if scores else {}
        if not self._keeps_text(item.pair.tenant):
            judged |= dict.fromkeys(TEXTS)
        elif not item.texts.shadow:
            judged["shadow_text"] = None
        return item.pair.model_copy(update=judged).model_dump_json()

    def _end(self) -> None:
        self._judge.close()
