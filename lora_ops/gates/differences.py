"""Where two reports say something else."""

from collections.abc import Iterator

from lora_ops.records.evidence import EvidenceDocument


def differences(kind: str, kept: EvidenceDocument, again: EvidenceDocument) -> Iterator[str]:
    """Yield each value of a kept report that its source does not give again; whoever made it may differ."""
    left, right = (one.model_dump(mode="json", exclude={"made_by"}) for one in (kept, again))
    yield from _differences(left, right, kind)


def _differences(kept: object, again: object, place: str) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(again, dict):
        for name in sorted(kept.keys() | again.keys()):
            yield from _differences(kept.get(name), again.get(name), f"{place}.{name}")
    elif isinstance(kept, list) and isinstance(again, list) and len(kept) == len(again):
        for number, (one, other) in enumerate(zip(kept, again, strict=True)):
            yield from _differences(one, other, f"{place}.{number}")
    elif kept != again:
        yield f"{place} is {kept!r:.80}, and its answers give {again!r:.80}"
