"""Make a pilocal task folder from MBPP: `python prepare.py FOLDER OUT`.

FOLDER holds mbpp.jsonl of https://github.com/google-research/google-research (mbpp/; CC BY 4.0): tasks in English, a
solution in Python and three asserts each. The query is the task with its asserts, which alone tell the function's name.
The data set's own splits are kept: 11 to 510 test, 511 to 600 valid, 601 to 974 train, and the ten that are meant as
shots are for training, too. A task whose text or solution stands in an earlier split (test, valid, train) is left out.
test.starter.jsonl is the test without queries that the starter's context could not hold.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, PilocalError
from pilocal.run.files import replacing
from pilocal.task.toml import read_text

SPLITS = {"test": range(11, 511), "valid": range(511, 601), "train": (*range(1, 11), *range(601, 975))}
"""The ids of each split, in the order in which a repeated task is kept."""
LONGEST = 1200
"""Characters of a query in test.starter.jsonl: about 600 of the starter's tokens, beside template, shot and answer."""
FILES = ("template.md", "task.toml", "template.starter.md", "task.starter.toml")


def read_rows(source: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of the file; raises InputError with the line of a bad one."""
    for number, line in enumerate(read_text(source).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield {key: row[key] for key in ("task_id", "text", "code", "test_list", "test_setup_code")}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{source}:{number}", f"not the data set: {error!r}", fix="give MBPP's file") from None


def clean(code: str) -> str:
    """Return Python code with plain line ends, four spaces for a tab, and no space at the ends of lines."""
    lines = code.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4).split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row as a record, with a set-up where its asserts need one."""
    asserts = [clean(test) for test in row["test_list"]]
    query = "\n".join((" ".join(row["text"].split()), "The tests:", *asserts))
    made = {"id": f"mbpp-{row['task_id']}", "query": query, "answer": clean(row["code"]), "tests": asserts}
    setup = clean(row["test_setup_code"])
    return made | ({"setup": setup} if setup else {})


def content(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return what two equal tasks have in common: the text, or the solution, but for spaces and capitals."""
    return " ".join(row["text"].split()).casefold(), "".join(row["code"].split())


def prepare(folder: Path, out: Path) -> dict[str, int]:
    """Write the task folder and return the size of each split, and how many tasks were dropped."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "already exists and is not empty", fix="choose a new folder")
    source = folder / "mbpp.jsonl"
    rows = {row["task_id"]: row for row in read_rows(source)}
    splits: dict[str, list[dict[str, Any]]] = {}
    earlier: set[str] = set()
    dropped = 0
    for name, ids in SPLITS.items():
        there = [rows[number] for number in ids if number in rows]
        kept = [row for row in there if earlier.isdisjoint(content(row))]
        dropped += len(there) - len(kept)
        earlier.update(*(content(row) for row in kept))
        splits[name] = [record(row) for row in kept]
    if empty := [name for name, records in splits.items() if not records]:
        raise InputError(source, f"nothing is left for {', '.join(empty)}", fix="give the whole file")
    short = [record for record in splits["test"] if len(record["query"]) <= LONGEST]
    for name, records in (*splits.items(), ("test.starter", short)):
        with replacing(out / f"{name}.jsonl") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    for name in FILES:
        shutil.copyfile(Path(__file__).with_name(name), out / name)
    sizes = {name: len(records) for name, records in splits.items()}
    return sizes | {"test for the starter": len(short), "dropped (in an earlier split)": dropped}


def main() -> None:
    """Read the command line and prepare the folder; exits with 1 and one line when the input is bad."""
    parser = argparse.ArgumentParser(description="Make a pilocal task folder from MBPP.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds mbpp.jsonl")
    parser.add_argument("out", type=Path, metavar="OUT", help="the task folder to make")
    options = parser.parse_args()
    try:
        sizes = prepare(options.folder, options.out)
    except PilocalError as error:
        sys.exit(str(error))
    sys.stderr.write(f"{options.out}: {', '.join(f'{size} {name}' for name, size in sizes.items())}\n")


if __name__ == "__main__":
    main()
