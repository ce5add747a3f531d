"""Make this folder's template.md, train.jsonl, valid.jsonl and test.jsonl: `python examples/text-to-query/make.py`.

A harbour keeps a database with a query language of its own. The codes of its tables, columns and values are dealt from
one seed; they, the operators, the defaults and the rules stand in the template alone. A question has up to two
conditions, an order and a limit, or it asks for a count. No query and no answer stands in two splits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pilocal.starter.episodes import CODES, DOMAINS, FIRST_TEST_SEED

SEED = FIRST_TEST_SEED + 717
SIZES = {"train": 800, "valid": 120, "test": 240}

WAREHOUSE, HARBOUR = DOMAINS[1].words, DOMAINS[3].words
TABLES, PLACES, CARGOES = HARBOUR[1][:16], HARBOUR[2][:16], WAREHOUSE[1][:12]
NUMBERS = ("size", "value", "range", "time", "charge", "number")
"""The columns that hold numbers."""
NO_TABLE, INSTEAD = "steamer", "liner"
"""A vessel without a table, and the one in whose table it stands."""

COMPARISONS = {"of more than": "+", "below": "-", "of": "="}
"""How a question compares a number, and the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """The codes of everything that has one."""

    tables: dict[str, str]
    columns: dict[str, str]
    """Those of NUMBERS, and name, place and cargo."""
    places: dict[str, str]
    cargoes: dict[str, str]

    @property
    def template(self) -> str:
        """The language in plain English."""
        lists = {
            "The tables, one for each kind of vessel:": self.tables,
            "The columns, the same in every table:": self.columns,
            "The places:": self.places,
            "The cargoes:": self.cargoes,
        }
        lines = [
            "You turn questions about the vessels of a harbour into queries for its database.",
            "Tables, columns, places and cargoes have codes of their own in the lists below, and nobody can guess"
            " them.",
        ]
        for title, codes in lists.items():
            lines += [title, *(f"- {word} {code}" for word, code in codes.items())]
        rules = (
            "Begin with the word get and the code of the table. When the question asks how many, write get count and"
            " the code.",
            f"There is no table for a {NO_TABLE}: use that of the {INSTEAD}.",
            "Then come the conditions: the word with before the first one, the word and before the second one, in the"
            " order of the question. Without a condition in the question, write neither.",
            "A condition is the code of a column, an operator and a value.",
            "The operators are + for more than, - for below, = for is, and / for is not.",
            "A number is written as it stands in the question; a place or a cargo is written as its code.",
            "Then comes the order: the word sort and the code of the column. When the question wants the most first,"
            " write most after it.",
            f"When the question names no order, sort by name: sort {self.columns['name']}.",
            "When the question wants the first few rows only, end with the word first and their number.",
            "A query that counts has neither an order nor a number of rows.",
        )
        lines += ["Rules:", *(f"{number}. {rule}" for number, rule in enumerate(rules, 1))]
        lines.append("Write the query on one line and nothing else. Do not explain it.")
        return "\n".join(lines)


def invent(seed: int) -> Database:
    """Deal the codes."""
    rng = Random(seed)
    columns = ("name", "place", "cargo", *NUMBERS)
    deal = iter(rng.sample(CODES, len(TABLES) + len(columns) + len(PLACES) + len(CARGOES)))
    tables, named, places, cargoes = (
        {word: next(deal) for word in rng.sample(words, len(words))} for words in (TABLES, columns, PLACES, CARGOES)
    )
    return Database(tables=tables, columns=named, places=places, cargoes=cargoes)


def condition(database: Database, column: str, rng: Random) -> tuple[str, str]:
    """Draw a condition on a column: how the question says it, and how the query does."""
    code, negated = database.columns[column], rng.random() < 0.25
    if column == "place":
        place = rng.choice(list(database.places))
        return f"{'not ' * negated}at the {place}", f"{code} {'/' if negated else '='} {database.places[place]}"
    if column == "cargo":
        cargo = rng.choice(list(database.cargoes))
        said = "with any cargo but" if negated else "with the cargo"
        return f"{said} {cargo}", f"{code} {'/' if negated else '='} {database.cargoes[cargo]}"
    comparison, number = rng.choice(list(COMPARISONS)), rng.randint(2, 60)
    return f"with a {column} {comparison} {number}", f"{code} {COMPARISONS[comparison]} {number}"


def ask(database: Database, rng: Random) -> tuple[str, str]:
    """Draw a question and its query."""
    vessel = rng.choice([*database.tables, NO_TABLE])
    table = database.tables[INSTEAD if vessel == NO_TABLE else vessel]
    counts = rng.random() < 0.2
    kinds = rng.sample(("place", "cargo", "number"), rng.choices((0, 1, 2), (0 if counts else 1, 5, 5))[0])
    drawn = [condition(database, rng.choice(NUMBERS) if kind == "number" else kind, rng) for kind in kinds]
    where = "".join(f" {word} {query}" for word, (_, query) in zip(("with", "and"), drawn, strict=False))
    said = "".join(f" {text}" for text, _ in drawn)
    if counts:
        opening = rng.choice(("how many times is there a {}", "count every {}", "say how many: {}"))
        return opening.format(vessel) + said, f"get count {table}{where}"
    question = rng.choice(("list every {}", "find each {}", "which {} is", "please get every {}")).format(vessel) + said
    order = f" sort {database.columns['name']}"
    if rng.random() < 0.6 or not drawn:
        column, most = rng.choice(("name", *NUMBERS)), rng.random() < 0.4
        question += f", by {column}" + ", the most first" * most
        order = f" sort {database.columns[column]}" + " most" * most
    if rng.random() < 0.35:
        rows = rng.randint(2, 20)
        question += f", only the first {rows}"
        order += f" first {rows}"
    return question, f"get {table}{where}{order}"


def write(folder: Path) -> None:
    """Write the template and the splits into a folder."""
    database, rng, seen = invent(SEED), Random(SEED), set[str]()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.md").write_text(database.template + "\n", encoding="utf-8")
    for split, size in SIZES.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(1, size + 1):
                query, answer = ask(database, rng)
                while answer in seen:
                    query, answer = ask(database, rng)
                seen.add(answer)
                file.write(json.dumps({"id": f"{split}-{number}", "query": query, "answer": answer}) + "\n")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Make examples/text-to-query.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="another folder than the task's own")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
