"""Which label a model finds likeliest as its whole answer.

A greedy answer follows the likeliest first token, which may begin no label. The fairest reading of a model that
was not trained on the labels compares the probability of each label, its end included.

A label's score is log p(tokens of the label, end | prompt), summed over tokens. Nothing divides it by the
length: with the end of the answer, the scores are the probabilities of disjoint answers, and so they compare.
The mean per token would favour labels whose last tokens follow from their first ones.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from lora_ops.evaluation.generate import end_tokens, progress
from lora_ops.prompts import render_example
from lora_ops.training.batches import Tokens, collate

# Prompt tokens of a pack. In longer ones most of the attention is masked out: each row sees only itself.
PACK_TOKENS = 512
# Scores that differ by less are equal: the order of a sum changes them by about 1e-5 in float32.
TIE = 1e-3

Scores = list[list[float]]


@dataclass(frozen=True)
class Trie:
    """All labels as one tree, in which labels that begin alike share their first tokens.

    Attributes:
        tokens: of each node; a node comes after its parent.
        paths: the nodes from the prompt to each node, itself included.
        last: the node at which each label ends.
    """

    tokens: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    last: tuple[int, ...]

    def children(self, parent: int) -> list[int]:
        """Return the nodes right after `parent`; -1 is the prompt."""
        return [node for node, path in enumerate(self.paths) if (-1, *path)[-2] == parent]


def make_trie(labels: Sequence[Sequence[int]]) -> Trie:
    """Return the trie of labels, each given by at least one token."""
    nodes: dict[tuple[int, ...], int] = {}  # tokens up to a node -> node
    for label in labels:
        for length in range(1, len(label) + 1):
            nodes.setdefault(tuple(label[:length]), len(nodes))
    paths = [tuple(nodes[up_to[: length + 1]] for length in range(len(up_to))) for up_to in nodes]
    return Trie(
        tuple(up_to[-1] for up_to in nodes), tuple(paths), tuple(nodes[tuple(label)] for label in labels)
    )


def choose_labels(
    model: Any, tokenizer: Any, prompts: Sequence[str], labels: Sequence[str], *, packs: bool, what: str = ""
) -> list[str]:
    """Return for each prompt the label that `model` finds likeliest as its answer.

    Of labels that are equally likely, the one listed first is chosen.

    Args:
        packs: whether each token of `model` sees all before it and knows its place by `position_ids` alone, so
            that rows can be computed behind each other. Else each label of each row is computed by itself.
    """
    ends = end_tokens(model, tokenizer)
    questions = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    answers = label_tokens(tokenizer, labels, ends)
    if packs:
        scores = packed_scores(model, questions, answers, ends, what=what)
    else:
        scores = plain_scores(model, questions, answers, ends, what=what)
    return [labels[likeliest(row)] for row in scores]


def likeliest(scores: Sequence[float]) -> int:
    """Return the place of the highest score, the first one of those that are equal but for rounding."""
    highest = max(scores)
    return next(place for place, score in enumerate(scores) if score >= highest - TIE)


def label_tokens(tokenizer: Any, labels: Sequence[str], ends: Sequence[int]) -> list[list[int]]:
    """Return the tokens of each label as the chat template writes an answer, up to its end.

    Training rows and few-shot examples have their answers in this form, tokenized apart from the prompt.
    """
    written = [render_example(tokenizer, "-", label, None)[1] for label in labels]
    found = []
    for ids in tokenizer(written, add_special_tokens=False)["input_ids"]:
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        found.append(ids[:end])
    return found


@torch.inference_mode()
def plain_scores(
    model: Any,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    ends: Sequence[int],
    *,
    what: str = "",
) -> Scores:
    """Return for each prompt the score of each label, from a forward pass over every whole answer."""
    found = []
    for prompt in progress(prompts, what, "row"):
        rows = [Tokens(list(prompt), [*label, ends[0]]) for label in labels]
        batch = collate(rows, ends[0]).to(model.device)
        columns = batch.labels.shape[1]
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=columns + 1,
            use_cache=False,
        ).logits[:, :-1]
        predicted = logits.float().log_softmax(-1)  # (labels, columns, vocabulary)
        end = predicted[:, -1, list(ends)].logsumexp(-1)
        # All answers end in the last column; where a shorter one has not begun, nothing counts.
        begun = batch.labels[:, :-1] >= 0
        steps = predicted[:, :-1].gather(2, batch.labels[:, :-1].clamp(min=0)[..., None])[..., 0]
        found.append((end + (steps * begun).sum(1)).tolist())
    return found


@torch.inference_mode()
def packed_scores(
    model: Any,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    ends: Sequence[int],
    *,
    pack_tokens: int = PACK_TOKENS,
    what: str = "",
) -> Scores:
    """Return what `plain_scores` does, up to rounding, and -inf for a label that can't be the likeliest.

    What all prompts begin with (system prompt, labels, examples) is computed once and kept in a KV cache. Rows
    follow behind it as one sequence, each with the rest of its prompt.
    """
    trie = make_trie(labels)
    # The last token of a prompt predicts the label, so it stays with its row.
    alike = os.path.commonprefix([list(prompt[:-1]) for prompt in prompts])
    context = _Context(model, alike)
    found: Scores = []
    with progress(len(prompts), what, "row") as shown:
        for rows in _packs([list(prompt[len(alike) :]) for prompt in prompts], pack_tokens):
            found += _score_pack(context, rows, trie, ends)
            context.forget()
            shown.update(len(rows))
    return found


def _packs(rows: Sequence[list[int]], limit: int) -> Iterator[list[list[int]]]:
    """Yield the rows in packs of at most `limit` tokens, or of one row."""
    pack: list[list[int]] = []
    for row in rows:
        if pack and sum(map(len, pack)) + len(row) > limit:
            yield pack
            pack = []
        pack.append(row)
    if pack:
        yield pack


class _Context:
    """A KV cache of what all rows begin with, and of what was read behind it.

    Attributes:
        prefix: how many tokens all rows share.
        size: how many tokens were read behind them. A place counts from there.
    """

    def __init__(self, model: Any, shared: Sequence[int]) -> None:
        self._model, self.prefix, self.size = model, len(shared), 0
        self._cache: Any = DynamicCache()
        if shared:
            model(input_ids=self._row(shared), past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def read(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        seen: Sequence[Sequence[int]],
        predicting: Sequence[int],
    ) -> torch.Tensor:
        """Return log-probabilities of what follows some of `ids`: (predicting, vocabulary).

        Args:
            positions: of the tokens, in their rows.
            seen: the places that each token sees, its own among them.
            predicting: which of `ids` something follows.
        """
        hidden = torch.full((len(ids), self.prefix + self.size + len(ids)), torch.finfo(self._model.dtype).min)
        hidden[:, : self.prefix] = 0
        for token, places in enumerate(seen):
            hidden[token, [self.prefix + place for place in places]] = 0
        logits = self._model(
            input_ids=self._row(ids),
            attention_mask=hidden.to(self._model.device, self._model.dtype)[None, None],
            position_ids=self._row(positions),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(predicting, device=self._model.device),
        ).logits[0]
        self.size += len(ids)
        found: torch.Tensor = logits.float().log_softmax(-1)
        return found

    def forget(self) -> None:
        """Drop all but what the rows share."""
        self._cache.crop(-self.size)
        self.size = 0

    def _row(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self._model.device)


class _Way:
    """One row's way down the trie.

    Attributes:
        prompt: the places of the row's prompt.
        nodes: the place of each node that was read.
        steps: log-probability of each node's token after its parent; 0 where nobody knows it yet.
        ends: log-probability of the end after each node that was read.
    """

    def __init__(self, trie: Trie, prompt: range) -> None:
        self.trie, self.prompt = trie, prompt
        self.nodes: dict[int, int] = {}
        self.steps = [0.0] * len(trie.tokens)
        self.ends: dict[int, float] = {}

    def learn(self, node: int, predicted: torch.Tensor, ends: Sequence[int]) -> None:
        """Keep what follows a node, or the prompt (-1), by log-probabilities of shape (vocabulary,)."""
        children = self.trie.children(node)
        found = predicted[[self.trie.tokens[child] for child in children]].tolist()
        for child, step in zip(children, found, strict=True):
            self.steps[child] = step
        self.ends[node] = float(predicted[list(ends)].logsumexp(0))

    def first(self) -> Sequence[int]:
        """Return the nodes of a label whose first token is the likeliest one."""
        return max((self.trie.paths[node] for node in self.trie.last), key=lambda path: self.steps[path[0]])

    def rest(self) -> Sequence[int]:
        """Return the nodes that may lead to the likeliest label, and were not read.

        What is known of a label's first tokens is never less than its score: each token costs something.
        """
        least = max(self.scores()) - TIE
        return [node for node in range(len(self.steps)) if node not in self.nodes and self._sum(node) >= least]

    def scores(self) -> list[float]:
        """Return the score of each label that was read to its end, and -inf for the others."""
        return [
            self._sum(node) + self.ends[node] if node in self.nodes else -math.inf for node in self.trie.last
        ]

    def _sum(self, node: int) -> float:
        return sum(self.steps[one] for one in self.trie.paths[node])


def _score_pack(context: _Context, rows: Sequence[list[int]], trie: Trie, ends: Sequence[int]) -> Scores:
    """Return the score of each label for each row: the label that begins best first, then its rivals."""
    ways: list[_Way] = []
    ids: list[int] = []
    for row in rows:
        ways.append(_Way(trie, range(len(ids), len(ids) + len(row))))
        ids += row
    predicted = context.read(
        ids,
        [context.prefix + place for way in ways for place in range(len(way.prompt))],
        [range(way.prompt.start, place + 1) for way in ways for place in way.prompt],
        [way.prompt[-1] for way in ways],
    )
    for way, after in zip(ways, predicted, strict=True):
        way.learn(-1, after, ends)
    for choose in (_Way.first, _Way.rest):
        chosen = [(way, node) for way in ways for node in choose(way)]
        if not chosen:
            continue
        for place, (way, node) in enumerate(chosen, start=context.size):
            way.nodes[node] = place
        predicted = context.read(
            [trie.tokens[node] for _, node in chosen],
            [context.prefix + len(way.prompt) + len(trie.paths[node]) - 1 for way, node in chosen],
            # Of the nodes, only those on its way.
            [[*way.prompt, *(way.nodes[one] for one in trie.paths[node])] for way, node in chosen],
            range(len(chosen)),
        )
        for (way, node), after in zip(chosen, predicted, strict=True):
            way.learn(node, after, ends)
    return [way.scores() for way in ways]
