"""Make this folder's template.md, train.jsonl, valid.jsonl and test.jsonl: `python examples/text-to-query/make.py`.

A cold store keeps a database whose query language has a code for every operation, item and place. The codes are dealt
from one seed; they, the default and the rules stand in the template alone. The words come from three of the worlds that
the starter model was trained on, put together as it never saw them, and half of the sentences are new to it. No query
and no answer stands in two splits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from random import Random

from pilocal.starter.episodes import DOMAINS, FIRST_TEST_SEED, Domain, Episode, invent

SEED = FIRST_TEST_SEED + 717
SIZES = {"train": 800, "valid": 120, "test": 240}

WAREHOUSE, RESTAURANT = DOMAINS[1].words, DOMAINS[2].words
STORE = Domain(
    place="cold store",
    slots=("operation", "item", "place"),
    words=(WAREHOUSE[0], RESTAURANT[1], WAREHOUSE[2]),
    asks=(
        "please {0} the {1} in the {2}",
        "in the {2}, please {0} the {1}",
        "could you {0} the {1} from the {2}?",
        "we want to {0} the {1} of the {2}",
        "the cook asks to {0} the {1} by the {2}",
        "somebody has to {0} the {1} near the {2}",
    ),
    short_asks=(
        "please {0} the {1}",
        "could you {0} the {1}?",
        "we want to {0} the {1}",
        "the cook asks to {0} the {1}",
    ),
)


def template(store: Episode) -> str:
    """Return the query language in plain English."""
    lines = [
        "You turn requests about a cold store into queries for its database.",
        "The database knows no English: it reads one line and answers with one number.",
        "Each request names one operation and one item, and most of them name a place too."
        " Every word has a code of its own in the lists below, and nobody can guess it.",
    ]
    for slot, codes in zip(store.domain.slots, store.glossary, strict=True):
        lines += [f"The codes for each {slot}:", *(f"- {word} {code}" for word, code in codes.items())]
    rules = (
        f"Begin the query with the word {store.opening}.",
        "The codes follow in the order of the words in the request.",
        f"Put a {store.separator} between two codes.",
        f"Without a place in the request, use {store.default}.",
        *(f"Exception: write {word} {code}, whatever the list says." for word, code in store.replaced.items()),
        "Courtesy and small words have no code.",
    )
    lines += ["Rules:", *(f"{number}. {rule}" for number, rule in enumerate(rules, 1))]
    lines.append("Write the query on one line and nothing else. Do not explain it.")
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Write the template and the splits into a folder."""
    store = replace(invent(SEED, entries=54, domain=STORE), opening="call", separator="bar")
    rng, seen = Random(SEED), set[str]()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.md").write_text(template(store) + "\n", encoding="utf-8")
    for split, size in SIZES.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(1, size + 1):
                query, answer = store.ask(rng)
                while answer in seen:
                    query, answer = store.ask(rng)
                seen.add(answer)
                file.write(json.dumps({"id": f"{split}-{number}", "query": query, "answer": answer}) + "\n")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Make examples/text-to-query.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="another folder than the task's own")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
