"""Replay days of traffic through replicas that are scaled by tokens or by requests: replicas, cost and latency.

A simulation. Each replica works off tokens at the rates of `autoscaling` in params.yaml, first
come, first served. A request goes to the replica with the least work before it. KEDA's rules hold: a look each
`poll_seconds`, replicas = metric / target, rounded up, and fewer only after `down_after_seconds`. A new replica
is paid at once and answers after `--start-seconds`. One that goes finishes what it has. How long an answer
becomes is known to `tokens` here, where a gateway counts what answers of its kind hardly exceed.

Both policies see the same days: chats by day, with a peak at noon; for two hours at night and one in the
afternoon a batch of long documents; a burst of long answers in the morning. Each policy is shown at several
targets, since a policy is better only where it has both less cost and less latency.
"""

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from lora_ops.settings.autoscaling import AutoscalingSettings
from lora_ops.settings.params import load_settings

DAY, HOUR = 86_400, 3600
TOKEN_TARGETS = (1.0, 2.0, 4.0, 8.0, 16.0)
REQUEST_TARGETS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Request:
    at: float
    read: int
    written: int


@dataclass
class Replica:
    ready: float
    paid_from: float
    free: float = 0.0
    ends: list[float] = field(default_factory=list)


def day(seed: int, scale: float) -> list[Request]:
    """Return a day's requests, in order."""
    draw = random.Random(seed)
    made = []

    def stream(first: float, last: float, rate: Callable[[float], float], read: float, written: float) -> None:
        at = first
        while (at := at + draw.expovariate(max(1e-6, rate(at)))) < last:
            tokens = (max(1, int(draw.lognormvariate(math.log(mean_), 0.6))) for mean_ in (read, written))
            made.append(Request(at, next(tokens), next(tokens)))

    stream(
        0, DAY, lambda at: scale * (0.15 + 1.05 * max(0.0, math.sin((at / HOUR - 6) / 12 * math.pi))), 120, 30
    )
    for first, last in ((2, 4), (15, 16)):
        stream(first * HOUR, last * HOUR, lambda at: scale * 0.8, 3000, 20)
    stream(9 * HOUR, 9.5 * HOUR, lambda at: scale * 0.8, 100, 400)
    return sorted(made, key=lambda one: one.at)


def replay(
    requests: list[Request], settings: AutoscalingSettings, by_tokens: bool, target: float, start_seconds: float
) -> tuple[float, int, list[float]]:
    """Return the replicas' hours, the most replicas at once, and each request's latency in seconds."""
    replicas = [Replica(0.0, 0.0) for _ in range(settings.min_replicas)]
    wanted: deque[tuple[float, int]] = deque()
    latencies, paid, most, look, place = [], 0.0, len(replicas), 0.0, 0
    while look < DAY:
        until = look + settings.poll_seconds
        while place < len(requests) and requests[place].at < until:
            one = requests[place]
            place += 1
            work = (
                one.read / settings.prefill_tokens_per_second + one.written / settings.decode_tokens_per_second
            )
            ready = [each for each in replicas if each.ready <= one.at] or [
                min(replicas, key=lambda r: r.ready)
            ]
            chosen = min(ready, key=lambda each: max(each.free, each.ready))
            chosen.free = max(one.at, chosen.free, chosen.ready) + work
            heapq.heappush(chosen.ends, chosen.free)
            latencies.append(chosen.free - one.at)
        look = until
        for each in replicas:
            while each.ends and each.ends[0] <= look:
                heapq.heappop(each.ends)
        seconds = sum(max(0.0, each.free - look) for each in replicas)
        metric = seconds if by_tokens else float(sum(len(each.ends) for each in replicas))
        now = min(settings.max_replicas, max(settings.min_replicas, math.ceil(metric / target)))
        wanted.append((look, now))
        while wanted[0][0] < look - settings.down_after_seconds:
            wanted.popleft()
        number = max(now, min(len(replicas), max(count for _, count in wanted)))
        while len(replicas) < number:
            replicas.append(Replica(look + start_seconds, look))
        while len(replicas) > number:
            gone = replicas.pop()
            paid += max(look, gone.free) - gone.paid_from
        most = max(most, len(replicas))
    paid += sum(DAY - each.paid_from for each in replicas)
    return paid / HOUR, most, latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=5, help="simulated, each with a seed of its own")
    parser.add_argument("--scale", type=float, default=1.0, help="of the traffic")
    parser.add_argument("--start-seconds", type=float, default=60.0, help="until a new replica answers")
    arguments = parser.parse_args()
    everything = load_settings(Path(__file__).resolve().parent.parent)
    settings, costs = everything.autoscaling, everything.costs
    days = [day(seed, arguments.scale) for seed in range(arguments.days)]
    rates = f"{settings.prefill_tokens_per_second:g} read and {settings.decode_tokens_per_second:g} written"
    print(f"{arguments.days} days of {mean(map(len, days)):,.0f} requests; {rates} tokens/s a replica")
    heads = ("replicas", "most", f"{costs.currency}/day", "P50 s", "P95 s", "P99 s")
    print(f"{'scaled by':<12}{'target':>14}" + "".join(f"{head:>10}" for head in heads))
    rows = [(f"{settings.max_replicas} fixed", None, False)]
    rows += [("tokens", each, True) for each in TOKEN_TARGETS]
    rows += [("requests", float(each), False) for each in REQUEST_TARGETS]
    for name, target, by_tokens in rows:
        used = settings
        if target is None:
            used = settings.model_copy(update={"min_replicas": settings.max_replicas})
        found = [replay(one, used, by_tokens, target or 1.0, arguments.start_seconds) for one in days]
        hours = mean(each[0] for each in found)
        late = sorted(second for each in found for second in each[2])
        p50, p95, p99 = (late[int(part * len(late))] for part in (0.5, 0.95, 0.99))
        said = "" if target is None else f"{target:g} {'s' if by_tokens else 'requests'}"
        most = max(each[1] for each in found)
        numbers = (hours / 24, most, hours * costs.device_hour.gpu, p50, p95, p99)
        print(f"{name:<12}{said:>14}" + "".join(f"{number:>10.4g}" for number in numbers))


if __name__ == "__main__":
    main()
