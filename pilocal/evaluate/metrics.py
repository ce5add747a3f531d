"""Metrics: from answers and references to one score between 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of answers that equal their reference but for white space at the ends.

    >>> exact_match(["a ", "b"], ["a", "c"])
    0.5
    """
    same = [answer.strip() == reference.strip() for answer, reference in zip(answers, references, strict=True)]
    return sum(same) / len(same)


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return sacrebleu's corpus BLEU (13a tokens, exponential smoothing), divided by 100."""
    from sacrebleu import corpus_bleu

    score: float = corpus_bleu(list(answers), [list(references)]).score
    return score / 100


METRICS: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {"exact_match": exact_match, "bleu": bleu}
"""Every metric by its name in task.toml."""
