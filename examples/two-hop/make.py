"""Make this folder's template.md, train.jsonl, valid.jsonl and test.jsonl: `python examples/two-hop/make.py`.

In a parts store the things are aliases of codes, four things to a code. A second table has one label for each code and
room. To find a thing's label in a room takes two look-ups: alias -> code -> label. Codes are never part of an answer.
Training shows four of the six rooms of every thing, with the working, and every label at least twice. Validation and
test ask for the rooms that are left, so that their answers can only be composed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from pilocal.starter.episodes import CODES, DOMAINS, FIRST_TEST_SEED

SEED = FIRST_TEST_SEED + 1515
CODES_USED, ALIASES, ROOMS = 6, 4, 6
TRAINED = 4
"""Rooms of every thing that training shows."""
ASKS = (
    "please label the {0} in the {1}",
    "in the {1}, please label the {0}",
    "could you label the {0} in the {1}?",
    "go and label the {0} of the {1}",
)
TRAIN, VALID, TEST = "train", "valid", "test"

Pair = tuple[str, str]
"""A thing and a room."""


class Store:
    """Both tables."""

    def __init__(self, rng: Random) -> None:
        things = rng.sample(DOMAINS[0].words[1] + DOMAINS[1].words[1], CODES_USED * ALIASES)
        self.rooms = rng.sample(DOMAINS[0].words[2], ROOMS)
        texts = rng.sample(CODES, CODES_USED * (1 + ROOMS))
        self.codes = texts[:CODES_USED]
        self.code_of = {thing: self.codes[number // ALIASES] for number, thing in enumerate(things)}
        places = [(code, room) for code in self.codes for room in self.rooms]
        self.label_of = dict(zip(places, texts[CODES_USED:], strict=True))

    def template(self) -> str:
        """Return both tables in plain English."""
        things = sorted(self.code_of)
        lines = [
            "You answer requests of a parts store with labels.",
            "Each request names one thing and one room. Look up the code of the thing, and then the label of that code"
            " in that room. Nobody can guess either.",
            "The code of each thing:",
            *(f"- {thing} {self.code_of[thing]}" for thing in things),
        ]
        for room in self.rooms:
            lines += [f"The label of each code in the {room}:"]
            lines += [f"- {code} {self.label_of[code, room]}" for code in self.codes]
        lines.append("Write the label and nothing else. Do not explain it.")
        return "\n".join(lines)

    def splits(self, rng: Random) -> dict[str, list[Pair]]:
        """Divide the pairs: every code's rooms are each trained with two or three of its four things."""
        pairs: dict[str, list[Pair]] = {TRAIN: [], VALID: [], TEST: []}
        for code in self.codes:
            things = [thing for thing, its in self.code_of.items() if its == code]
            rooms = rng.sample(self.rooms, ROOMS)
            for number, thing in enumerate(things):
                turned = rooms[number:] + rooms[:number]  # so no room of a code is left out for all its things
                pairs[TRAIN] += [(thing, room) for room in turned[:TRAINED]]
                held_out = turned[TRAINED:]
                pairs[VALID if number == 0 else TEST] += [(thing, room) for room in held_out]
        return pairs

    def record(self, identity: str, pair: Pair, ask: str) -> dict[str, str]:
        """Return a solved request with its working: a line for each look-up."""
        thing, room = pair
        code, label = self.code_of[thing], self.label_of[self.code_of[thing], room]
        working = f"the {thing} is {code}\n{code} in the {room} is {label}"
        return {"id": identity, "query": ask.format(thing, room), "answer": label, "working": working}


def write(folder: Path) -> None:
    """Write the template and the splits into a folder."""
    rng = Random(SEED)
    store = Store(rng)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.md").write_text(store.template() + "\n", encoding="utf-8")
    for split, pairs in store.splits(rng).items():
        asked = [(pair, ask) for pair in pairs for ask in ASKS]
        rng.shuffle(asked)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number, (pair, ask) in enumerate(asked, 1):
                record = store.record(f"{split}-{number}", pair, ask)
                if split == TEST:
                    del record["working"]
                file.write(json.dumps(record) + "\n")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Make examples/two-hop.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="another folder than the task's own")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
