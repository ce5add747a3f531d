"""Make a pilocal task folder from GeoQuery: `python prepare.py FOLDER OUT`.

FOLDER holds geography.json and a geography*.sqlite of https://github.com/jkkummerfeld/text2sql-data (data/): questions
about the United States, their SQL over one schema, and the database. A question's names are filled in from its
variables, and the data set's own split of the questions is kept; a question that stands in two splits stays in the
first one of test, valid and train.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, PilocalError
from pilocal.run_folder.files import replacing
from pilocal.task.toml import read_text

SPLITS = {"test": "test", "dev": "valid", "train": "train"}
"""The data set's names of the splits, and ours."""
FILES = ("template.md", "task.toml", "template.starter.md", "task.starter.toml", "task.smollm2.toml")


def questions(entries: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield (split, question, SQL) with the variables filled in."""
    for entry in entries:
        examples = {variable["name"]: variable["example"] for variable in entry["variables"]}
        for sentence in entry["sentences"]:
            text, query = sentence["text"], " ".join(entry["sql"][0].split())
            for name, value in (examples | sentence["variables"]).items():
                text, query = text.replace(name, value), query.replace(name, value)
            yield SPLITS[sentence["question-split"]], text, query


def prepare(folder: Path, out: Path) -> dict[str, int]:
    """Write the task folder and return the size of each split, and how many questions were dropped."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "already exists and is not empty", fix="choose a new folder")
    source = folder / "geography.json"
    database = next(iter(sorted(folder.glob("geography*.sqlite"))), None)
    if database is None:
        raise InputError(folder, "no geography*.sqlite", fix="give the folder with the database")
    try:
        asked = list(questions(json.loads(read_text(source))))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(source, f"not the data set: {error!r}", fix="give the file of text2sql-data") from None
    order = list(SPLITS.values())
    splits: dict[str, dict[str, str]] = {name: {} for name in order}
    seen: set[str] = set()
    broken = repeated = 0
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        for name, text, query in sorted(asked, key=lambda item: order.index(item[0])):
            if text in seen:
                repeated += 1
                continue
            seen.add(text)
            try:
                connection.execute(query).fetchall()
            except sqlite3.Error:
                broken += 1
            else:
                splits[name][text] = query
    if empty := [name for name, pairs in splits.items() if not pairs]:
        raise InputError(source, f"nothing is left for {', '.join(empty)}", fix="give the whole file")
    for name, pairs in splits.items():
        with replacing(out / f"{name}.jsonl") as file:
            for text, query in pairs.items():
                file.write(json.dumps({"query": text, "answer": query}) + "\n")
    shutil.copyfile(database, out / "geography.sqlite")
    for name in FILES:
        shutil.copyfile(Path(__file__).with_name(name), out / name)
    sizes = {name: len(pairs) for name, pairs in splits.items()}
    return sizes | {"dropped (SQL that does not run)": broken, "dropped (asked before)": repeated}


def main() -> None:
    """Read the command line and prepare the folder; exits with 1 and one line when the input is bad."""
    parser = argparse.ArgumentParser(description="Make a pilocal task folder from GeoQuery.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds geography.json and geography*.sqlite")
    parser.add_argument("out", type=Path, metavar="OUT", help="the task folder to make")
    options = parser.parse_args()
    try:
        sizes = prepare(options.folder, options.out)
    except PilocalError as error:
        sys.exit(str(error))
    sys.stderr.write(f"{options.out}: {', '.join(f'{size} {name}' for name, size in sizes.items())}\n")


if __name__ == "__main__":
    main()
