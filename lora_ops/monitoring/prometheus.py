"""Ask a Prometheus by its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api)."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.escaping import shortened
from lora_ops.small_files import parse_json

LARGEST_ANSWER = 256 * 2**20
SECONDS = 60.0
"""That one query may take."""
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """One value of one series; `time` is in seconds since 1970."""

    labels: Mapping[str, str]
    time: float
    value: float


class Prometheus:
    """One Prometheus server.

    Args:
        url: such as http://127.0.0.1:9090.
        seconds: that one query may take.
    """

    def __init__(self, url: str, seconds: float = SECONDS) -> None:
        self.url = url
        self._seconds = seconds

    def instant(self, query: str, at: float) -> list[Sample]:
        """Return the value of each series that a query gives at a moment.

        Args:
            query: in PromQL.
            at: seconds since 1970.

        Raises:
            Unavailable: nothing answers there in time, or what answers is no Prometheus.
            LoraOpsError: Prometheus refuses the query.
        """
        found = self._asked("query", {"query": query, "time": f"{at:.3f}"}, "vector")
        return [self._sample(one, one.get("value") if isinstance(one, dict) else None) for one in found]

    def series(self, query: str, start: float, end: float, step: float) -> list[Sample]:
        """Return the values of a query at each step of a time range, both ends included.

        Args:
            query: in PromQL.
            start, end: seconds since 1970.
            step: seconds.

        Raises:
            Unavailable, LoraOpsError: as `instant`.
        """
        given = {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        found = self._asked("query_range", given, "matrix")
        return [self._sample(one, value) for one in found for value in self._values(one)]

    def rise(self, metric: str, created: str, window: int, at: float) -> dict[Labels, float]:
        """Return by how much each counter rose in a window, to the last one that was scraped.

        PromQL's `increase` leaves out what a counter had counted at its first scrape, and scales up what it saw
        to the whole window. So counts of a gateway that started in the window would be neither whole nor exact.

        Args:
            metric: a counter's selector, such as `lora_ops_requests_total{tenant="finance"}`.
            created: the selector of the time at which it began to count.
            window: seconds.
            at: when the window ends, in seconds since 1970.

        Returns:
            Labels to the rise. It is estimated by `increase` where the gateway was restarted in the window.

        Raises:
            Unavailable, LoraOpsError: as `instant`.
        """
        last, before, first, began, again = (
            {_labels(one.labels): one.value for one in self.instant(query, at)}
            for query in (
                f"last_over_time({metric}[{window}s])",
                f"{metric} offset {window}s",
                f"min_over_time({metric}[{window}s])",
                f"last_over_time({created}[{window}s])",
                f"increase({metric}[{window}s]) and resets({metric}[{window}s]) > 0",
            )
        )
        risen = {}
        for labels, value in last.items():
            if labels in again:
                risen[labels] = again[labels]
            elif labels in before:
                risen[labels] = value - before[labels]
            else:
                # It began in the window, or else Prometheus did.
                counter = frozenset(pair for pair in labels if pair[0] != "le")
                from_zero = began.get(counter, -math.inf) >= at - window
                risen[labels] = value - (0 if from_zero else first[labels])
        return risen

    def _asked(self, path: str, given: dict[str, str], kind: str) -> list[Any]:
        status, content = self._answer(path, given)
        try:
            said = parse_json(content)
            if status in (400, 422) and said["status"] == "error":
                raise LoraOpsError(f"Prometheus at {self.url} refuses a query: {shortened(said['error'])}.")
            data = said["data"]
            if status != 200 or data["resultType"] != kind or not isinstance(data["result"], list):
                raise ValueError
        except (ValueError, LookupError, TypeError) as error:
            raise self._no_prometheus(f"status {status}") from error
        return list(data["result"])

    def _answer(self, path: str, given: dict[str, str]) -> tuple[int, bytes]:
        import httpx

        url, content, deadline = f"{self.url}/api/v1/{path}", bytearray(), time.monotonic() + self._seconds
        try:
            # A proxy of the environment doesn't reach this machine.
            with (
                httpx.Client(timeout=self._seconds, trust_env=not _is_here(self.url)) as client,
                client.stream("POST", url, data=given) as answer,
            ):
                for part in answer.iter_bytes():
                    content += part
                    # httpx's own limit is of each read.
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"no whole answer in {self._seconds:g} seconds")
                    if len(content) > LARGEST_ANSWER:
                        raise self._no_prometheus(f"more than {LARGEST_ANSWER >> 20} MiB")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"Prometheus at {self.url} can't be asked ({reason}).") from error
        return answer.status_code, bytes(content)

    def _sample(self, one: Any, value: Any) -> Sample:
        try:
            moment, number = value
            return Sample({str(k): str(v) for k, v in one["metric"].items()}, float(moment), float(number))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._no_prometheus("a sample that is none") from error

    def _values(self, one: Any) -> Iterator[Any]:
        try:
            yield from one["values"]
        except (LookupError, TypeError) as error:
            raise self._no_prometheus("a series that is none") from error

    def _no_prometheus(self, said: str) -> Unavailable:
        return Unavailable(f"What answers at {self.url} is no Prometheus ({said}): correct the address.")


def _labels(labels: Mapping[str, str]) -> Labels:
    return frozenset((name, value) for name, value in labels.items() if name != "__name__")


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False
