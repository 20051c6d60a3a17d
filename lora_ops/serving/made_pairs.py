"""A pair, made of what production answered to a request and what a version in shadow did."""

from collections.abc import Sequence
from datetime import UTC, datetime

from lora_ops.records.pair import PairStatus, ShadowPair
from lora_ops.serving.after_answer import Answered
from lora_ops.serving.pair_log import UnjudgedPair
from lora_ops.serving.pair_scores import PairTexts
from lora_ops.serving.requests import RequestStats
from lora_ops.serving.router import Route


def made_pair(
    answered: Answered,
    shadow: Route,
    stats: RequestStats | None,
    *,
    status: PairStatus,
    unit: str,
    insult_threshold: float,
    code: str | None = None,
    target: str | None = None,
    replayed: bool = False,
    expected: Sequence[str] = (),
) -> UnjudgedPair:
    """Return a pair that is to be judged.

    Args:
        answered: production's side.
        shadow: the version in shadow.
        stats: its answer; None: it gave none.
        status, code, unit, target, replayed: as `ShadowPair` has them.
        insult_threshold: from which score on an answer counts as insulting.
        expected: the right answers, where they are known.
    """
    request, production = answered.request, answered.stats
    written, answer = _texts(production), _texts(stats) if stats else []
    pair = ShadowPair(
        time=datetime.now(UTC),
        request_id=request.request_id,
        tenant=shadow.tenant or request.tenant,
        endpoint=request.endpoint,
        production=request.route.name,
        production_digest=request.route.digest,
        shadow=shadow.name,
        shadow_digest=shadow.digest,
        unit=unit,
        key=request.caller.key,
        names_unit=replayed or request.user is not None,
        epoch=request.route.epoch,
        replayed=replayed,
        target=target,
        status=status,
        code=code,
        answers=len(request.costs),
        production_characters=sum(map(len, written)),
        shadow_characters=sum(map(len, answer)) if stats else None,
        prompt_tokens=sum(map(len, request.prompts)),
        production_tokens=production.generated,
        shadow_tokens=stats.generated if stats else None,
        production_first_token_seconds=production.first_token,
        shadow_first_token_seconds=stats.first_token if stats else None,
        production_seconds=production.seconds,
        shadow_seconds=stats.seconds if stats else None,
        production_finish=list(production.finish),
        shadow_finish=list(stats.finish) if stats else [],
    )
    # The base model knows no labels: it is asked for those of the version that is compared with it.
    labels = request.route.labels if request.route.version else shadow.labels
    texts = PairTexts(
        prompt=request.text,
        production=written,
        shadow=answer,
        production_labels=labels,
        shadow_labels=shadow.labels,
        expected=expected,
        insult_threshold=insult_threshold,
        given_from=request.given_from,
    )
    return UnjudgedPair(pair, texts)


def _texts(stats: RequestStats) -> list[str]:
    return [text for _, text in sorted(stats.texts.items())]
