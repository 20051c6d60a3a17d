"""How much a tenant may ask for: requests and tokens a minute, and requests at the same time."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_ops.errors import LoraOpsError
from lora_ops.settings.serving import TenantServing


class NeverFits(LoraOpsError):
    """A request that is too large however long it waited."""


class TooMany(LoraOpsError):
    """A tenant asked for more than its limit; `retry_after` is in seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Bucket:
    """A token bucket: it holds what one minute allows and fills up evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_second = per_minute / 60
        self._capacity = float(per_minute)
        self._level = self._capacity
        self._clock = clock
        self._at = clock()

    def take(self, amount: float) -> float:
        """Take `amount` and give 0, or take nothing and give the seconds until it can be taken (inf: never)."""
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._at) * self._per_second)
        self._at = now
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return math.inf if amount > self._capacity else (amount - self._level) / self._per_second

    def left(self) -> tuple[float, float]:
        """Return what can be taken now, and in how many seconds it is full again."""
        self.take(0)
        return self._level, (self._capacity - self._level) / self._per_second

    def spend(self, amount: float) -> None:
        """Take `amount`, or all there is."""
        self._level = max(0.0, self._level - amount)

    def give_back(self, amount: float) -> None:
        """Return what was taken and not used."""
        self._level = min(self._capacity, self._level + amount)


class Place:
    """One of the requests that a tenant may have at the same time, until it ends."""

    def __init__(self, allowance: "Allowance") -> None:
        self._allowance: Allowance | None = allowance
        allowance.open += 1

    def end(self) -> None:
        """Give the place back; nothing happens the second time."""
        if self._allowance:
            self._allowance.open -= 1
        self._allowance = None


class Allowance:
    """What one tenant may still do."""

    def __init__(self, limits: TenantServing, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._requests = Bucket(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self._tokens = Bucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self.open = 0

    def headers(self) -> dict[str, str]:
        """Return the headers with which OpenAI says what is left; none for what has no limit."""
        found = {}
        for kind, limit, bucket in (
            ("requests", self._limits.requests_per_minute, self._requests),
            ("tokens", self._limits.tokens_per_minute, self._tokens),
        ):
            if bucket:
                left, seconds = bucket.left()
                found[f"x-ratelimit-limit-{kind}"] = str(limit)
                found[f"x-ratelimit-remaining-{kind}"] = str(int(left))
                found[f"x-ratelimit-reset-{kind}"] = _duration(seconds)
        return found

    @contextmanager
    def reading(self, tenant: str, tokens: int) -> Iterator[Place]:
        """Spend one request, before its prompt is tokenized, and about as many tokens as that has.

        The tokens are given back at the end: `spending` counts them exactly. They stay spent where the block
        fails, so that a prompt that is refused is no free one. The request keeps its place until it ends: if it
        gave it back here, another one could take it, and a prompt that was read would be refused.

        Raises:
            TooMany: it is over one of the tenant's limits; nothing is counted then.
        """
        self._require_place(tenant)
        limits = self._limits
        # An estimate refuses nothing for ever: no more than a whole minute's tokens.
        estimate = min(tokens, limits.tokens_per_minute or 0)
        if self._tokens and (wait := self._tokens.take(estimate)):
            raise TooMany(f"'{tenant}' has used up its {limits.tokens_per_minute} tokens a minute.", wait)
        if self._requests and (wait := self._requests.take(1)):
            if self._tokens:
                self._tokens.give_back(estimate)
            raise TooMany(f"'{tenant}' has made its {limits.requests_per_minute} requests a minute.", wait)
        place = Place(self)
        try:
            yield place
        except BaseException:
            place.end()
            raise
        if self._tokens:
            self._tokens.give_back(estimate)

    @contextmanager
    def spending(self, tenant: str, tokens: int, read: int = 0) -> Iterator[Callable[[int], None]]:
        """One request that was read and may take `tokens`; call what it gives with how many it took.

        Raises:
            TooMany: it is over the tenant's tokens; only those of its prompt are spent then.
            NeverFits: it may take more than the tenant has in a whole minute.
        """
        limits = self._limits
        if self._tokens and (wait := self._tokens.take(tokens)):
            self._tokens.spend(read)
            if math.isinf(wait):
                raise NeverFits(
                    f"This request may take {tokens} tokens, and '{tenant}' has {limits.tokens_per_minute} a "
                    "minute: ask for fewer with max_tokens."
                )
            raise TooMany(f"'{tenant}' has used up its {limits.tokens_per_minute} tokens a minute.", wait)
        used = tokens

        def spent(count: int) -> None:
            nonlocal used
            used = count

        try:
            yield spent
        finally:
            if self._tokens and used > tokens:  # it moved to a version with a longer prompt
                self._tokens.spend(used - tokens)
            elif self._tokens:
                self._tokens.give_back(tokens - used)

    def spend(self, tokens: int) -> None:
        """Spend tokens that were read for no answer, or all that are left."""
        if self._tokens:
            self._tokens.spend(tokens)

    def _require_place(self, tenant: str) -> None:
        limit = self._limits.concurrency
        if limit and self.open >= limit:
            raise TooMany(f"'{tenant}' has {self.open} requests open, which is its limit: wait for one.", 1.0)


def _duration(seconds: float) -> str:
    """Return a time as OpenAI writes it: 120ms, 6s, 1m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"
