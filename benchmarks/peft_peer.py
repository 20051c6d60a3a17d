"""transformers' and PEFT's side of serving.py, in a process of its own: settings in, results out, as JSON."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

# A sequential peer takes minutes for a large batch: it gets as many runs as fit into this, or none.
ONE_BY_ONE_SECONDS = 180
Results = dict[int, tuple[float, float]]  # tokens/s and ms to the first token, by batch size


def transformers_base(given: dict[str, Any]) -> Results:
    """`generate` of transformers, without adapters."""
    model = _base(given)
    return {size: _generate(model, given, range(size)) for size in given["batches"]}


def peft_mixed(given: dict[str, Any]) -> Results:
    """PEFT's mixed batch: `adapter_names`."""
    model = _peft(given)
    return {
        size: _generate(model, given, range(size), adapter_names=[str(row) for row in range(size)])
        for size in given["batches"]
    }


def peft_one_by_one(given: dict[str, Any]) -> Results:
    """PEFT's `set_adapter` before each request."""
    model, new_tokens = _peft(given), given["new_tokens"]

    def run(size: int) -> tuple[float, float]:
        started, firsts = time.perf_counter(), []
        for row in range(size):
            model.set_adapter(str(row))
            waited = time.perf_counter() - started
            _run(model, given, [row], 1)
            firsts.append(waited + (alone := time.perf_counter() - started - waited))
            started += alone  # the first token was computed twice, once to be timed
            _run(model, given, [row], new_tokens)
        took = time.perf_counter() - started
        return size * new_tokens / took, statistics.median(firsts) * 1000

    results = Results()
    run(1)  # to warm up
    for size in given["batches"]:
        seconds = max([size * new_tokens / rate for rate, _ in results.values()], default=0)
        repeats = given["repeats"]
        if seconds:
            repeats = min(repeats, int(ONE_BY_ONE_SECONDS / seconds))
        if repeats < given["repeats"]:
            print(
                f"note: PEFT set_adapter at batch {size} takes {seconds:.0f} s a run: measured {repeats} "
                f"times, so that it stays under {ONE_BY_ONE_SECONDS} s."
            )
        if repeats:
            results[size] = _middle([run(size) for _ in range(repeats)])
    return results


def _middle(runs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(rate for rate, _ in runs), statistics.median(first for _, first in runs)


def _base(given: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_pretrained(given["base"], dtype=torch.float32).eval()


def _peft(given: dict[str, Any]) -> Any:
    adapted: Any = PeftModel.from_pretrained(_base(given), given["adapters"][0], adapter_name="0")
    for number, folder in enumerate(given["adapters"][1:], start=1):
        adapted.load_adapter(folder, adapter_name=str(number))
    return adapted.eval()


def _run(model: Any, given: dict[str, Any], rows: Any, new_tokens: int, **extra: Any) -> None:
    ids = torch.tensor([given["prompts"][row] for row in rows])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, **extra
    )
    assert made.shape[1] == ids.shape[1] + new_tokens


def _generate(model: Any, given: dict[str, Any], rows: range, **extra: Any) -> tuple[float, float]:
    def once() -> tuple[float, float]:
        started = time.perf_counter()
        _run(model, given, rows, 1, **extra)
        first = time.perf_counter()
        _run(model, given, rows, given["new_tokens"], **extra)
        took = time.perf_counter() - first
        return len(rows) * given["new_tokens"] / took, (first - started) * 1000

    _run(model, given, rows, 2, **extra)  # to warm up
    return _middle([once() for _ in range(given["repeats"])])


PEERS: dict[str, Callable[[dict[str, Any]], Results]] = {
    "transformers": transformers_base,
    "mixed": peft_mixed,
    "one by one": peft_one_by_one,
}


def main() -> None:
    """Measure the peer that is named."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(PEERS[given["peer"]](given)))


if __name__ == "__main__":
    main()
