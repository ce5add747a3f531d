"""Retention: how far an adapter lies from its base on prompts that have nothing to do with the task."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.base.reference import LoadReference
from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import make_metric
from pilocal.llamacpp.engine import log_softmax
from pilocal.progress import Progress
from pilocal.prompt.preamble import Request, bare
from pilocal.prompt.tokens import Row, answer_text, end_tokens, prompt_tokens
from pilocal.task import Example, Scoring, Task
from pilocal.task.examples import load_unrelated

GENERAL = Path(__file__).with_name("general.jsonl")
"""Prompts that any instruct model can do something with."""

GROUP = 40
"""Prompts whose probabilities are on disk at once: with a large vocabulary, a gigabyte."""

SCORED_BY = ("exact_match", "contains")
"""The metrics for prompts with an answer; neither depends on the task's settings."""

Said = tuple[int, ...]
"""An answer's tokens, without its end."""


def unrelated_prompts(task: Task) -> tuple[Example, ...]:
    """Return the user's own unrelated prompts, or the general ones."""
    return task.unrelated or load_unrelated(GENERAL)


def check_unrelated(task: Task, base: Base, request: Request = bare) -> None:
    """Raise InputError for an unrelated prompt that does not fit the base with its answer."""
    room = base.context - task.evaluation.unrelated_tokens
    where = task.files.get("unrelated", f"{task.files['task']} [evaluation] unrelated_tokens")
    for example in unrelated_prompts(task):
        count = len(_tokens(request, example, base))
        if count > room:
            what = f"{example.query[:40]!r} is {count - room} tokens over what the model's context leaves for a prompt"
            fix = "shorten it, or lower [evaluation] unrelated_tokens"
            raise InputError(where, what, got=count, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A base, and an adapter of it, in the program that trained it."""

    base: Base
    adapter: Path
    load: LoadReference
    max_tokens: int
    """The longest answer."""
    batch_size: int
    progress: Progress
    request: Request = bare
    """How the prompts are asked: alone, or after what stays of the task's prompt."""

    def base_says(self, examples: Sequence[Example]) -> list[Said]:
        """Return the base's greedy answers."""
        return self._says(None, examples, "unrelated: base")

    def compare(self, examples: Sequence[Example], said: Sequence[Said]) -> list[dict[str, Any]]:
        """Return for each prompt what the adapter changes, where the base answered `said`.

        `nats` is KL(base, adapter), summed over the `tokens` of the answer and its end, `kl_max` the largest of any of
        them; `same` tells whether the adapter answers so, too. A prompt with a reference has the adapter's answer.
        """
        rows = [self._row(example, answer) for example, answer in zip(examples, said, strict=True)]
        with tempfile.TemporaryDirectory(prefix="pilocal-retention-") as folder:
            files = [Path(folder, f"{number}.npy") for number in range(len(rows))]
            for file, found in zip(files, self._log_probs(None, rows, 0), strict=True):
                np.save(file, found)
            adapted = self._log_probs(self.adapter, rows, len(rows))
            lines = [
                self._line(np.load(file, allow_pickle=False), found) for file, found in zip(files, adapted, strict=True)
            ]
        asked = [example for example in examples if example.answer]
        answers = iter(self._says(self.adapter, asked, "unrelated: adapter") if asked else ())
        for line, example, answer in zip(lines, examples, said, strict=True):
            line.update(query=example.query, base=self._text(answer))
            if example.answer:
                line["adapter"] = self._text(next(answers))
        return lines

    def _log_probs(self, adapter: Path | None, rows: Sequence[Row], done: int) -> Iterator[NDArray[np.float32]]:
        """Yield the log-probabilities of each row's completion tokens, (T, V); one model is in memory at a time."""
        model = self.load(self.base, adapter)
        for number, row in enumerate(rows, 1):
            yield log_softmax(model.logits(row))
            self.progress("unrelated: probabilities", done + number, 2 * len(rows))

    def _line(self, base_TV: NDArray[np.float32], adapter_TV: NDArray[np.float32]) -> dict[str, Any]:
        ends = sorted(end_tokens(self.base.tokenizer))
        wide = base_TV.astype(np.float64)
        kl_T = np.maximum((np.exp(wide) * (wide - adapter_TV)).sum(-1), 0.0)
        picked = [np.where(np.isin(best_T, ends), -1, best_T) for best_T in (base_TV.argmax(-1), adapter_TV.argmax(-1))]
        return {
            "tokens": len(kl_T),
            "nats": float(kl_T.sum()),
            "kl_max": float(kl_T.max()),
            "same": bool((picked[0] == picked[1]).all()),
        }

    def _says(self, adapter: Path | None, examples: Sequence[Example], title: str) -> list[Said]:
        model = self.load(self.base, adapter)
        completions = model.answer(
            [self._prompt(example) for example in examples],
            ends=end_tokens(self.base.tokenizer),
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            progress=self.progress,
            name=title,
        )
        return [tuple(completion) for completion in completions]

    def _row(self, example: Example, said: Said) -> Row:
        """Return a prompt with its answer and an end of turn, no longer than what was asked for."""
        prompt = self._prompt(example)
        completion = [*said, min(end_tokens(self.base.tokenizer))][: self.max_tokens]
        return Row((*prompt, *completion), len(prompt))

    def _prompt(self, example: Example) -> list[int]:
        return _tokens(self.request, example, self.base)

    def _text(self, said: Said) -> str:
        return answer_text(said, self.base.tokenizer)


def _tokens(request: Request, example: Example, base: Base) -> list[int]:
    return prompt_tokens(request(example)["messages"][:-1], base.tokenizer)


def summarize(lines: Sequence[Mapping[str, Any]], examples: Sequence[Example]) -> dict[str, Any]:
    """Return what metrics.json says of unrelated prompts, from the lines of `compare`.

    `kl` is the mean over all tokens, `same_answers` the share of prompts whose answer stays, `worst` the prompt whose
    mean is the largest. Where prompts have references, `scores` holds how many, and each metric's scores.
    """
    tokens = sum(line["tokens"] for line in lines)
    worst = max(lines, key=lambda line: line["nats"] / line["tokens"])
    found = {
        "prompts": len(lines),
        "tokens": tokens,
        "kl": sum(line["nats"] for line in lines) / tokens,
        "kl_max": max(line["kl_max"] for line in lines),
        "same_answers": mean(float(line["same"]) for line in lines),
        "worst": {"query": worst["query"], "kl": worst["nats"] / worst["tokens"]},
    }
    asked = [(line, example) for line, example in zip(lines, examples, strict=True) if example.answer]
    return found | ({"scores": _scores(asked)} if asked else {})


def _scores(asked: Sequence[tuple[Mapping[str, Any], Example]]) -> dict[str, Any]:
    found: dict[str, Any] = {"prompts": len(asked)}
    examples = [example for _, example in asked]
    for name in SCORED_BY:
        metric = make_metric(name, Scoring(), Path())
        found[name] = {
            who: metric.total(metric.marks([line[who] for line, _ in asked], examples)) for who in ("base", "adapter")
        }
    return found
