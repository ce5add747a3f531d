"""From a public data set to a task folder: splits by content, and the folder's files.

A line of a data set often repeats another one's question or answer. Split line by line, a model is tested on what it
saw; so whatever shares a question or an answer stays together, as a family, and families are dealt to the splits.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from pilocal.errors import InputError
from pilocal.rundir import replacing


def families[T](items: Sequence[T], content: Callable[[T], tuple[str, ...]]) -> list[list[T]]:
    """Return the items in families that share no content with one another, in order of appearance.

    `content` gives an item's texts, say its question and its answer; two items that agree in the first text, or in the
    second one, and so on, are of one family, and so are their relatives.

    >>> families([("a", "ls"), ("b", "pwd"), ("a", "ls -l"), ("c", "ls")], lambda pair: pair)
    [[('a', 'ls'), ('a', 'ls -l'), ('c', 'ls')], [('b', 'pwd')]]
    """
    parent = list(range(len(items)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[tuple[int, str], int] = {}
    for number, item in enumerate(items):
        for key in enumerate(content(item)):
            parent[root(number)] = root(first.setdefault(key, number))
    found: defaultdict[int, list[T]] = defaultdict(list)
    for number, item in enumerate(items):
        found[root(number)].append(item)
    return list(found.values())


def deal[T](
    items: Sequence[T], content: Callable[[T], tuple[str, ...]], shares: Mapping[str, float], seed: int = 0
) -> dict[str, list[T]]:
    """Deal the families of the items to train and to the splits in `shares`, whose values are shares of the families.

    Where a family goes depends on the seed and on its smallest content, not on the order of the items nor on the other
    families: a data set that grows keeps its splits.
    """
    splits: dict[str, list[T]] = {"train": [], **{name: [] for name in shares}}
    for family in families(items, content):
        text = "\0".join((str(seed), *min(content(item) for item in family)))
        place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        bounds = zip(shares, accumulate(shares.values()), strict=True)
        splits[next((name for name, bound in bounds if place < bound), "train")] += family
    return splits


def must_be_new(out: Path) -> None:
    """Raise InputError when something stands where a task folder is to be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "already there and not empty", fix="choose a new folder")


def write_task(
    out: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], texts: Mapping[str, str], *, source: Path
) -> dict[str, int]:
    """Write a task folder and return the size of each split.

    `splits` holds the records of train, valid and test, `texts` the other files by name: the template and one or more
    task files. Raises InputError about `source` when a split is empty, before anything is written.
    """
    if empty := [name for name, records in splits.items() if not records]:
        raise InputError(source, f"too few rows: nothing is left for {', '.join(empty)}", fix="give the whole files")
    for name, records in splits.items():
        with replacing(out / f"{name}.jsonl") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    for name, text in texts.items():
        with replacing(out / name) as file:
            file.write(text)
    return {name: len(records) for name, records in splits.items()}
