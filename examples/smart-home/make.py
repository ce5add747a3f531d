"""Make this folder's template.md, train.jsonl, valid.jsonl and test.jsonl: `python examples/smart-home/make.py`.

A house understands codes, not English. The glossary and the rules are invented from one seed that the starter model
never saw in training; no query and no answer stands in two splits.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from pilocal.starter.episodes import DOMAINS, FIRST_TEST_SEED, invent

SEED = FIRST_TEST_SEED + 2026
SIZES = {"train": 800, "valid": 120, "test": 240}


def main() -> None:
    """Write the files beside this script."""
    here = Path(__file__).parent
    house = invent(SEED, entries=48, domain=DOMAINS[0])
    (here / "template.md").write_text(house.template + "\n", encoding="utf-8")
    rng, seen = Random(SEED), set[str]()
    for split, size in SIZES.items():
        with (here / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(1, size + 1):
                query, answer = house.ask(rng)
                while answer in seen:
                    query, answer = house.ask(rng)
                seen.add(answer)
                file.write(json.dumps({"id": f"{split}-{number}", "query": query, "answer": answer}) + "\n")


if __name__ == "__main__":
    main()
