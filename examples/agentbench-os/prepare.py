"""Make pilocal task folders of the fixed prompts of four agents: `python prepare.py PROMPTS QUESTIONS OUT`.

PROMPTS holds os.txt, webshop.txt, m2w.txt and kg.txt of https://github.com/kaistAI/GenPI, or some of them. QUESTIONS
holds the JSON files of https://github.com/THUDM/AgentBench (data/os_interaction/data; Apache-2.0): what an agent is to
do in a shell, and a Bash line that does it. OUT gets one task folder for each prompt. That of os has the questions: of
questions that are nearly the same, all are for training, or all for validation, or all for the test. The others have no
questions, so synth writes them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pilocal.errors import InputError, PilocalError
from pilocal.run_folder.files import replacing
from pilocal.task.toml import read_text

LAMBDAS = {"os": 0.7, "webshop": 0.7, "m2w": 0.3, "kg": 0.7}
"""The prompts, each with GenPI's weight of the answers' loss; kg has none in the paper, and gets that of os."""

TASKS = ("task.toml", "task.smollm2.toml")

SHARES = {"valid": 0.05, "test": 0.10}
"""The splits beside train, as shares of the groups of questions."""

ALIKE = 0.7
"""Two questions are nearly the same if the cosine between their character n-grams is above this."""

EPOCHS, WRITTEN = 10, 1000
"""Passes over the rows, as published; and about how many queries a generator writes where there are no questions."""


class Question(NamedTuple):
    """What an agent is to do, and the Bash line that does it, if the data set has one."""

    text: str
    thought: str
    command: str

    @property
    def answer(self) -> str:
        """The agent's first turn, as the prompt of os wants it."""
        return f"Think: {self.thought}\n\nAct: bash\n\n```bash\n{self.command}\n```"


def read_questions(folder: Path) -> list[Question]:
    """Return the questions of all files, each once; raises InputError for a file of another form."""
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise InputError(folder, "no file of questions", fix="give AgentBench's data/os_interaction/data")
    found: dict[str, Question] = {}
    for path in paths:
        try:
            for entry in json.loads(read_text(path)):
                text = entry["description"].strip()
                found.setdefault(" ".join(text.split()).casefold(), Question(text, *_solution(entry)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"not a list of AgentBench's questions: {error!r}"
            raise InputError(path, what, fix="give AgentBench's data/os_interaction/data") from None
    return list(found.values())


def _solution(entry: dict[str, Any]) -> tuple[str, str]:
    """Return the first sentence of an entry's explanation and its Bash line; the line is empty where there is none."""
    example = entry["evaluation"].get("example", "")
    command = example.get("code", "") if isinstance(example, dict) else example
    explanation = " ".join(str(entry.get("explanation", "")).split("```")[0].split())
    thought = re.split(r"(?<=[.!?])\s", explanation)[0].rstrip(":") or "I need a command for this."
    return thought, command.strip() if isinstance(command, str) else ""


def groups(texts: Sequence[str]) -> list[list[int]]:
    """Return the numbers of the texts in groups, of which no two have texts that are nearly the same."""
    from pilocal.retrieve.ngrams import NgramVectors

    forms = [re.sub(r"\d+", "0", re.sub(r"[`'\"][^`'\"]*[`'\"]|\S*/\S*", "X", text.lower())) for text in texts]
    vectors = NgramVectors(forms)(forms)
    parent = list(range(len(texts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for one, other in np.argwhere(np.triu(vectors @ vectors.T, 1) > ALIKE).tolist():
        parent[root(other)] = root(one)
    found: defaultdict[int, list[int]] = defaultdict(list)
    for number in range(len(texts)):
        found[root(number)].append(number)
    return list(found.values())


def split(questions: Sequence[Question], seed: int) -> dict[str, list[Question]]:
    """Return train, valid and test; what is held out has a Bash line to compare answers with."""
    splits: dict[str, list[Question]] = {"train": [], **{name: [] for name in SHARES}}
    for group in groups([question.text for question in questions]):
        members = [questions[i] for i in group]
        name = f"{seed}\0{min(question.text for question in members)}"
        place, bound, chosen = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64, 0.0, "train"
        for part, share in SHARES.items():
            bound += share
            if place < bound and all(question.command for question in members):
                chosen = part
                break
        splits[chosen] += members
    return splits


def write_task(prompt: str, text: str, out: Path, questions: dict[str, list[Question]] | None, source: Path) -> None:
    """Write the folder of one prompt, with the questions that it has, if any."""
    with replacing(out / "template.md") as file:
        file.write(text)
    rows = len(questions["train"]) if questions else WRITTEN
    if questions:
        lines = {"queries": [{"query": one.text} for one in questions["train"]]}
        lines |= {part: [{"query": q.text, "answer": q.answer} for q in questions[part]] for part in SHARES}
        for name, records in lines.items():
            with replacing(out / f"{name}.jsonl") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    for name in TASKS:
        task = read_text(source / name).replace('"agentbench-os"', f'"agentbench-{prompt}"')
        task = task.replace("genpi_lambda = 0.7", f"genpi_lambda = {LAMBDAS[prompt]}")
        size = int(re.findall(r"^batch_size = (\d+)", task, re.MULTILINE)[0])
        task = re.sub(r"^steps = 1000\b", f"steps = {-(-EPOCHS * rows // size)}", task, flags=re.MULTILINE)
        if not questions:
            made = "".join(f'\n{part} = "synth/{part}.jsonl"' for part in SHARES)
            task = task.replace('train = "synth/train.jsonl"', f'train = "synth/train.jsonl"{made}')
            task = task.replace("[synth]\n", '[synth]\ngenerator = "base"\n')
        with replacing(out / name) as file:
            file.write(task)
    shutil.copyfile(source / "schedule.toml", out / "schedule.toml")


def prepare(prompts: Path, data: Path, out: Path, seed: int) -> Iterator[str]:
    """Write the task folders and yield a line for each."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "already exists and is not empty", fix="choose a new folder")
    texts = {name: read_text(prompts / f"{name}.txt") for name in LAMBDAS if (prompts / f"{name}.txt").is_file()}
    if not texts:
        fix = "give GenPI's folder with os.txt, webshop.txt, m2w.txt and kg.txt"
        raise InputError(prompts, "none of the four prompts", fix=fix)
    questions = split(read_questions(data), seed) if "os" in texts else {}
    if empty := [name for name, dealt in questions.items() if not dealt]:
        raise InputError(data, f"too few questions: nothing is left for {', '.join(empty)}", fix="give all files")
    for name, text in texts.items():
        own = questions if name == "os" else None
        write_task(name, text, out / name, own, Path(__file__).parent)
        sizes = ", ".join(f"{len(dealt)} {part}" for part, dealt in questions.items()) if own else "no questions"
        yield f"{out / name}: {sizes}"


def main() -> None:
    """Read the command line and prepare the folders; exits with 1 and one line when the input is bad."""
    parser = argparse.ArgumentParser(description="Make pilocal task folders of four agents' prompts.")
    parser.add_argument("prompts", type=Path, metavar="PROMPTS", help="holds os.txt, webshop.txt, m2w.txt, kg.txt")
    parser.add_argument("questions", type=Path, metavar="QUESTIONS", help="holds AgentBench's questions, *.json")
    parser.add_argument("out", type=Path, metavar="OUT", help="gets a task folder for each prompt")
    parser.add_argument("--seed", type=int, default=0, help="deals the questions to the splits (default: 0)")
    options = parser.parse_args()
    try:
        for line in prepare(options.prompts, options.questions, options.out, options.seed):
            sys.stderr.write(f"{line}\n")
    except PilocalError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
