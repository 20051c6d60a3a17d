"""llama.cpp's side of serving.py, through its server: settings in, results out, as JSON."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

START_SECONDS = 120
CONTEXT = 1024  # tokens of one request


def convert(script: Path, *arguments: Any) -> None:
    """Run one of llama.cpp's own converters."""
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-2000:]}")


def write_gguf(given: dict[str, Any], sources: Path, folder: Path) -> tuple[Path, list[Path]]:
    """Write the base model and the adapters as GGUF files, the base model in `given["dtype"]`.

    A file that an earlier turn wrote is taken as it is.
    """
    kind = {"bfloat16": "bf16", "float32": "f32"}[given["dtype"]]
    base = folder / f"base-{kind}.gguf"
    if not base.exists():
        convert(sources / "convert_hf_to_gguf.py", given["base"], "--outtype", kind, "--outfile", base)
    adapters = []
    for number, adapter in enumerate(given["adapters"]):
        adapters.append(folder / f"{number}.gguf")
        if not adapters[-1].exists():
            told = ("--base", given["base"], "--outtype", "bf16", "--outfile", adapters[-1])
            convert(sources / "convert_lora_to_gguf.py", adapter, *told)
    return base, adapters


@contextmanager
def serving(sources: Path, base: Path, adapters: list[Path], slots: int) -> Iterator[httpx.Client]:
    """Run llama.cpp's server, and yield a client of it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sources / "build/bin/llama-server", "--model", base, "--port", port, "--parallel", slots]
    command += ["--ctx-size", slots * CONTEXT, "--threads", os.cpu_count(), "--threads-batch", os.cpu_count()]
    command += ["--no-webui", "--lora-init-without-apply"] if adapters else ["--no-webui"]
    for adapter in adapters:
        command += ["--lora", adapter]
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        try:
            fresh = httpx.Limits(max_keepalive_connections=0)  # the server closes idle connections
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=600, limits=fresh) as client:
                _wait(client, process, Path(log.name))
                yield client
        except httpx.TransportError as error:
            raise SystemExit(f"llama-server: {error}\n{Path(log.name).read_text()[-2000:]}") from error
        finally:
            process.terminate()
            process.wait()


def _wait(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"llama-server did not start:\n{log.read_text()[-2000:]}")


def ask(client: httpx.Client, given: dict[str, Any], row: int, first: int) -> list[float]:
    """Return when each token of one answer came."""
    body = {
        "prompt": [first, *given["prompts"][row][1:]],
        "n_predict": given["new_tokens"],
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": False,
        "stream": True,
        "return_tokens": True,
    }
    if given["adapters"]:
        body["lora"] = [{"id": row, "scale": 1.0}]
    times: list[float] = []
    with client.stream("POST", "/completion", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                times += [time.perf_counter()] * len(json.loads(line[6:]).get("tokens") or ())
    return times


def measure(client: httpx.Client, given: dict[str, Any], size: int, first: int) -> tuple[float, float]:
    """Return tokens per second and the median milliseconds to the first token of `size` requests at once."""
    with ThreadPoolExecutor(size) as pool:
        started = time.perf_counter()
        rows = list(pool.map(lambda row: ask(client, given, row, first), range(size)))
    assert all(len(times) == given["new_tokens"] for times in rows), [len(times) for times in rows]
    took = max(times[-1] for times in rows) - started
    to_first = statistics.median(times[0] for times in rows) - started
    return size * given["new_tokens"] / took, to_first * 1000


def main() -> None:
    """Measure each batch size, after a run that warms up."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    sources, results = Path(given["sources"]), {}
    base, adapters = write_gguf(given, sources, Path(given["folder"]))
    with serving(sources, base, adapters, max(given["batches"])) as client:
        for size in given["batches"]:
            runs = [measure(client, given, size, 1000 + run) for run in range(given["repeats"] + 1)][1:]
            results[size] = tuple(map(statistics.median, zip(*runs, strict=True)))
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
