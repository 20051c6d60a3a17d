"""The held-out rows of a package, answered once more: by its adapter, and by its base model in every way."""

import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.bias import with_slices
from lora_ops.evaluation.few_shot import base_prompts
from lora_ops.evaluation.labels import read_label
from lora_ops.evaluation.metrics import exact_match, row_scores
from lora_ops.evaluation.recount import COLUMNS, recounted
from lora_ops.gates.candidate import OtherAnswers, asked_by, has_base, laid_out, settings_of, too_many_differ
from lora_ops.hashing import sha256_file
from lora_ops.loading import load_tokenizer
from lora_ops.paths import ANSWERS, SLICE, SLICES
from lora_ops.prompts import render_example
from lora_ops.records.evaluation import ADAPTER, ADAPTER_LABELS, BASES
from lora_ops.records.example import Example, read_split
from lora_ops.records.regression import EvaluatedAgain
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.tenant import TenantSettings

SYSTEMS = (*BASES, ADAPTER, ADAPTER_LABELS)
"""Who answers again. The other systems answer without a model, and no gate rests on them."""
WORTH = 0.1
"""By so much a written answer's primary metric may differ before it is worth something else."""
MOST_OTHER_TEXTS = 0.25
"""Share of texts that may be others: as many as engine and transformers may differ in when they evaluate."""
TODAY = "strftime_now"
"""What chat templates write the date by."""
LONGEST_DATE = 40
"""So many characters of a prompt may be those of another day."""

Given = Mapping[str, Sequence[str]]
"""System -> its answers to the rows of a package, in their order."""


class AnsweredAgain(NamedTuple):
    """What came of asking again, the answers, and why nobody was asked now, which is empty where somebody was.

    Where nobody was asked, both may be those of an earlier report.
    """

    record: EvaluatedAgain
    answers: dict[str, tuple[str, ...]]
    why_not: str = ""


def answer_again(registry: Registry, version: Version, root: Path) -> AnsweredAgain:
    """Let base model and adapter answer the held-out rows of a package again, as its evaluation let them.

    All of them: whoever edits answers before packaging would try a sample until it misses the edited ones. The
    rows are those of the prepared data, by digest, so that nobody writes easier ones into the package. Where
    base model or data are not there, nobody is asked.

    Args:
        registry: where the version is.
        version: which.
        root: the repository, with `models/base` and `data/prepared`.

    Raises:
        OtherAnswers: the package has other rows than its data, or other groups of them, or rows say two things.
        LoraOpsError: a kept file is missing or was changed.
    """
    frame = packaged_rows(registry, version)
    prepared = root / "data/prepared" / version.tenant
    why_not = _why_not(version, root, prepared, frame)
    if why_not:
        return AnsweredAgain(EvaluatedAgain(rows=len(frame), given_again=0), {}, why_not)
    test = read_split(prepared, "test")
    if [tuple(row) for row in frame[list(COLUMNS)].values] != [_columns(row) for row in test]:
        raise OtherAnswers(
            f"The held-out rows in the package of {version.id} are not those of its data: run `dvc repro "
            f"--force generate@{version.tenant}`, evaluate, package and register it again."
        )
    dealt = _slices(version, frame, prepared)
    other = [str(name) for name in dealt if list(dealt[name]) != list(frame[name])]
    if other:
        raise OtherAnswers(
            f"The package of {version.id} deals the held-out rows to other groups by "
            f"{other[0].removeprefix(SLICE)} than {SLICES} of its data: run `dvc repro --force "
            f"evaluate@{version.tenant}`, package and register it again."
        )
    prompt, settings = asked_by(version)
    base, train = root / "models/base", read_split(prepared, "train")
    from lora_ops.evaluation.answers import answer  # torch, which a replay does without

    tokenizer = load_tokenizer(base)
    for split, rows in (("train", train), ("test", test)):
        wrong = says_two_things(tokenizer, rows, prompt.system)
        if split == "train":
            wrong = wrong or trained_on(train, test)
        if wrong:
            raise OtherAnswers(
                f"{(prepared / split).relative_to(root)}.jsonl has {wrong}: run `dvc repro --force "
                f"prepare@{version.tenant}`, train, evaluate, package and register it again."
            )
    asked = base_prompts(base, test, train, prompt, settings)
    with laid_out(registry, version) as folder:
        found = answer(base, folder, test, settings, asked.few_shot, prompt.labels, asked.best).frame
    answers = {name: tuple(found[name]) for name in SYSTEMS if name in found}
    return AnsweredAgain(evaluated_again(version, frame, answers), answers)


def packaged_rows(registry: Registry, version: Version) -> pd.DataFrame:
    """Return the held-out rows of a package with the answer of each system, every column as text.

    Raises:
        LoraOpsError: the package keeps none, or the kept file is missing or was changed.
    """
    file = version.manifest.files.get(ANSWERS)
    if file is None:
        raise LoraOpsError(f"The package of {version.id} keeps no {ANSWERS}: package the adapter again.")
    return pd.read_csv(registry.files.checked(file.sha256, ANSWERS), dtype=str, keep_default_na=False)


def evaluated_again(version: Version, frame: pd.DataFrame, answers: Given) -> EvaluatedAgain:
    """Return how answers that were given again differ from those of a package, and whether they beat the base.

    A system that the package leaves out competes all the same.

    Args:
        version: whose package.
        frame: its rows, as `packaged_rows` returns them.
        answers: those that were given again.

    Raises:
        LoraOpsError: its params are not those of a tenant.
    """
    settings = settings_of(version)
    again = frame.assign(**{name: list(given) for name, given in answers.items()})
    both = [name for name in answers if name in frame]
    differing = {name: _worth_other(frame, again, name, settings) for name in both}
    other_texts = {name: int((frame[name] != again[name]).sum()) for name in both}
    counted = recounted(again, settings, version.manifest.evaluation)
    return EvaluatedAgain(
        rows=len(frame),
        given_again=len(frame),
        differing=differing,
        other_texts=other_texts,
        is_alike=not any(
            too_many_differ(differing[name], len(frame)) or other_texts[name] > MOST_OTHER_TEXTS * len(frame)
            for name in both
        ),
        beats_base=counted.beats_base,
        bias=counted.bias,
    )


def _why_not(version: Version, root: Path, prepared: Path, frame: pd.DataFrame) -> str:
    """Return what is not here of all that the evaluation of a version needs, and how it comes back."""
    if not has_base(version, root):
        return f"models/base is not the base model of {version.id}: run `dvc repro base_model`"
    manifest = version.manifest
    wanted = {"train": manifest.training.train_sha256, "test": manifest.evaluation.test_sha256}
    for split, digest in wanted.items():
        path = prepared / f"{split}.jsonl"
        if not path.is_file() or sha256_file(path) != digest:
            commit = f", {manifest.git.commit[:12]}" if manifest.git.commit else ""
            return (
                f"{path.relative_to(root)} is not the data of {version.id}: run `dvc repro "
                f"prepare@{version.tenant}` with the settings of its commit{commit}"
            )
    try:
        _slices(version, frame, prepared)
    except (OSError, ValueError, KeyError):  # pandas' own errors are ValueErrors
        return (
            f"{(prepared / SLICES).relative_to(root)} is not the one of {version.id}, with a value of each row "
            f"in its data.bias_columns: run `dvc repro --force prepare@{version.tenant}` with its settings"
        )
    return ""


def _slices(version: Version, frame: pd.DataFrame, prepared: Path) -> pd.DataFrame:
    """Return the groups of the held-out rows by each column of data.bias_columns, as the data has them.

    Raises:
        OSError, ValueError, KeyError: the file is missing, or has other columns or rows.
    """
    names = [f"{SLICE}{name}" for name in version.manifest.evaluation.bias]
    if not names:
        return pd.DataFrame()
    found = with_slices(frame[["id"]], prepared)[names]
    if found.isna().any(axis=None):
        raise ValueError(f"{SLICES} lacks rows")
    return found


def says_two_things(tokenizer: Any, rows: Sequence[Example], system: str | None) -> str:
    """Return the first row whose prompt and completion are not those of its text and target; or nothing.

    The adapter learns and answers by prompt and completion. Suite, reviewers and the base model that is shown
    examples get text and target. Whoever edits only one of both lets the adapter answer easier questions, or
    shows the base model wrong answers.
    """
    heads = set[tuple[str, str]]()
    for row in rows:
        prompt, completion = render_example(tokenizer, row.text, row.target, system)
        if row.completion != completion:
            return f"the row '{row.id}', whose completion is not that of its target"
        heads.add(_different_heads(row.prompt, prompt))
        # Some templates write today's date before all turns; that differs in every row alike.
        is_dated = TODAY in str(tokenizer.chat_template) and all(map(_may_be_dates, heads))
        if len(heads) > 1 or (heads != {("", "")} and not is_dated):
            return f"the row '{row.id}', whose prompt is not that of its text"
    return ""


def trained_on(train: Sequence[Example], test: Sequence[Example]) -> str:
    """Return the first held-out row whose text or group is also that of a training row; or nothing.

    The data contract has no wording and no group in two splits. Whoever adds rows after it was checked trains
    the answers to the held-out rows.
    """
    wordings, groups = {_wording(row.text) for row in train}, {row.group for row in train}
    for row in test:
        if _wording(row.text) in wordings:
            return f"the text of the held-out row '{row.id}'"
        if row.group in groups:
            return f"the group of the held-out row '{row.id}'"
    return ""


def _wording(text: str) -> str:
    return " ".join(text.lower().split())


def _different_heads(one: str, other: str) -> tuple[str, str]:
    """Return both texts without the end that they have in common."""
    alike = len(os.path.commonprefix([one[::-1], other[::-1]]))
    return one[: len(one) - alike], other[: len(other) - alike]


def _may_be_dates(heads: tuple[str, str]) -> bool:
    """Return whether two heads differ by no more than a date: a longer text could list the answers."""
    alike = len(os.path.commonprefix(heads))
    return all(len(head) - alike <= LONGEST_DATE for head in heads)


def _columns(row: Example) -> tuple[str, ...]:
    return tuple(getattr(row, name) for name in COLUMNS)


def _worth_other(frame: pd.DataFrame, again: pd.DataFrame, system: str, settings: TenantSettings) -> int:
    """Return on how many rows two answers of a system are worth something else."""
    targets, labels = list(frame["target"]), settings.data.labels
    before, after = list(frame[system]), list(again[system])
    if labels:
        right, still = exact_match(targets, before, labels), exact_match(targets, after, labels)
        named = [
            read_label(one, labels) != read_label(other, labels)
            for one, other in zip(before, after, strict=True)
        ]
        return int(((right != still) | named).sum())
    metric = settings.evaluate.metrics[0]
    worth, now = (row_scores(metric, targets, given) for given in (before, after))
    return int((abs(worth - now) > WORTH).sum())
