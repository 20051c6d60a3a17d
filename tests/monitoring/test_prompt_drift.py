"""Live prompts beside training rows: silent on the same world, told on another, and never by their text."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_ops.hashing import sha256_file
from lora_ops.monitoring.prompt_drift import live_prompt_shift, ngram_counts, prompt_shift
from lora_ops.ngrams import BUCKETS, hashed_ngrams
from lora_ops.records.drift import PromptShift
from lora_ops.records.example import Example
from lora_ops.serving.events import EventLog
from lora_ops.serving.pseudonyms import Pseudonyms
from lora_ops.settings.serving import EventSettings, ServingSettings
from tests.serving.test_events import event

KEY = b"k" * 32
SHOPS = ("grand hotel", "city taxi", "corner bakery", "sun airlines", "book store", "river museum")
CLINIC = ("acute fever", "broken wrist", "skin rash", "high pressure", "deep cough", "blurred vision")
TOWNS = ("porto", "lyon", "graz", "turku", "cork", "bergen", "gdansk", "brno", "ghent", "malmo")


def texts(words: tuple[str, ...], count: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return [f"{drawn.choice(words)} {drawn.choice(TOWNS)} {drawn.randrange(100)}" for _ in range(count)]


def shift(live: list[str], train: list[str]) -> PromptShift:
    counted = (ngram_counts(hashed_ngrams(text, KEY) for text in one) for one in (live, train))
    return prompt_shift(*counted, groups=[str(row) for row in range(len(train))], least=0.002)


@pytest.mark.parametrize("seed", range(3))
def test_prompts_of_the_same_world_are_no_drift(seed: int) -> None:
    assert not shift(texts(SHOPS, 200, seed), texts(SHOPS, 300, seed + 100)).is_drift(0.01)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_prompts_of_another_world_are_drift(share: float) -> None:
    others = int(200 * share)
    live = texts(CLINIC, others, 1) + texts(SHOPS, 200 - others, 2)
    found = shift(live, texts(SHOPS, 300, 3))
    assert found.is_drift(0.01) and found.p_value == 0.001


def serve(root: Path, prompts: list[str], when: datetime) -> None:
    """Let an event log write requests with these prompts, whose texts it may not keep."""
    names = Pseudonyms(root / ".serving/users.salt")
    log = EventLog(root / ".serving/events", EventSettings(), lambda tenant: False, ngram_key=names.ngram_key)
    for number, prompt in enumerate(prompts):
        log.append(
            event(
                number % 60, time=when, prompt_text=f"system: Name it.\nuser: {prompt}", answer_text="Lodging"
            )
        )
    log.close()


def version_of(root: Path) -> Any:
    """Return a version that was trained on the rows in `root`; only its data matters here."""
    folder = root / "data/prepared/finance"
    folder.mkdir(parents=True)
    rows = [
        Example(id=str(row), group=f"{row % 60}", text=text, target="x", prompt="", completion="")
        for row, text in enumerate(texts(SHOPS, 240, 5))
    ]
    (folder / "train.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in rows))
    training = SimpleNamespace(train_sha256=sha256_file(folder / "train.jsonl"))
    return SimpleNamespace(tenant="finance", id="finance@1", manifest=SimpleNamespace(training=training))


def test_prompts_are_compared_without_their_text(tmp_path: Path) -> None:
    """The log has n-grams and no word of a prompt, and the same prompts again tell nothing new."""
    version, now = version_of(tmp_path), datetime.now(UTC)
    serving = ServingSettings()

    def look() -> PromptShift | str:
        return live_prompt_shift(version, tmp_path, serving, now, 0.002)

    assert look() == "no gateway ran in .serving here"
    serve(tmp_path, texts(SHOPS, 40, 6), now - timedelta(days=1))
    assert "different prompts were counted in a week, and 50 are needed" in str(look())
    serve(tmp_path, texts(CLINIC, 120, 8), now - timedelta(days=8))
    serve(tmp_path, texts(SHOPS, 120, 7), now - timedelta(days=2))
    found = look()
    assert isinstance(found, PromptShift) and not found.is_drift(0.01)
    serve(tmp_path, texts(CLINIC, 120, 8), now - timedelta(hours=1))
    found = look()
    assert isinstance(found, PromptShift) and found.is_drift(0.01)
    lines = [
        line for path in (tmp_path / ".serving/events").iterdir() for line in path.read_text().splitlines()
    ]
    assert not any(word in line for line in lines for word in ("taxi", "fever", "porto"))
    assert all(json.loads(line)["prompt_ngrams"] for line in lines)


def test_prompts_are_not_compared_with_other_rows(tmp_path: Path) -> None:
    version = version_of(tmp_path)
    serve(tmp_path, texts(SHOPS, 60, 1), datetime.now(UTC))
    with (tmp_path / "data/prepared/finance/train.jsonl").open("a") as file:
        file.write("\n")
    said = live_prompt_shift(version, tmp_path, ServingSettings(), datetime.now(UTC), 0.002)
    assert "data/prepared/finance is not the data of finance@1" in str(said)


def test_ngram_counts_count_each_text() -> None:
    counts = ngram_counts(["00ff00", ""])
    assert counts.shape == (2, BUCKETS) and counts[0, 0] == 2 and counts[0, 255] == 1 and not counts[1].any()
    assert ngram_counts([]).shape == (0, BUCKETS)
    with pytest.raises(ValueError, match="hex"):
        ngram_counts(["zz"])
