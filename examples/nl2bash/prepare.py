"""Make a pilocal task folder from NL2Bash: `python prepare.py FOLDER OUT`.

FOLDER holds all.nl and all.cm of https://github.com/TellinaTool/nl2bash (data/bash; MIT): line n of one is a question
in English, line n of the other the Bash command that answers it. Many questions and commands come up several times, so
the splits are made by content: whatever shares a question or a command stays together.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from pilocal.errors import InputError, PilocalError
from pilocal.run_folder.files import replacing
from pilocal.task.toml import read_text

SHARES = {"valid": 0.05, "test": 0.10}
"""The splits beside train, as shares of the groups."""

FILES = ("template.md", "task.toml", "template.starter.md", "task.starter.toml", "task.smollm2.toml")

Pair = tuple[str, str]
"""A question and its command."""


def read_pairs(questions: Path, commands: Path) -> tuple[int, list[Pair]]:
    """Return how many lines two aligned files have, and their pairs, each once; raises InputError when not aligned."""
    rows = [read_text(path).rstrip("\n").split("\n") for path in (questions, commands)]
    if len(rows[0]) != len(rows[1]):
        fix = "give the two files of one NL2Bash release"
        raise InputError(commands, f"{len(rows[0])} lines needed, as in {questions}", got=len(rows[1]), fix=fix)
    pairs: dict[Pair, Pair] = {}
    for number, (question, command) in enumerate(zip(*rows, strict=True), 1):
        if not question.strip() or not command.strip():
            blank = commands if question.strip() else questions
            raise InputError(f"{blank}:{number}", "an empty line", fix="fill it in, or remove the line from both files")
        pair = question.strip(), command.strip()
        pairs.setdefault((same_question(pair), same_command(pair)), pair)
    return len(rows[0]), list(pairs.values())


def same_question(pair: Pair) -> str:
    """Return what two equal questions have in common: all but spaces and capitals."""
    return " ".join(pair[0].split()).casefold()


def same_command(pair: Pair) -> str:
    """Return what two equal commands have in common: all but the spaces."""
    return " ".join(pair[1].split())


def groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the pairs in groups that share neither a question nor a command with one another.

    >>> groups([("a", "ls"), ("b", "pwd"), ("A", "ls -l"), ("c", "ls")])
    [[('a', 'ls'), ('A', 'ls -l'), ('c', 'ls')], [('b', 'pwd')]]
    """
    parent = list(range(len(pairs)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[tuple[str, str], int] = {}
    for number, pair in enumerate(pairs):
        for key in (("question", same_question(pair)), ("command", same_command(pair))):
            parent[root(number)] = root(first.setdefault(key, number))
    found: defaultdict[int, list[Pair]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        found[root(number)].append(pair)
    return list(found.values())


def split(pairs: Sequence[Pair], seed: int) -> dict[str, list[Pair]]:
    """Return train, valid and test; a group's split depends on the seed and its smallest pair, not on the others."""
    splits: dict[str, list[Pair]] = {"train": [], **{name: [] for name in SHARES}}
    for group in groups(pairs):
        text = "\0".join((str(seed), *min((same_question(pair), same_command(pair)) for pair in group)))
        place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        bounds = zip(SHARES, accumulate(SHARES.values()), strict=True)
        splits[next((name for name, bound in bounds if place < bound), "train")] += group
    return splits


def draw(pairs: Sequence[Pair], most: int | None, seed: int) -> list[Pair]:
    """Return at most so many pairs, in their order; which ones depends on the seed and on nothing else."""
    if most is None or most >= len(pairs):
        return list(pairs)
    return [pairs[i] for i in sorted(random.Random(seed).sample(range(len(pairs)), most))]


def prepare(folder: Path, out: Path, seed: int, most: Mapping[str, int | None]) -> dict[str, int]:
    """Write the task folder, with at most `most` pairs in a split.

    Return the size of each split, and how many pairs were dropped.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "already exists and is not empty", fix="choose a new folder")
    questions = folder / "all.nl"
    lines, pairs = read_pairs(questions, folder / "all.cm")
    splits = split(pairs, seed)
    if empty := [name for name, dealt in splits.items() if not dealt]:
        raise InputError(
            questions, f"too few pairs: nothing is left for {', '.join(empty)}", fix="give the whole files"
        )
    splits = {name: draw(dealt, most.get(name), seed) for name, dealt in splits.items()}
    for name, dealt in splits.items():
        with replacing(out / f"{name}.jsonl") as file:
            for query, answer in dealt:
                file.write(json.dumps({"query": query, "answer": answer}, ensure_ascii=False) + "\n")
    for name in FILES:
        shutil.copyfile(Path(__file__).with_name(name), out / name)
    return {name: len(dealt) for name, dealt in splits.items()} | {"dropped (the same pair again)": lines - len(pairs)}


def count(text: str) -> int:
    """Return a number above 0; raises ValueError, which argparse tells."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """Read the command line and prepare the folder; exits with 1 and one line when the input is bad."""
    parser = argparse.ArgumentParser(description="Make a pilocal task folder from NL2Bash.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds all.nl and all.cm")
    parser.add_argument("out", type=Path, metavar="OUT", help="the task folder to make")
    parser.add_argument("--seed", type=int, default=0, help="deals the groups to the splits (default: 0)")
    for name in ("train", *SHARES):
        parser.add_argument(
            f"--{name}", type=count, metavar="N", help=f"draw at most N pairs for {name} (default: all)"
        )
    options = parser.parse_args()
    most = {name: getattr(options, name) for name in ("train", *SHARES)}
    try:
        sizes = prepare(options.folder, options.out, options.seed, most)
    except PilocalError as error:
        sys.exit(str(error))
    sys.stderr.write(f"{options.out}: {', '.join(f'{size} {name}' for name, size in sizes.items())}\n")


if __name__ == "__main__":
    main()
