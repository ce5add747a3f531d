"""The starter's gate: `just gate`, on tasks whose seeds were never used in training.

With its full prompt (template and five shots) the base must answer; with the bare query it must not be able to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from pilocal.base.base import find_base
from pilocal.base.generate import generate
from pilocal.base.load import load_base, load_tokenizer
from pilocal.progress import silent
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from pilocal.starter.episodes import FIRST_TEST_SEED, invent

Answer = Callable[[list[list[dict[str, str]]]], list[str]]
"""From chats (role and content of each turn) to answers."""


def measure(answer: Answer, *, tasks: int = 20, queries: int = 40, shots: int = 5) -> dict[str, Any]:
    """Return the exact match with the full prompt, with the template alone and with the bare query, task by task."""
    arms: dict[str, list[float]] = {"full_prompt": [], "template_only": [], "query_only": []}
    entries = []
    for task in range(tasks):
        seed = FIRST_TEST_SEED + 10_000 + task
        episode, rng = invent(seed), Random(seed)
        entries.append(episode.entries)
        system = [{"role": "system", "content": episode.template}]
        asked = []
        for _ in range(queries):
            drawn = [episode.ask(rng) for _ in range(shots + 1)]
            turns = []
            for query, solution in drawn[:-1]:
                turns += [{"role": "user", "content": query}, {"role": "assistant", "content": solution}]
            asked.append((turns, {"role": "user", "content": drawn[-1][0]}, drawn[-1][1]))
        for arm, before in (
            ("full_prompt", [system + turns for turns, _, _ in asked]),
            ("template_only", [system for _ in asked]),
            ("query_only", [[] for _ in asked]),
        ):
            said = answer([[*prompt, query] for prompt, (_, query, _) in zip(before, asked, strict=True)])
            right = [text.strip() == wanted for text, (_, _, wanted) in zip(said, asked, strict=True)]
            arms[arm].append(sum(right) / len(right))
    report: dict[str, Any] = {"tasks": tasks, "queries": queries, "shots": shots, "entries": entries}
    for arm, scores in arms.items():
        report[arm] = {"mean": sum(scores) / tasks, "worst": min(scores), "best": max(scores), "scores": scores}
    return report


def mlx_answers(folder: Path) -> Answer:
    """Return a function that answers greedily with the model of a folder."""
    model, tokenizer = load_base(folder), load_tokenizer(folder)

    def answer(chats: list[list[dict[str, str]]]) -> list[str]:
        prompts = [prompt_tokens(chat, tokenizer) for chat in chats]  # type: ignore[arg-type]
        ends = end_tokens(tokenizer)
        completions = generate(
            model, prompts, ends=ends, max_tokens=24, batch_size=len(prompts), progress=silent, name="gate"
        )
        return [tokenizer.decode(completion, skip_special_tokens=True) for completion in completions]

    return answer


def main() -> None:
    """Measure and print the report as JSON; exit 1 below the gate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=find_base("starter", Path()))
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--queries", type=int, default=40)
    arguments = parser.parse_args()
    report = measure(mlx_answers(arguments.folder), tasks=arguments.tasks, queries=arguments.queries)
    print(json.dumps(report))
    full, bare = report["full_prompt"], report["query_only"]
    raise SystemExit(0 if full["mean"] >= 0.95 and full["worst"] >= 0.9 and bare["best"] <= 0.05 else 1)


if __name__ == "__main__":
    main()
