"""The choice of shots on NL2Bash beside brute force: `just bench retrieval`, or alone with `--data FOLDER`.

Brute force scores every pair of answers. It is measured on a sample of examples, each against all others, and
extrapolated: once with sacrebleu's n-grams counted beforehand, which is the bar, and once with plain `sentence_bleu`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from sacrebleu import sentence_bleu
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams

from pilocal.retrieve import ShotPicker
from pilocal.retrieve.bank import question
from pilocal.task import Example, Retrieval

DATA = "PILOCAL_NL2BASH"
"""The environment's name for the folder with all.nl and all.cm."""

ORDER = 4
NOISE = 1e-6
"""Scores as near as this are equal."""


def retrieval(folder: Path, count: int = 10_000, k: int = 10, sample: int = 100, seed: int = 0) -> dict[str, Any]:
    """Choose k shots for `count` examples and compare time and choice with brute force; `met` says which bars hold."""
    lines = [(folder / name).read_text(encoding="utf-8").split("\n") for name in ("all.nl", "all.cm")]
    pairs = [(query, answer) for query, answer in zip(*lines, strict=True) if query.strip() and answer.strip()][:count]
    examples = [Example(id=str(n), query=query, answer=answer) for n, (query, answer) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as made:
        began = time.perf_counter()
        picker = ShotPicker(examples, Retrieval(), Path(made), k=k)
        seconds = time.perf_counter() - began

    rng = Random(seed)
    answers = [example.answer for example in examples]
    began = time.perf_counter()
    score = counted_once(answers)
    counting = time.perf_counter() - began
    asked = [question(example.query) for example in examples]
    recalls, ours, best = [], [], []
    scoring = 0.0
    for i in rng.sample(range(len(examples)), sample):
        began = time.perf_counter()
        scores = [score(j, i) for j in range(len(examples))]
        ranked = sorted(range(len(examples)), key=lambda j, scores=scores: (-scores[j], j))  # type: ignore[misc]
        exact = first(ranked, k, asked, i)
        scoring += time.perf_counter() - began
        chosen = picker.for_training(i, k)
        worst = min(scores[j] for j in exact)
        recalls.append(sum(scores[j] >= worst - NOISE for j in chosen) / k)
        ours.append(sum(scores[j] for j in chosen) / k)
        best.append(sum(scores[j] for j in exact) / k)
    brute = counting + scoring / sample * len(examples)

    drawn = [(rng.choice(answers), rng.choice(answers)) for _ in range(20 * sample)]
    began = time.perf_counter()
    for hypothesis, reference in drawn:
        sentence_bleu(hypothesis, [reference])
    plain = (time.perf_counter() - began) / len(drawn) * len(examples) ** 2

    result: dict[str, Any] = {
        "title": f"the {k} shots of each of {len(examples):,} NL2Bash examples",
        "seconds": round(seconds, 1),
        "brute_force_seconds_extrapolated": round(brute),
        "brute_force_from": f"{sample} examples, each against all {len(examples):,}",
        "sentence_bleu_seconds_extrapolated": round(plain),
        "sentence_bleu_from": f"{len(drawn):,} pairs",
        "speed": round(brute / seconds, 1),
        "speed_against_sentence_bleu": round(plain / seconds, 1),
        f"recall_at_{k}": round(sum(recalls) / sample, 4),
        "mean_bleu": round(sum(ours) / sample, 3),
        "mean_bleu_exact": round(sum(best) / sample, 3),
    }
    result["met"] = {
        "a_20th_of_the_time": brute >= 20 * seconds,
        "bleu_within_1_percent": sum(ours) >= 0.99 * sum(best),
    }
    return result


def counted_once(texts: Sequence[str]) -> Callable[[int, int], float]:
    """Return sacrebleu's sentence BLEU of one text (hypothesis) against another (reference), by their numbers."""
    metric = BLEU(effective_order=True)
    grams = [extract_all_word_ngrams(metric.tokenizer(text.rstrip()), 1, ORDER) for text in texts]

    def score(hypothesis: int, reference: int) -> float:
        (ours, length), (theirs, wanted) = grams[hypothesis], grams[reference]
        correct = [0] * ORDER
        for gram in ours.keys() & theirs.keys():
            correct[len(gram) - 1] += min(ours[gram], theirs[gram])
        total = [max(length - order, 0) for order in range(ORDER)]
        return float(
            metric.compute_bleu(correct, total, length, wanted, smooth_method="exp", effective_order=True).score
        )

    return score


def first(ranked: Sequence[int], k: int, asked: Sequence[Any], own: int) -> list[int]:
    """Return the first k that ask neither what `own` asks nor what one before them does."""
    found: list[int] = []
    seen = {asked[own]}
    for number in ranked:
        if len(found) < k and asked[number] not in seen:
            seen.add(asked[number])
            found.append(number)
    return found


def main() -> None:
    """Measure and print the result as JSON; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA), help=f"folder; ${DATA} when left out")
    parser.add_argument("--count", type=int, default=10_000, help="examples")
    parser.add_argument("--shots", type=int, default=10, help="shots for each")
    parser.add_argument("--sample", type=int, default=100, help="examples that brute force is measured on")
    arguments = parser.parse_args()
    if arguments.data is None or not (arguments.data / "all.cm").is_file():
        print(f"skipped: neither --data nor {DATA} names a folder with NL2Bash's all.nl and all.cm")
        return
    result = retrieval(arguments.data, arguments.count, arguments.shots, arguments.sample)
    print(json.dumps(result, indent=2))
    sys.exit(0 if all(result["met"].values()) else 1)


if __name__ == "__main__":
    main()
