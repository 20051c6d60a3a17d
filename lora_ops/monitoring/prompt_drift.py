"""Are live prompts still what the adapter was trained on: hashed n-gram counts, without any text.

Batches of live prompts are compared with the training rows, and so are batches of training rows with all
others. What the former differ by more than the latter is drift. Rows of one group are alike, so a batch of
training rows has whole groups: else every new merchant would be a new world.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.ngrams import BUCKETS, hashed_ngrams
from lora_ops.records.drift import PromptShift
from lora_ops.records.example import read_split
from lora_ops.registry.versions import Version
from lora_ops.serving.events import read_events
from lora_ops.serving.pseudonyms import SALT, Pseudonyms
from lora_ops.settings.serving import ServingSettings

WEEK = timedelta(days=7)
LEAST_PROMPTS = 50
BATCHES = 999
MOST_PROMPTS = 5000
Counts = npt.NDArray[np.int64]


def live_prompt_shift(
    version: Version, root: Path, serving: ServingSettings, now: datetime, least: float
) -> PromptShift | str:
    """Return how far the prompts of the last week are from a version's training rows, or why nobody can say.

    Args:
        version: whose training rows.
        root: the repository, with `data/prepared`.
        serving: where the gateway's event log is.
        now: the end of the week.
        least: the smallest difference that counts, in bits.
    """
    salt, rows = root / serving.path / SALT, root / "data/prepared" / version.tenant / "train.jsonl"
    if not salt.is_file():
        return f"no gateway ran in {serving.path} here"
    if not rows.is_file() or sha256_file(rows) != version.manifest.training.train_sha256:
        return (
            f"data/prepared/{version.tenant} is not the data of {version.id}: run `dvc repro "
            f"prepare@{version.tenant}` with its settings"
        )
    since = (now - WEEK).isoformat()
    try:
        events = read_events(
            root / serving.path / "events",
            f"tenant = '{version.tenant}' AND endpoint = 'chat' AND prompt_ngrams IS NOT NULL "
            f"AND time >= TIMESTAMPTZ '{since}'",
        )
        key = bytes.fromhex(Pseudonyms(salt).ngram_key(version.tenant))
    except LoraOpsError as error:
        return str(error).rstrip(".")
    # A prompt that is asked again counts once, as a training row does.
    live = sorted(set(events["prompt_ngrams"]))[:MOST_PROMPTS]
    if len(live) < LEAST_PROMPTS:
        return f"{len(live)} different prompts were counted in a week, and {LEAST_PROMPTS} are needed"
    train = read_split(rows.parent, "train")
    hashed = ngram_counts(hashed_ngrams(one.text, key) for one in train)
    try:
        return prompt_shift(ngram_counts(live), hashed, [one.group for one in train], least)
    except ValueError:
        return "the event log has n-grams that no gateway wrote"


def prompt_shift(live: Counts, train: Counts, groups: Sequence[str], least: float) -> PromptShift:
    """Return how far live prompts are from training rows, beside the spread among these.

    The distance is Jensen-Shannon's divergence in bits (Lin, 1991). The p-value is the share of batches of
    training rows that are as far from the others as live prompts are on average (Monte Carlo test: Davison and
    Hinkley, 1997, section 4.2).

    Args:
        live, train: (texts, buckets), n-gram counts.
        groups: of the training rows.
        least: the smallest difference that counts, in bits.
    """
    generator = np.random.default_rng(0)
    size = max(1, min(len(live), len(train) // 3))
    names, of_row = np.unique(np.asarray(groups), return_inverse=True)
    among, of_live = np.empty(BATCHES), np.empty(BATCHES)
    for draw in range(BATCHES):
        order = np.argsort(generator.permutation(len(names))[of_row], kind="stable")
        batch, others = train[order[:size]].sum(0), train[order[size:]].sum(0)
        among[draw] = divergence(batch, others)
        of_live[draw] = divergence(live[generator.choice(len(live), size, replace=False)].sum(0), others)
    distance, spread = float(of_live.mean()), float(among.mean())
    return PromptShift(
        prompts=len(live),
        batch=size,
        distance=round(distance, 6),
        spread=round(spread, 6),
        p_value=(1 + int((among >= distance).sum())) / (BATCHES + 1),
        least=least,
    )


def ngram_counts(hashed: Iterable[str]) -> Counts:
    """Return how often each bucket is in each text: (texts, BUCKETS).

    Raises:
        ValueError: one is no such hex.
    """
    rows = [np.bincount(np.frombuffer(bytes.fromhex(one), np.uint8), minlength=BUCKETS) for one in hashed]
    return np.array(rows, np.int64).reshape(-1, BUCKETS)


def divergence(one: Counts, other: Counts) -> float:
    """Return the Jensen-Shannon divergence of two counts (buckets,), from 0 to 1 bit."""
    p, q = one / max(1, one.sum()), other / max(1, other.sum())
    middle = (p + q) / 2
    parts = [part[part > 0] * np.log2(part[part > 0] / middle[part > 0]) for part in (p, q)]
    return float(sum(part.sum() for part in parts) / 2)
