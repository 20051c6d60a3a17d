"""The next token of each row: the most likely one, or one drawn from a nucleus."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_ops.engines.protocol import Sampling

# Most nuclei are small: look among this many tokens before sorting a whole vocabulary.
LIKELY = 1024


@dataclass(frozen=True)
class Choice:
    """One chosen token; `logprob` and `top` are filled where they were asked for.

    Both are of the model's own distribution, before temperature and top_p.
    """

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def choose(
    logits: torch.Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> list[Choice]:
    """One token for each row.

    Args:
        logits: (rows, vocabulary).
        generators: of the rows with a temperature, on the CPU; each draws one number.
    """
    tokens = logits.max(-1).indices.tolist()  # argmax takes more than twice as long
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    for row in drawn:
        generator = generators[row]
        assert generator is not None
        # One number a token, whatever the other rows do: that is what makes a seed repeatable in any batch.
        number = torch.rand((), generator=generator, dtype=torch.float64).item()
        tokens[row] = _draw(logits[row], samplings[row], number)
    choices = [Choice(token) for token in tokens]
    for row, sampling in enumerate(samplings):
        if sampling.logprobs is not None:
            logprobs = logits[row].float().log_softmax(-1)
            values, ids = logprobs.topk(min(sampling.logprobs, len(logprobs)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
            choices[row] = Choice(tokens[row], logprobs[tokens[row]].item(), top)
    return choices


def _draw(logits: torch.Tensor, sampling: Sampling, number: float) -> int:
    """Nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751) by inverting the distribution function."""
    scores = logits.double()
    # Below the best score by so much that a tiny temperature overflows to minus infinity, not to NaN.
    probabilities = ((scores - scores.max()) / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        return _invert(probabilities, number)
    for count in (min(LIKELY, len(probabilities)), len(probabilities)):
        likely, ids = probabilities.topk(count)
        # The token that crosses top_p belongs to the nucleus, so it is never empty.
        size = int(torch.searchsorted(likely.cumsum(-1), sampling.top_p)) + 1
        if size <= count:
            return int(ids[_invert(likely[:size], number)])
    return int(ids[_invert(likely, number)])


def _invert(probabilities: torch.Tensor, number: float) -> int:
    reached = probabilities.cumsum(-1)
    place = int(torch.searchsorted(reached, number * reached[-1].item(), right=True))
    return min(place, len(probabilities) - 1)
