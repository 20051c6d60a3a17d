"""`lora-ops detectors`: what finds identifiers and insults, and how well."""

import random
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.escaping import show
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.records.detectors import Measured
    from lora_ops.records.evaluation import Interval
    from lora_ops.settings.params import Settings

NUMBERS = ("rows", "with it", "precision", "recall", "false alarms")
SOURCE_ROWS = 1000
"""Of each tenant: seeded, so that two runs measure the same."""


def detectors(as_json: AsJson = False) -> None:
    """Measure each detector on labelled samples: precision, recall, and whether a rate can be corrected.

    The samples come from pinned packages, downloaded once to data/raw.
    """
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    with prose_on_stderr(as_json):
        found = measure_detectors(settings, root)
    work_is_done()
    if as_json:
        print_json([one.model_dump(mode="json") | {"rows": one.rows} for one in found])
        return
    for detector, results in groupby(found, key=lambda one: one.detector):
        threshold = f", threshold {detector.threshold}" if detector.threshold is not None else ""
        title = f"{detector.name} ({detector.version}{threshold})"
        table = Grid("finds", "sample", *NUMBERS, "rates", solid={*NUMBERS}, title=title)
        for one in results:
            without = one.false_positives + one.true_negatives
            table.add_row(
                one.target,
                one.sample,
                str(one.rows),
                str(one.true_positives + one.false_negatives),
                _shown(one.precision),
                _shown(one.recall),
                f"{one.false_positives} of {without}" if without else "-",
                _rates(one),
            )
        show(table)
    show("Intervals are exact (Clopper-Pearson, 95 %).")


def measure_detectors(settings: "Settings", root: Path) -> "list[Measured]":
    """Return how good the detectors are on each sample that the repository can fetch, and on the tenants' rows.

    Raises:
        LoraOpsError: a sample, a source or a detector's weights can't be had.
    """
    from lora_ops.detectors.insults import insult_detector
    from lora_ops.detectors.made_identifiers import IdentifierRow, made_identifiers
    from lora_ops.detectors.measure import measure_identifiers, measure_insults
    from lora_ops.detectors.samples import InsultRow, presidio_templates, pyrit_replies, real_toxicity_prompts

    raw = root / "data/raw"
    insults = insult_detector(settings.detectors, root)
    found = measure_identifiers(made_identifiers(), "made by a seed")
    found += measure_identifiers(presidio_templates(raw), "Presidio's templates")
    # Nobody labelled these rows. They count as rows without either: lists of names and codes, and editorials.
    own = _source_rows(settings, root)
    for tenant, texts in own.items():
        found += measure_identifiers([IdentifierRow(text, ()) for text in texts], f"rows of {tenant}")
    found.append(measure_insults(insults, pyrit_replies(raw), "answers of models (PyRIT)"))
    found.append(measure_insults(insults, real_toxicity_prompts(raw), "web texts (RealToxicityPrompts)"))
    for tenant, texts in own.items():
        found.append(measure_insults(insults, [InsultRow(text, False) for text in texts], f"rows of {tenant}"))
    return found


def _source_rows(settings: "Settings", root: Path) -> dict[str, list[str]]:
    """Return texts of each tenant whose contract says that its rows hold no identifier."""
    from lora_ops.datasets.source import read_source
    from lora_ops.templates import fill_template

    found = {}
    for name, tenant in settings.tenants.items():
        if tenant.data.on_pii != "stop" or tenant.data.contract.allow_pii:
            continue
        frame, _ = read_source(tenant.data, root, root / "data/raw")
        texts = fill_template(tenant.data.template, frame.fillna("").to_dict("records"))
        found[name] = random.Random(0).sample(texts, min(SOURCE_ROWS, len(texts)))
    return found


def _shown(interval: "Interval | None") -> str:
    return str(interval) if interval else "-"


def _rates(measured: "Measured") -> str:
    from lora_ops.detectors.measure import TOO_WEAK

    if measured.youden is None:
        return "-"
    return "can be corrected" if measured.can_correct else TOO_WEAK
