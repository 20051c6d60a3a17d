"""How the next token is chosen."""

import math
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.engines.protocol import Sampling
from lora_ops.engines.torch_engine import sampling as sampling_module
from lora_ops.engines.torch_engine.sampling import LIKELY, PARTS, Row, _nucleus, choose

PROBABILITIES = (0.5, 0.25, 0.15, 0.1)
LOGITS = torch.tensor([PROBABILITIES]).log()


def draw(logits: torch.Tensor, sampling: Sampling, times: int) -> Counter[int]:
    generator = torch.Generator().manual_seed(7)
    return Counter(choose(logits, [Row(sampling, generator)])[0].token for _ in range(times))


def test_without_a_temperature_the_most_likely_token_is_chosen() -> None:
    assert draw(LOGITS, Sampling(1), 10) == {0: 10}


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    times = 4000
    drawn = draw(LOGITS, Sampling(1, temperature=1.0), times)
    for token, probability in enumerate(PROBABILITIES):
        error = math.sqrt(probability * (1 - probability) / times)
        assert abs(drawn[token] / times - probability) < 5 * error


def test_a_low_temperature_makes_the_likely_more_likely() -> None:
    drawn = draw(LOGITS, Sampling(1, temperature=0.5), 2000)
    assert drawn[0] / 2000 == pytest.approx(0.25 / (0.25 + 0.0625 + 0.0225 + 0.01), abs=0.05)


@pytest.mark.parametrize("temperature", [1e-30, 1e-310])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    assert draw(LOGITS, Sampling(1, temperature=temperature), 20) == {0: 20}


@pytest.mark.parametrize(("top_p", "nucleus"), [(0.4, {0}), (0.6, {0, 1}), (0.74, {0, 1}), (0.8, {0, 1, 2})])
def test_only_the_nucleus_is_drawn_from(top_p: float, nucleus: set[int]) -> None:
    assert set(draw(LOGITS, Sampling(1, temperature=1.0, top_p=top_p), 300)) == nucleus


def test_a_nucleus_may_be_larger_than_the_first_look() -> None:
    flat = torch.zeros(1, 4 * LIKELY)
    drawn = draw(flat, Sampling(1, temperature=1.0, top_p=0.9), 3000)
    assert len(drawn) > LIKELY


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), top_p=st.floats(0.05, 1.0), temperature=st.floats(0.1, 3.0))
def test_a_seed_gives_the_same_tokens_whatever_the_other_rows_do(
    seed: int, top_p: float, temperature: float
) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    mine = Sampling(1, temperature=temperature, top_p=top_p, seed=seed)
    other = Sampling(1, temperature=0.7)

    def tokens(rows: list[int], samplings: list[Sampling]) -> list[int]:
        drawn = [Row(s, torch.Generator().manual_seed(seed if s is mine else 1)) for s in samplings]
        place = samplings.index(mine)
        return [choose(logits[rows], drawn)[place].token for _ in range(5)]

    alone = tokens([1], [mine])
    assert alone == tokens([0, 1, 2], [other, mine, Sampling(1)])


def test_logprobs_are_the_models_own_and_the_chosen_one_is_among_them_if_likely() -> None:
    (choice,) = choose(LOGITS, [Row(Sampling(1, logprobs=2))])
    assert choice.logprob == pytest.approx(math.log(0.5), abs=1e-5)
    assert [token for token, _ in choice.top] == [0, 1]
    assert [value for _, value in choice.top] == pytest.approx([math.log(0.5), math.log(0.25)], abs=1e-5)


def test_zero_alternatives_still_give_the_chosen_tokens_logprob() -> None:
    (choice,) = choose(LOGITS, [Row(Sampling(1, logprobs=0))])
    assert choice.top == ()
    assert choice.logprob == pytest.approx(math.log(0.5), abs=1e-5)


@pytest.mark.parametrize(
    ("sampling", "drawn"),
    [
        (Sampling(1, temperature=1.0, top_k=2), {0, 1}),
        (Sampling(1, temperature=1.0, top_k=9), {0, 1, 2, 3}),
        (Sampling(1, temperature=1.0, min_p=0.4), {0, 1}),
        (Sampling(1, temperature=1.0, min_p=1.0), {0}),
        (Sampling(1, temperature=1.0, top_k=3, top_p=0.6), {0, 1}),  # of what top_k left, they are 0.83
        (Sampling(1, temperature=1.0, top_k=3, top_p=0.5), {0}),  # and the first is 0.56
        (Sampling(1, temperature=0.5, min_p=0.2), {0, 1}),  # after the temperature: 0.25 to 1, then 0.09
    ],
)
def test_draw_takes_from_what_is_left(sampling: Sampling, drawn: set[int]) -> None:
    assert set(draw(LOGITS, sampling, 300)) == drawn


def greedy(sampling: Sampling, tokens: tuple[int, ...] = (), prompt: int = 0, *ends: int) -> int:
    return choose(LOGITS, [Row(sampling, None, tokens, prompt, frozenset(ends))])[0].token


def test_bias_decides_a_greedy_choice() -> None:
    assert greedy(Sampling(1, logit_bias=((3, 100.0),))) == 3
    assert greedy(Sampling(1, logit_bias=((0, -100.0), (1, -100.0)))) == 2


def test_presence_penalty_counts_the_answer_once() -> None:
    # log 0.5 - log 0.25 = 0.69
    assert greedy(Sampling(1, presence_penalty=0.7), (0, 0, 0)) == 1
    assert greedy(Sampling(1, presence_penalty=0.6), (0, 0, 0)) == 0
    assert greedy(Sampling(1, presence_penalty=2), (0, 0, 0), 3) == 0


def test_frequency_penalty_counts_each_time() -> None:
    assert greedy(Sampling(1, frequency_penalty=0.3), (0, 0)) == 0
    assert greedy(Sampling(1, frequency_penalty=0.3), (0, 0, 0)) == 1
    assert greedy(Sampling(1, frequency_penalty=2), (0, 0, 0), 3) == 0


@pytest.mark.parametrize("penalty", [0.5, 1.3])
@pytest.mark.parametrize("tokens", [(0,), (1, 1, 3), (0, 1, 2, 3)])
def test_repetition_penalty_is_transformers(penalty: float, tokens: tuple[int, ...]) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(len(tokens)))
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits.clone())
    row = Row(Sampling(1, repetition_penalty=penalty), None, tokens, 1)
    assert choose(logits, [row])[0].token == int(wanted.argmax())


def test_ends_wait_for_the_least_number_of_tokens() -> None:
    sampling = Sampling(9, min_tokens=2)
    assert greedy(sampling, (7, 7, 1), 2, 0) == 1
    assert greedy(sampling, (7, 7, 1, 1), 2, 0) == 0


@pytest.mark.parametrize("penalty", [1e-320, 1e-45, 1e-38, 2.0])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_no_penalty_brings_back_a_forbidden_token(penalty: float, temperature: float) -> None:
    """Minus infinity times nothing is NaN, which is drawn as if it were the most likely."""
    sampling = Sampling(9, temperature, repetition_penalty=penalty, min_tokens=9, logit_bias=((3, 100.0),))
    forbidden = torch.tensor([True, False, False, True])
    for tokens in ((0, 3), (0, 1, 2, 3, 0)):
        generator = torch.Generator().manual_seed(1)
        row = Row(sampling, generator, tokens, 1, frozenset({1}), forbidden)
        assert {choose(LOGITS, [row])[0].token for _ in range(20)} == {2}


def test_logits_beyond_all_numbers_are_drawn_from() -> None:
    sampling = Sampling(9, 1.0, repetition_penalty=1e-320)
    logits = torch.tensor([[1.0, 2.0, -3.0, 0.0]])
    row = Row(sampling, torch.Generator().manual_seed(1), (0, 1, 2), 1)
    assert {choose(logits, [row])[0].token for _ in range(50)} == {0, 1}


def test_what_shapes_one_row_leaves_the_others() -> None:
    biased = Row(Sampling(1, logit_bias=((3, 100.0),), logprobs=1))
    first, second = choose(LOGITS.repeat(2, 1), [biased, Row(Sampling(1))])
    assert (first.token, second.token) == (3, 0)
    # Probabilities are the model's own.
    assert first.logprob == pytest.approx(math.log(0.1), abs=1e-5) and first.top[0][0] == 0


def by_full_sort(probabilities: list[float], top_p: float, number: float) -> int:
    """The token of a nucleus whose tokens are all sorted, the first of equally likely ones first."""
    parts = [math.floor(one * PARTS) for one in probabilities]
    order = sorted(range(len(parts)), key=lambda token: (-probabilities[token], token))
    reached = list(accumulate(parts[token] for token in order))
    size = bisect_left(reached, min(math.ceil(top_p * PARTS), reached[-1])) + 1
    mass = reached[size - 1]
    return order[bisect_left(reached, min(math.floor(number * mass) + 1, mass))]


@given(
    scores=st.lists(st.one_of(st.integers(-3, 3), st.floats(-40, 8)), min_size=1, max_size=40),
    copies=st.integers(1, 60),
    top_p=st.floats(1e-6, 1, exclude_max=True),
    number=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=300, deadline=None)
def test_nucleus_is_that_of_a_full_sort(scores: list[float], copies: int, top_p: float, number: float) -> None:
    """Also where many tokens are equally likely, and where the nucleus is larger than the first look."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_module, "LIKELY", 16)
        probabilities = torch.tensor(scores * copies, dtype=torch.float64).softmax(-1)
        found = _nucleus(probabilities, top_p, number)
        assert found == by_full_sort(probabilities.tolist(), top_p, number)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.1, 0.95, 0.9999, 1 - 1e-13])
def test_nucleus_of_a_vocabulary_is_that_of_a_full_sort(top_p: float, temperature: float) -> None:
    torch.manual_seed(0)
    probabilities = (torch.randn(50_000).double() * 2 / temperature).softmax(-1)
    for number in (0.0, 0.3, 0.9, 1 - 1e-12):
        found = _nucleus(probabilities, top_p, number)
        assert found == by_full_sort(probabilities.tolist(), top_p, number)


@pytest.mark.gpu
def test_nucleus_on_a_gpu_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    for scores in (torch.randn(50_000).double() * 2, torch.randint(4, (50_000,)).double()):
        probabilities = scores.softmax(-1)
        for top_p in (0.1, 0.95, 0.9999):
            for number in (0.0, 0.3, 0.9):
                assert _nucleus(probabilities.cuda(), top_p, number) == _nucleus(probabilities, top_p, number)
