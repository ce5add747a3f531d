"""Sentence BLEU between many pairs of the same texts: each is tokenized and counted once."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams


class PairwiseBleu:
    """Scores any two of `texts`, equal to `sacrebleu.sentence_bleu(texts[hypothesis], [texts[reference]])`.

    >>> round(PairwiseBleu(["ls -l /tmp", "ls -a /tmp"]).score(0, 1), 1)
    35.4
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._metric = BLEU(effective_order=True)
        numbers: dict[tuple[str, ...], int] = {}
        self._order: list[int] = []
        self._counts: list[dict[int, int]] = []
        self._lengths: list[int] = []
        for text in texts:
            ngrams, length = extract_all_word_ngrams(self._metric.tokenizer(text.rstrip()), 1, BLEU_ORDER)
            for ngram in ngrams:
                if ngram not in numbers:
                    numbers[ngram] = len(self._order)
                    self._order.append(len(ngram) - 1)
            # Whole numbers hash faster than tuples of words.
            self._counts.append({numbers[ngram]: count for ngram, count in ngrams.items()})
            self._lengths.append(length)

    def score(self, hypothesis: int, reference: int) -> float:
        """Return the BLEU, 0 to 100, of one text against another, both given by their number."""
        ours, theirs = self._counts[hypothesis], self._counts[reference]
        length = self._lengths[hypothesis]
        correct = [0] * BLEU_ORDER
        for ngram in ours.keys() & theirs.keys():
            correct[self._order[ngram]] += min(ours[ngram], theirs[ngram])
        score = self._metric.compute_bleu(
            correct=correct,
            total=[max(length - order, 0) for order in range(BLEU_ORDER)],
            sys_len=length,
            ref_len=self._lengths[reference],
            smooth_method="exp",
            effective_order=True,
        )
        return float(score.score)


BLEU_ORDER = 4
"""Longest n-gram, in words."""
