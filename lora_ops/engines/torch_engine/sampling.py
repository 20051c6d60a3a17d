"""The next token of each row: the most likely one, or one drawn from a nucleus.

A request may shape the logits first. The order is vLLM's, so that both engines mean the same: the client's
bias, penalties, tokens that may not come, temperature, min_p, top_k, top_p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from lora_ops.engines.protocol import Sampling

# Most nuclei are small: look among this many tokens before sorting a whole vocabulary.
LIKELY = 1024
# Requests whose tokens are remembered as tensors.
KEPT = 64
# A probability of 1 in whole parts.
PARTS = 2.0**52
# Bits of a float64 that a bucket leaves out: its sign, its exponent and 8 bits of its fraction stay.
DIGITS = 44
SMALLEST = (1023 - 53) << (52 - DIGITS)  # the first bits of half a part
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Row:
    """What decides the next token of one sequence, besides its logits.

    Attributes:
        sampling: what the request asks for.
        generator: on the CPU, of a row with a temperature; each token draws one number.
        tokens: of the prompt and of the answer so far.
        prompt: how many of them are the prompt.
        ends: tokens that end the answer.
        forbidden: which tokens the answer's form leaves out: (vocabulary,), of bool.
    """

    sampling: Sampling
    generator: torch.Generator | None = None
    tokens: Sequence[int] = ()
    prompt: int = 0
    ends: frozenset[int] = frozenset()
    forbidden: torch.Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """One chosen token; `logprob` and `top` are there where they were asked for.

    Both are of the model's own distribution, before anything that the request changes.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: torch.Tensor, rows: Sequence[Row]) -> list[Choice]:
    """Return one token for each row.

    Args:
        logits: (rows, vocabulary).
        rows: in the same order.
    """
    tokens = logits.max(-1).indices.tolist()  # argmax takes more than twice as long
    for index, row in enumerate(rows):
        shaped = _shaped(logits[index], row)
        if row.sampling.temperature > 0:
            assert row.generator is not None
            # One number a token, whatever the other rows do: that is what makes a seed repeatable in any batch.
            number = torch.rand((), generator=row.generator, dtype=torch.float64).item()
            tokens[index] = _draw(logits[index] if shaped is None else shaped, row.sampling, number)
        elif shaped is not None:
            tokens[index] = int(shaped.max(-1).indices)
    choices = [Choice(token) for token in tokens]
    for index, row in enumerate(rows):
        if row.sampling.logprobs is not None:
            (choices[index],) = with_logprobs(logits[index : index + 1], [tokens[index]], row.sampling)
    return choices


def with_logprobs(logits: torch.Tensor, tokens: Sequence[int], sampling: Sampling) -> list[Choice]:
    """Return the tokens with their probabilities and the alternatives that `sampling.logprobs` asks for.

    Args:
        logits: (tokens, vocabulary), each row before its token.
        tokens: which stand there.
        sampling: of their request.
    """
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(sampling.logprobs or 0, logprobs.shape[-1]))
    own = logprobs[range(len(tokens)), list(tokens)]
    tops = [tuple(zip(*both, strict=True)) for both in zip(ids.tolist(), values.tolist(), strict=True)]
    return [Choice(*one) for one in zip(tokens, own.tolist(), tops, strict=True)]


def _shaped(logits: torch.Tensor, row: Row) -> torch.Tensor | None:
    """Return the logits as the request changes them, or None where it changes nothing."""
    sampling = row.sampling
    answered = len(row.tokens) - row.prompt
    waits = answered < sampling.min_tokens and row.ends
    if not (waits or sampling.logit_bias or sampling.penalizes or row.forbidden is not None):
        return None
    shaped = logits.float().clone()
    if sampling.logit_bias:
        ids, values = _biases(sampling.logit_bias)
        shaped.index_add_(0, ids.to(shaped.device), values.to(shaped.device))
    if sampling.penalizes:
        _penalize(shaped, row)
        shaped.clamp_(-LARGEST, LARGEST)  # a tiny repetition penalty makes infinity, and two of them NaN
    # Last, where nothing can make minus infinity into something else.
    if row.forbidden is not None:
        shaped.masked_fill_(row.forbidden.to(shaped.device), -math.inf)
    if waits:
        shaped.index_fill_(0, _ids(row.ends).to(shaped.device), -math.inf)
    return shaped


@lru_cache(KEPT)
def _biases(logit_bias: tuple[tuple[int, float], ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens and what is added to each: made once a request, as thousands take a millisecond."""
    ids, values = zip(*logit_bias, strict=True)
    return torch.tensor(ids), torch.tensor(values, dtype=torch.float32)


@lru_cache(KEPT)
def _ids(tokens: frozenset[int]) -> torch.Tensor:
    return torch.tensor(list(tokens))


def _penalize(logits: torch.Tensor, row: Row) -> None:
    """Make tokens less likely that were there already, in place.

    `repetition_penalty` is that of CTRL (Keskar et al., 2019, arXiv:1909.05858) and counts the prompt, too. The
    other two are OpenAI's, and count the answer alone.
    """
    sampling = row.sampling
    if sampling.repetition_penalty != 1:
        # A token that came twice is written twice, with the same value: a set would take longer than that.
        seen = torch.tensor(row.tokens, device=logits.device)
        found = logits[seen]
        factor = sampling.repetition_penalty
        logits[seen] = torch.where(found > 0, found / factor, found * factor)
    if sampling.frequency_penalty or sampling.presence_penalty:
        answer = torch.tensor(row.tokens[row.prompt :], dtype=torch.long, device=logits.device)
        said, counts = answer.unique(return_counts=True)
        logits[said] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def _draw(logits: torch.Tensor, sampling: Sampling, number: float) -> int:
    """Draw from what the request leaves of the distribution, by inverting the distribution function."""
    scores = logits.double()
    # Below the best score by so much that a tiny temperature overflows to minus infinity, not to NaN.
    scores = (scores - scores.max()) / sampling.temperature
    if sampling.min_p > 0:  # (Nguyen et al., 2024, arXiv:2407.01082); the best score is 0
        scores = scores.masked_fill(scores < math.log(sampling.min_p), -math.inf)
    if 0 < sampling.top_k < len(scores):
        scores, ids = scores.topk(sampling.top_k)
        return int(ids[_nucleus(scores.softmax(-1), sampling.top_p, number)])
    return _nucleus(scores.softmax(-1), sampling.top_p, number)


def _nucleus(probabilities: torch.Tensor, top_p: float, number: float) -> int:
    """Nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751); equally likely tokens go in their order.

    Probabilities are counted in whole parts of `PARTS`. Sums of these are exact in any order, so that a wide
    nucleus is not sorted as a whole: only the tokens that are about as likely as the one looked for.
    """
    if top_p >= 1:
        return _invert(probabilities, number)
    likely = probabilities.topk(min(LIKELY, len(probabilities))).values
    within = _parts(likely).sum().item()
    buckets: _Buckets | None = None

    def crossing(mass: float) -> tuple[torch.Tensor, int, float]:
        nonlocal buckets
        if mass <= within:
            return _crossing(likely, 0.0, mass)
        buckets = buckets or _Buckets(probabilities)
        return buckets.crossing(mass)

    # The token that crosses top_p belongs to the nucleus, so it is never empty.
    wanted = math.ceil(top_p * PARTS)
    if wanted > within:
        wanted = min(wanted, int(_parts(probabilities).sum()))
    _, _, mass = crossing(wanted)
    value, earlier, _ = crossing(min(math.floor(number * mass) + 1, mass))
    return int((probabilities == value).nonzero()[earlier])


class _Buckets:
    """Probabilities by their first digits, so that a few of them are found without sorting all."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        self._probabilities = probabilities
        # The bits of positive numbers have the numbers' order. Those below one part share the first bucket.
        self._keys = ((probabilities.view(torch.int64) >> DIGITS) - SMALLEST).clamp_(min=0)
        self._masses = self._keys.bincount(_parts(probabilities)).flip(-1)  # the likeliest first
        self._reached = self._masses.cumsum(-1)

    def crossing(self, mass: float) -> tuple[torch.Tensor, int, float]:
        """Return what `_crossing` returns of all probabilities."""
        place = int(torch.searchsorted(self._reached, mass))
        inside = self._probabilities[self._keys == len(self._masses) - 1 - place]
        before = (self._reached[place] - self._masses[place]).item()
        return _crossing(inside.sort(descending=True).values, before, mass)


def _crossing(ordered: torch.Tensor, before: float, mass: float) -> tuple[torch.Tensor, int, float]:
    """Return the probability at which a sum of the likeliest ones reaches `mass`, and the sum.

    Args:
        ordered: the likeliest first.
        before: sum of those that are likelier.

    Returns:
        The probability, how many as likely tokens the sum has before that one, and the sum.
    """
    reached = _parts(ordered).cumsum(-1) + before
    place = int(torch.searchsorted(reached, mass))
    value = ordered[place]
    return value, place - int((ordered > value).sum()), reached[place].item()


def _parts(probabilities: torch.Tensor) -> torch.Tensor:
    """Return probabilities in whole parts, of which a float64 holds every sum exactly."""
    return (probabilities * PARTS).floor()


def _invert(probabilities: torch.Tensor, number: float) -> int:
    reached = probabilities.cumsum(-1)
    place = int(torch.searchsorted(reached, number * reached[-1].item(), right=True))
    return min(place, len(probabilities) - 1)
