"""How long answers become, as far as the last ones tell."""

from collections import OrderedDict, deque

LAST = 32  # answers of one kind that are remembered
KINDS = 4096
QUANTILE = 0.9
UNKNOWN = 256  # tokens that the first answers of a kind are expected to have at most


class AnswerLengths:
    """The lengths of the last answers of each kind.

    Answers of one adapter for one tenant are of the same kind where their `max_tokens` have the same number of
    binary digits: an adapter may name categories for one client and write texts for another.
    """

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple[str, str, int], deque[int]] = OrderedDict()

    def add(self, tenant: str, adapter: str, max_tokens: int, tokens: int) -> None:
        """Remember how many tokens an answer had, also one that ended early."""
        kind = (tenant, adapter, max_tokens.bit_length())
        self._kinds.setdefault(kind, deque(maxlen=LAST)).append(tokens)
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)

    def expected(self, tenant: str, adapter: str, max_tokens: int) -> int:
        """Return how many tokens the next answer will hardly exceed; never more than `max_tokens`."""
        last = self._kinds.get((tenant, adapter, max_tokens.bit_length()))
        if not last:
            return min(max_tokens, UNKNOWN)
        return min(max_tokens, sorted(last)[int(QUANTILE * len(last))])
