"""vLLM's side of serving.py, run by a Python that has vLLM: settings in, results out, as JSON."""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def main() -> None:
    """Measure each batch size."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    given: dict[str, Any] = json.loads(sys.argv[1])
    adapters = given["adapters"]
    lora = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": given["rank"]} if adapters else {}
    llm = LLM(
        given["base"],
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=max(given["batches"]),
        enable_prefix_caching=False,
        **lora,
    )

    def run(size: int, new_tokens: int) -> float:
        prompts = [{"prompt_token_ids": prompt} for prompt in given["prompts"][:size]]
        sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=True)
        requests = [LoRARequest(str(row), row + 1, adapters[row]) for row in range(size)] if adapters else None
        started = time.perf_counter()
        answers = llm.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
        took = time.perf_counter() - started
        assert all(len(answer.outputs[0].token_ids) == new_tokens for answer in answers)
        return took

    results = {}
    for size in given["batches"]:
        run(size, given["new_tokens"])
        rate = statistics.median(
            size * given["new_tokens"] / run(size, given["new_tokens"]) for _ in range(given["repeats"])
        )
        results[size] = rate, statistics.median(run(size, 1) for _ in range(given["repeats"])) * 1000
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
