"""Make a task's files: `python examples/smart-home/make.py`; with `--leave-out` those of examples/smart-home-gap.

A house understands codes, not English. The glossary and the rules are invented from one seed that the starter model
never saw in training; no query and no answer stands in two splits. In the variant a third of the glossary, LEFT_OUT of
each list, stands in the template alone: no query for training or validation names these words, so no answer there, and
none of a shot, has their codes. Every other test query names at least one of them (its record lists them).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from random import Random
from typing import Any

from pilocal.starter.episodes import DOMAINS, FIRST_TEST_SEED, Episode, invent

SEED = FIRST_TEST_SEED + 2026
SIZES = {"train": 800, "valid": 120, "test": 240}
LEFT_OUT = (6, 5, 5)


def leave_out(house: Episode) -> frozenset[str]:
    """Return the words of the gap: never an exception, whose rule would be left out with it."""
    rng = Random(SEED)
    lists = [[word for word in words if word not in house.replaced] for words in house.glossary]
    return frozenset(word for words, size in zip(lists, LEFT_OUT, strict=True) for word in rng.sample(words, size))


def named(query: str, words: frozenset[str]) -> list[str]:
    """Return which of the words a query names, in its order."""
    return [word for word in re.findall("[a-z]+", query) if word in words]


def write(folder: Path, *, gap: bool) -> None:
    """Write the template and the splits into a folder."""
    house = invent(SEED, entries=48, domain=DOMAINS[0])
    missing = leave_out(house) if gap else frozenset[str]()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.md").write_text(house.template + "\n", encoding="utf-8")
    rng, seen = Random(SEED), set[str]()
    for split, size in SIZES.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(1, size + 1):
                wanted = gap and split == "test" and number % 2 == 1
                query, answer = house.ask(rng)
                while answer in seen or bool(named(query, missing)) != wanted:
                    query, answer = house.ask(rng)
                seen.add(answer)
                record: dict[str, Any] = {"id": f"{split}-{number}", "query": query, "answer": answer}
                if gap and split == "test":
                    record["left_out"] = named(query, missing)
                file.write(json.dumps(record) + "\n")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Make examples/smart-home, or examples/smart-home-gap.")
    parser.add_argument("--leave-out", action="store_true", help="the variant with a gap in its training set")
    parser.add_argument("--out", type=Path, help="another folder than the task's own")
    options = parser.parse_args()
    here = Path(__file__).parent
    own = here.with_name("smart-home-gap") if options.leave_out else here
    write(options.out or own, gap=options.leave_out)


if __name__ == "__main__":
    main()
