"""One self-contained page about a version: the verdict first, then what it rests on."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError
from lora_ops.escaping import visible
from lora_ops.evaluation.metrics import exact_match
from lora_ops.evaluation.versions import common_rows
from lora_ops.folders import make_folder
from lora_ops.gates.policy_page import policy_section
from lora_ops.gates.review.annotated import AnnotatedPair, annotated_pairs
from lora_ops.gates.review.evidence import Told
from lora_ops.gates.review.shown_answers import rows_with_answers
from lora_ops.gates.rows import GateRow
from lora_ops.hashing import sha256_text
from lora_ops.paths import SAMPLES
from lora_ops.records.evaluation import ADAPTER, BASE, SYSTEMS
from lora_ops.records.evidence import HumanEvidence, RegressionEvidence
from lora_ops.records.regression import Compared
from lora_ops.records.review import RATINGS, ReviewCounts
from lora_ops.registry.answers_again import last_answers_again
from lora_ops.registry.cards import differences, record
from lora_ops.registry.files import write_atomically
from lora_ops.registry.loosened import production_before
from lora_ops.registry.reports import last_document
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

TEMPLATE = Path(__file__).with_name("report.html")
COMPARED_SECTIONS = ("data", "params", "base model", "package")
"""What a reviewer asks first of two versions; timings and package versions are in `registry diff`."""


class BeforeAfter(NamedTuple):
    """One held-out row and its answers; `production` is None where that version did not answer it.

    `reviewers` holds a sentence for each person who judged this row.
    """

    text: str
    target: str
    base: str
    adapter: str
    production: str | None
    right: bool
    reviewers: tuple[str, ...] = ()


class Shown(NamedTuple):
    """What page, notes and tables of a version show, read once.

    Attributes:
        rows: its gates.
        production: what was in production before it, if anything.
        compared: the slices and metrics of its regression report.
        review: what was counted of the review that is filed; None without one.
        pairs: what reviewers judged.
        samples: of its package, with production's answers and what reviewers said.
    """

    rows: Sequence[GateRow]
    production: Version | None
    compared: Sequence[Compared]
    review: ReviewCounts | None
    pairs: list[AnnotatedPair]
    samples: list[BeforeAfter]


def read_shown(registry: Registry, version: Version, rows: Sequence[GateRow]) -> Shown:
    """Read what page, notes and tables of a version show beside its gates.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    number = production_before(registry, version)
    production = registry.load(version.tenant, number) if number is not None else None
    regression = last_document(registry, version, "regression")
    people = last_document(registry, version, "human_evaluation")
    pairs = annotated_pairs(registry, version)
    return Shown(
        rows,
        production,
        regression.compared if isinstance(regression, RegressionEvidence) else (),
        people.review if isinstance(people, HumanEvidence) else None,
        pairs,
        before_after(registry, version, production, pairs),
    )


def report_page(registry: Registry, version: Version, shown: Shown, *, keep_text: bool = False) -> str:
    """Return the page of a version as HTML: no script, nothing loaded, all text of data escaped.

    Args:
        registry: where.
        version: which.
        shown: what it shows beside the record.
        keep_text: whether the tenant's prompts and answers may be kept; see `policy_section`.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    known = record(registry, version.id)
    production = shown.production
    present = {name for of in known.performance.metrics.values() for name in of}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown, trim_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        record=known,
        rows=shown.rows,
        headline=headline(shown.rows),
        worst=_worst(shown.rows),
        notes=list(dict.fromkeys([*known.verdict.reasons, *known.verdict.warnings])),
        systems=[name for name in SYSTEMS if name in present],
        compared=shown.compared,
        samples=shown.samples,
        pairs=shown.pairs,
        policy=policy_section(registry, version, keep_text=keep_text),
        production=production.id if production else None,
        columns=known.risk.bias.columns if known.risk.bias else {},
        people=known.performance.human_evaluation,
        review=shown.review,
        ratings=RATINGS,
        told=told,
        changes=[
            each
            for each in (differences(production, version) if production else ())
            if each.section in COMPARED_SECTIONS
        ],
        head=registry.log.head().text,
        made_at=utc(registry.clock()),
    )


def write_report_page(page: str, version: Version, root: Path) -> Path:
    """Write the page of a version to reports/TENANT/gates/ and return its path."""
    path = root / "reports" / version.tenant / "gates" / f"{version.id}.html"
    make_folder(path.parent)
    write_atomically(path, page.encode())
    return path


def headline(rows: Sequence[GateRow]) -> str:
    """Return the verdict of all gates in a few words."""
    counted: Counter[str] = Counter(row.verdict for row in rows if row.verdict != "not applicable")
    if set(counted) == {"pass"}:
        return f"all {counted['pass']} gates pass"
    said = {"fail": "failed", "undecided": "undecided", "missing": "missing", "pass": "passed"}
    shown = ", ".join(f"{counted[one]} {said[one]}" for one in said if counted[one])
    return f"{counted.total()} gates: {shown}"


def told(one: Told, against: str) -> str:
    """Return what a reviewer said of a pair in one sentence."""
    preferred = {"adapter": "the adapter's is better", "other": f"{against}'s is better"}
    parts = [preferred.get(one.vote, "as good as each other")]
    parts += [
        f"{'its' if side == 'adapter' else 'the other'} answer breaches: {what}" if what else ""
        for side, what in one.breach.items()
    ]
    parts += [one.comment, f"should be: {one.corrected}" if one.corrected.strip() else ""]
    return f"{one.person}: {'; '.join(part.strip() for part in parts if part.strip())}"


def before_after(
    registry: Registry, version: Version, production: Version | None, pairs: Sequence[AnnotatedPair] = ()
) -> list[BeforeAfter]:
    """Return the samples of a version's package, with production's answers where it gave some.

    Whoever approves reads the answers that base model and adapter gave again for the regression report.

    Args:
        registry: where the versions are.
        version: whose samples.
        production: what was in production before it, if anything.
        pairs: what reviewers judged; a sample among them has what they said.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    file = version.manifest.files.get(SAMPLES)
    if file is None:
        return []
    frame = pd.read_csv(registry.files.checked(file.sha256, SAMPLES), dtype=str, keep_default_na=False)
    frame = _given_again(registry, version, frame)
    theirs: dict[str, str] = {}
    if production:
        try:
            both, _ = common_rows(registry, version, production)
            theirs = dict(zip(both["key"], both[f"{ADAPTER}_right"], strict=True))
        except LoraOpsError:
            theirs = {}  # an older package keeps no answers; the gate says so
    labels = version.manifest.params.get("data", {}).get("labels", ())
    said = {pair.text: tuple(told(one, pair.against) for one in pair.said) for pair in pairs}
    right = exact_match(list(frame["target"]), list(frame[ADAPTER]), labels)
    return [
        BeforeAfter(
            one["text"],
            one["target"],
            one["base"],
            one[ADAPTER],
            theirs.get(sha256_text(one["text"])),
            bool(hit),
            said.get(one["text"], ()),
        )
        for one, hit in zip(frame.to_dict("records"), right, strict=True)
    ]


def _given_again(registry: Registry, version: Version, samples: pd.DataFrame) -> pd.DataFrame:
    """Return samples with the answers that were given again; the packaged ones where nobody was asked."""
    try:
        again = last_answers_again(registry, version)
        if again is None:
            return samples
        rows = rows_with_answers(registry, version, again).drop_duplicates("id").set_index("id")
    except LoraOpsError:
        return samples  # `promote` names the lost report, and the gate the lost answers
    return samples.assign(
        **{name: samples["id"].map(rows[name]).fillna(samples[name]) for name in (BASE, ADAPTER)}
    )


def _worst(rows: Sequence[GateRow]) -> str:
    verdicts = {row.verdict for row in rows}
    return next((name for name in ("fail", "undecided", "missing") if name in verdicts), "pass")


def _shown(value: Any) -> Any:
    """Return text with each character that nobody sees as its escape, so that no text looks like another."""
    if isinstance(value, str):
        return visible(value)
    return "" if value is None else value
