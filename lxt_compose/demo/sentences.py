"""Pairs of sentences, and the words by which a sentence encoder takes them for similar."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attribution import Attribution, attribute
from ..heatmap import TextHeatmap, text
from .explain import scores_of

PAIRS = (
    ("A cat is sleeping on the warm windowsill.", "The kitten took a nap in the sun."),
    ("How do I reset my password?", "I forgot my login and cannot get into my account."),
    ("The bank raised its interest rates again.", "We walked along the bank of the river."),
)


@dataclass(frozen=True)
class ExplainedPair:
    """Two sentences: their tokens, their cosine similarity, and the relevance of each sentence's tokens for it."""

    tokens: tuple[list[str], list[str]]
    similarity: float
    results: tuple[Attribution, Attribution]

    @property
    def complete(self) -> bool:
        """Whether relevance passed no operation without a rule."""
        return all(result.report.complete for result in self.results)


def explain_pair(model: nn.Module, tokenizer: Any, pair: tuple[str, str]) -> ExplainedPair:
    """Explain the similarity of two sentences by the tokens of each, while the other one's embedding is held.

    The similarity is the cosine of two means over tokens, `e(a) . e(b) / (|e(a)| |e(b)|)` (Reimers and Gurevych 2019).
    It is given as a function of the model's output, and so it runs under the rules as well.
    """
    encoded = [tokenizer(sentence, return_tensors="pt") for sentence in pair]
    with torch.no_grad():
        embeddings = [mean_of_tokens(model(**one), one["attention_mask"]) for one in encoded]

    def explain(one: Any, other: Tensor) -> Attribution:
        def similarity(output: Any) -> Tensor:
            return F.cosine_similarity(mean_of_tokens(output, one["attention_mask"]), other)

        return attribute(model, one, target=similarity, ledger=True)

    results = explain(encoded[0], embeddings[1]), explain(encoded[1], embeddings[0])
    first, second = (tokenizer.convert_ids_to_tokens(one["input_ids"][0]) for one in encoded)
    return ExplainedPair((first, second), F.cosine_similarity(embeddings[0], embeddings[1]).item(), results)


def mean_of_tokens(output: Any, mask: Tensor) -> Tensor:
    """Return the embedding of a sentence: the mean of its tokens' last hidden states, [n, features]."""
    weights = mask[..., None] / mask.sum(1)[:, None, None]
    return (output.last_hidden_state * weights).sum(1)


def picture_of(pairs: list[ExplainedPair]) -> TextHeatmap:
    """Return the sentences, each colored by the relevance of its words, with the similarity above each pair."""
    tokens = [tokens for pair in pairs for tokens in pair.tokens]
    scores = [scores_of(result)[0] for pair in pairs for result in pair.results]
    titles = [title for pair in pairs for title in (f"similarity {pair.similarity:.2f} of", "and")]
    return text(tokens, scores, titles=titles, words=True, shared=True)


def describe(pairs: list[ExplainedPair]) -> str:
    """Return a text: the similarity of the sentences, the strongest words, and the rest."""
    lines = ["all-MiniLM-L6-v2: how similar are two sentences (cosine, from -1 to 1), and by which words?"]
    for pair in pairs:
        lines.append(f"  {pair.similarity:.2f}: " + " | ".join(map(_strongest, pair.tokens, pair.results)))
        lines.append(f"        {str(pair.results[0].ledger).splitlines()[0]}")
    return "\n".join(lines)


def _strongest(tokens: list[str], result: Attribution) -> str:
    scores = scores_of(result)[0]
    top = scores.topk(3).indices.sort().values.tolist()
    return ", ".join(f"{tokens[place]} {scores[place]:+.2f}" for place in top)
