"""A made data set of any size, from a seed: varied queries of 10 to 40 words, and a command that answers each.

Words follow Zipf's law, as those of a language do. There are several hundred kinds of requests, each in many wordings,
and names and numbers in them that the answer repeats, as in the logs of an assistant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random

SYLLABLES = [first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeiou" for last in ("", "n", "r", "s")]
WORDS, KINDS, NAMES = 12_000, 400, 4_000
LENGTHS = (10, 40)
"""Words of the shortest and the longest query."""

FLAGS = ("order", "user", "date", "reason", "region", "limit", "notify", "channel", "tag", "since", "owner", "level")


class Maker:
    """Draws examples one after the other; the same seed draws the same."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = Random(seed)
        draw = self._draw
        words = {"".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(2 * WORDS)}
        self._words = sorted(words)[:WORDS]
        draw.shuffle(self._words)
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(len(self._words))))
        self._names = ["".join(draw.choices(SYLLABLES, k=2)).title() for _ in range(NAMES)]
        self._kinds = [self._kind() for _ in range(KINDS)]
        self._often = list(accumulate(1 / (rank + 5) for rank in range(KINDS)))

    def _kind(self) -> tuple[str, list[str], list[str]]:
        """Return a kind of request: its command, its flags, and words that its queries tend to have."""
        draw = self._draw
        command = " ".join(draw.choices(self._words[:600], k=2))
        return command, draw.sample(FLAGS, draw.randint(2, 6)), draw.choices(self._words[:3000], k=30)

    def example(self) -> tuple[str, str]:
        """Return a query and its answer."""
        draw = self._draw
        ((command, flags, typical),) = draw.choices(self._kinds, cum_weights=self._often)
        length = draw.randint(*LENGTHS)
        common = draw.choices(self._words, cum_weights=self._weights, k=length)
        said = [draw.choice(typical) if draw.random() < 0.3 else word for word in common]
        answer = [command]
        for flag in draw.sample(flags, draw.randint(1, len(flags))):
            value = self._value(flag)
            said[draw.randrange(length)] = value
            answer.append(f'--{flag} "{value}"')
        return " ".join(said[:length]).capitalize(), " ".join(answer)

    def _value(self, flag: str) -> str:
        draw = self._draw
        if flag in ("order", "limit", "level"):
            return str(int(10 ** draw.uniform(0, 6)))
        if flag in ("date", "since"):
            return f"2026-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
        if flag in ("reason", "tag"):
            return " ".join(draw.choices(self._words[:2000], cum_weights=self._weights[:2000], k=draw.randint(1, 4)))
        return self._names[int(NAMES * draw.random() ** 2)]

    def word(self, number: int) -> str:
        """Return one of the words."""
        return self._words[number]

    def template(self, words: int) -> str:
        """Return a prompt of about so many words, in lines."""
        draw, lines, left = self._draw, list[str](), words
        while left > 0:
            count = min(left, draw.randint(8, 20))
            lines.append("- " + " ".join(draw.choices(self._words, cum_weights=self._weights, k=count)) + ".")
            left -= count
        return "\n".join(lines) + "\n"


def records(maker: Maker, count: int, alike: int = 1) -> Iterator[str]:
    """Yield lines of JSONL whose queries all differ, `alike` of them in a row in their last word alone."""
    seen = set[str]()
    while len(seen) < count:
        query, answer = maker.example()
        for number in range(alike):
            said = f"{query} {maker.word(number)}" if number else query
            if (asked := said.casefold()) not in seen:
                seen.add(asked)
                yield json.dumps({"query": said, "answer": answer}) + "\n"


def write_task(
    folder: Path,
    count: int,
    others: int = 1000,
    seed: int = 0,
    words: int = 400,
    base: Path | None = None,
    alike: int = 1,
) -> Path:
    """Write a task on `base`, or the starter, with `count` training examples, and `others` for validation and test.

    `alike` is as for `records`: more examples are made in the same time.
    """
    folder.mkdir(parents=True)
    maker = Maker(seed)
    (folder / "template.md").write_text(maker.template(words), encoding="utf-8")
    model = f'model = "{base.as_posix()}"\n' if base else ""
    (folder / "task.toml").write_text(f'name = "made"\n{model}', encoding="utf-8")
    lines = records(maker, count + 2 * others, alike)
    for split, some in (("train", count), ("valid", others), ("test", others)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(next(lines) for _ in range(some))
    return folder
