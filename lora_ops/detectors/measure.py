"""Precision and recall of a detector on labelled samples, and rates that are corrected for its errors.

Proportions have Clopper and Pearson's exact 95 % intervals (Biometrika 26, 1934). The rows of a sample count as
independent; those of templates are so only in part, and their intervals are too narrow for that.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from lora_ops.detectors.identifiers import CARD, EMAIL, IBAN, IP, PHONE, SSN, Found, find_identifiers
from lora_ops.detectors.identifiers import NAME as IDENTIFIERS
from lora_ops.detectors.identifiers import VERSION as IDENTIFIERS_VERSION
from lora_ops.detectors.insults import Detector
from lora_ops.detectors.made_identifiers import IdentifierRow
from lora_ops.detectors.samples import InsultRow
from lora_ops.records.detectors import DetectorRecord, Measured, Rate
from lora_ops.records.evaluation import Interval

CONFIDENCE = 0.95
Z = 1.959963984540054
FLOOR = 0.2
"""Of the lower bound of sensitivity + specificity - 1: below it a corrected rate is mostly noise."""
TOO_WEAK = "detector too weak to correct"
MEASURED_KINDS = (EMAIL, IBAN, CARD, SSN, IP, PHONE)
ANY = "any identifier"
INSULTS = "insult or profanity"


def proportion(hits: int, count: int) -> Interval | None:
    """Return a share with its exact interval, or None of nothing."""
    if not count:
        return None
    from scipy.stats import binomtest

    exact = binomtest(hits, count).proportion_ci(CONFIDENCE, method="exact")
    return Interval(value=hits / count, low=float(exact.low), high=float(exact.high))


def measured(
    detector: DetectorRecord, target: str, sample: str, pairs: Iterable[tuple[bool, bool]]
) -> Measured:
    """Return how good a detector is.

    Args:
        target: what is looked for.
        sample: the name of the labelled rows.
        pairs: of each row, whether it is there and whether it was found.
    """
    counts = dict.fromkeys(((True, True), (False, True), (True, False), (False, False)), 0)
    for pair in pairs:
        counts[pair] += 1
    right, false, missed, clear = counts.values()
    recall, specificity = proportion(right, right + missed), proportion(clear, clear + false)
    youden = _youden(recall, specificity) if recall and specificity else None
    return Measured(
        detector=detector,
        target=target,
        sample=sample,
        true_positives=right,
        false_positives=false,
        false_negatives=missed,
        true_negatives=clear,
        # Where no row holds it, or each one does, precision is what the sample's maker chose.
        precision=proportion(right, right + false) if recall and specificity else None,
        recall=recall,
        specificity=specificity,
        youden=youden,
        can_correct=youden is not None and youden.low > FLOOR,
    )


def _youden(recall: Interval, specificity: Interval) -> Interval:
    """Return sensitivity + specificity - 1, its interval by adding the two squared (Newcombe, 1998; MOVER)."""
    value = recall.value + specificity.value - 1
    return Interval(
        value=value,
        low=max(-1.0, value - math.hypot(recall.value - recall.low, specificity.value - specificity.low)),
        high=min(1.0, value + math.hypot(recall.high - recall.value, specificity.high - specificity.value)),
    )


def measure_identifiers(
    rows: Sequence[IdentifierRow], sample: str, find: Callable[[str], list[Found]] = find_identifiers
) -> list[Measured]:
    """Return how good the recognisers are for any identifier, then for each kind that the sample holds.

    An identifier counts as found where each of its letters and digits is: a rest would be a leak.
    """
    import phonenumbers

    version = f"{IDENTIFIERS_VERSION}, phonenumberslite=={phonenumbers.__version__}"
    detector = DetectorRecord(name=IDENTIFIERS, version=version)
    found = [[one for one in find(row.text) if one.kind in MEASURED_KINDS] for row in rows]
    results = [
        measured(
            detector, ANY, sample,
            [
                (bool(row.items), bool(there) and all(_covered(row.text, item, there) for _, item in row.items))
                for row, there in zip(rows, found, strict=True)
            ],
        )
    ]  # fmt: skip
    for kind in MEASURED_KINDS:
        pairs = []
        for row, there in zip(rows, found, strict=True):
            items = [item for one, item in row.items if one == kind]
            mine = [one for one in there if one.kind == kind]
            pairs.append((bool(items), bool(mine) and all(_covered(row.text, item, mine) for item in items)))
        if any(there for there, _ in pairs):
            results.append(measured(detector, kind, sample, pairs))
    return results


def _covered(text: str, item: str, found: Sequence[Found]) -> bool:
    """Return whether each letter and digit of `item` lies in what was found, wherever it stands in the text."""
    start = text.find(item)
    places = {place for one in found for place in range(one.start, one.end)}
    return all(place in places or not letter.isalnum() for place, letter in enumerate(item, start))


def measure_insults(detector: Detector, rows: Sequence[InsultRow], sample: str) -> Measured:
    """Return how good a detector of insults is."""
    record = DetectorRecord(
        name=detector.name, version=detector.version, digest=detector.digest, threshold=detector.threshold
    )
    scores = detector.scores([row.text for row in rows])
    pairs = [(row.insulting, score >= detector.threshold) for row, score in zip(rows, scores, strict=True)]
    return measured(record, INSULTS, sample, pairs)


def corrected_rate(found: int, rows: int, by: Measured) -> Rate:
    """Return the share of texts that hold something, as found and corrected for the detector's errors.

    The estimate is Rogan and Gladen's (American Journal of Epidemiology 107, 1978). Its interval is that of
    Lang and Reiczigel (Preventive Veterinary Medicine 113, 2014), which carries the uncertainty of sensitivity
    and specificity. Both hold only where the detector errs on these texts as it does on the sample.

    Args:
        found, rows: in how many of how many texts the detector found something.
        by: how good it is; a detector below `FLOOR` corrects nothing.
    """
    raw = proportion(found, rows)
    if raw is None:
        raise ValueError("a rate of no rows is undefined")
    if not by.can_correct:
        return Rate(found=found, rows=rows, raw=raw, note=TOO_WEAK)
    positives, negatives = by.true_positives + by.false_negatives, by.true_negatives + by.false_positives
    # Rogan and Gladen's own, unsmoothed.
    estimate = (raw.value + by.true_negatives / negatives - 1) / (
        by.true_positives / positives + by.true_negatives / negatives - 1
    )
    # Each proportion drawn towards one half, as Agresti and Coull do, so that 0 and 1 have a variance.
    size = rows + Z**2
    rate = (found + Z**2 / 2) / size
    sensitivity, sensitivity_size = (by.true_positives + 1) / (positives + 2), positives + 2
    specificity, specificity_size = (by.true_negatives + 1) / (negatives + 2), negatives + 2
    youden = sensitivity + specificity - 1
    middle = (rate + specificity - 1) / youden
    of_sensitivity = sensitivity * (1 - sensitivity) / sensitivity_size
    of_specificity = specificity * (1 - specificity) / specificity_size
    shift = 2 * Z**2 * (middle * of_sensitivity - (1 - middle) * of_specificity)
    error = (
        math.sqrt(rate * (1 - rate) / size + middle**2 * of_sensitivity + (1 - middle) ** 2 * of_specificity)
        / youden
    )
    value, low, high = (
        min(1.0, max(0.0, one)) for one in (estimate, middle + shift - Z * error, middle + shift + Z * error)
    )
    return Rate(
        found=found,
        rows=rows,
        raw=raw,
        corrected=Interval(value=value, low=min(low, value), high=max(high, value)),
        note=f"corrected by {by.detector.version} on {by.sample}",
    )
