"""Invented tasks: a glossary of arbitrary codes, format rules, and an endless supply of solved queries.

The starter model is trained on episodes from here, and its gate and the bundled example are measured on episodes
with other seeds. Every episode deals its codes afresh, so nothing but the template can tell the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

CONSONANTS, VOWELS, ENDINGS = "BDFGHKLMNPRTVZ", "AEIOU", "KLNRVXZ"
AVOID = {"FUK", "FUX", "DIK", "DIX", "NAZ", "KUR", "HOR", "HUN", "PAK", "GUK", "PEN", "ZIN"}
"""Three-letter syllables that read as something rude."""

CODES: tuple[str, ...] = tuple(
    code for a in CONSONANTS for b in VOWELS for c in ENDINGS if (code := a + b + c) not in AVOID and a != c
)[::2]
"""The pool of codes; an episode deals about fifty of them at random."""

OPENINGS = ("send", "call", "set", "post", "log", "note", "pass", "emit")
"""Words that an answer may have to begin with."""

SEPARATORS = {
    "comma": ",",
    "semicolon": ";",
    "slash": " /",
    "plus sign": " +",
    "dash": " -",
    "colon": ":",
    "bar": " |",
    "full stop": ".",
}
"""What may stand between two codes, by its English name; a space always follows it."""


FIRST_TEST_SEED = 10**9
"""Seeds from here on are never used in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A small world: what it is called, its three kinds of words and the sentences in which people ask."""

    place: str
    """What the requests are about, as in "requests for a PLACE"."""
    slots: tuple[str, str, str]
    """The names of the three kinds of words; a request may leave the third one out."""
    words: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    """The words of each kind."""
    asks: tuple[str, ...]
    """Sentences with {0}, {1} and {2} for the three words."""
    short_asks: tuple[str, ...]
    """Sentences without {2}."""


def _words(first: str, second: str, third: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return tuple(first.split()), tuple(second.split()), tuple(third.split())


DOMAINS: tuple[Domain, ...] = (
    Domain(
        place="house",
        slots=("action", "device", "room"),
        words=_words(
            """dim open close start stop lock unlock mute raise lower clean warm cool pause reset test charge check""",
            """lamp fan blind heater oven radio camera door window fridge kettle screen speaker vent curtain printer
            toaster alarm""",
            """kitchen hall porch cellar attic study garage bedroom nursery bathroom garden lounge pantry balcony
            laundry library stairs workshop""",
        ),
        asks=(
            "please {0} the {1} in the {2}",
            "in the {2}, please {0} the {1}",
            "could you {0} the {1} in the {2}?",
            "go and {0} the {1} of the {2}",
        ),
        short_asks=("please {0} the {1}", "could you {0} the {1}?", "go and {0} the {1}"),
    ),
    Domain(
        place="warehouse",
        slots=("task", "item", "zone"),
        words=_words(
            """pack ship count weigh label scan stack wrap sort store return inspect move hold seal photograph discard
            measure""",
            """crate barrel pallet box drum sack bale tube carton basket reel bundle tank bottle tray jar trunk coil""",
            """dock aisle ramp gate yard shelf tower annex depot cage bay vault loft shed bridge platform counter
            freezer""",
        ),
        asks=(
            "please {0} the {1} at the {2}",
            "at the {2}, please {0} the {1}",
            "could you {0} the {1} from the {2}?",
            "someone should {0} the {1} by the {2}",
        ),
        short_asks=("please {0} the {1}", "could you {0} the {1}?", "someone should {0} the {1}"),
    ),
    Domain(
        place="restaurant",
        slots=("method", "dish", "table"),
        words=_words(
            """grill boil fry bake steam roast toast chill salt slice mash smoke glaze poach season peel whip serve""",
            """trout potato carrot egg bread pasta rice chicken onion mushroom pumpkin apple bean cheese salmon pepper
            tomato noodle""",
            """terrace corner bench booth fountain piano mirror fireplace entrance stage arch pillar veranda alcove
            courtyard gallery aquarium staircase""",
        ),
        asks=(
            "please {0} the {1} for the table near the {2}",
            "for the table near the {2}, please {0} the {1}",
            "could you {0} the {1} for the {2}?",
            "the guests at the {2} want you to {0} the {1}",
        ),
        short_asks=("please {0} the {1}", "could you {0} the {1}?", "the guests want you to {0} the {1}"),
    ),
    Domain(
        place="harbour",
        slots=("order", "vessel", "berth"),
        words=_words(
            """moor tow load unload refuel paint repair board haul anchor signal survey escort launch turn rig free
            guard""",
            """ferry barge yacht tug trawler canoe cutter tanker dinghy schooner raft liner kayak sloop frigate rowboat
            steamer dredger""",
            """pier wharf jetty quay lagoon channel reef buoy marina slipway inlet canal basin beacon lighthouse
            breakwater estuary sandbank""",
        ),
        asks=(
            "please {0} the {1} near the {2}",
            "near the {2}, please {0} the {1}",
            "could you {0} the {1} off the {2}?",
            "the captain asks to {0} the {1} beside the {2}",
        ),
        short_asks=("please {0} the {1}", "could you {0} the {1}?", "the captain asks to {0} the {1}"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One invented task; `template` says all of it in English and `ask` draws solved queries."""

    domain: Domain
    glossary: tuple[dict[str, str], dict[str, str], dict[str, str]]
    """Per slot, word -> code."""
    opening: str
    separator: str
    """A key of SEPARATORS."""
    default: str
    """The code that stands for a missing third word."""
    replaced: dict[str, str]
    """Exceptions: word -> the code that wins over the glossary's."""
    wording: int
    """Seeds the choice among the ways of saying the same rules."""

    @property
    def entries(self) -> int:
        """Number of glossary entries."""
        return sum(len(words) for words in self.glossary)

    @property
    def template(self) -> str:
        """The task in plain English."""
        rng = Random(self.wording)
        domain, slots = self.domain, self.domain.slots
        lines = [
            rng.choice(
                (
                    f"You turn requests for a {domain.place} into codes.",
                    f"Every request is for a {domain.place}. Turn it into codes.",
                    f"People send requests for a {domain.place}. Answer each one with codes.",
                )
            ),
            f"Each request names one {slots[0]} and one {slots[1]}, and most of them name a {slots[2]} too."
            " Every word has a code of its own in the lists below, and nobody can guess it.",
        ]
        for slot, words in zip(slots, self.glossary, strict=True):
            lines.append(f"The codes for each {slot}:")
            lines += [f"- {word} {code}" for word, code in words.items()]
        rules = [
            rng.choice(
                (
                    f"Begin the answer with the word {self.opening}.",
                    f"Every answer starts with the word {self.opening}.",
                    f"Start with {self.opening}.",
                )
            ),
            rng.choice(
                (
                    "Write the codes in the order in which the request names their words.",
                    "The codes follow in the order of the words in the request.",
                )
            ),
            rng.choice(
                (
                    f"Put a {self.separator} between two codes.",
                    f"Two codes are separated by a {self.separator}.",
                    f"Between codes stands a {self.separator}.",
                )
            ),
            f"Without a {slots[2]} in the request, use {self.default}.",
        ]
        rules += [f"Exception: write {word} {code}, whatever the list says." for word, code in self.replaced.items()]
        lines.append("Rules:")
        lines += [f"{number}. {rule}" for number, rule in enumerate(rules, 1)]
        lines.append("Write the answer on one line and nothing else. Do not explain it.")
        return "\n".join(lines)

    def answer(self, words: Sequence[str], *, missing: bool) -> str:
        """Return the one right answer for a request that names these words in this order.

        With `missing` it names no word of the third kind.
        """
        codes = {**self.glossary[0], **self.glossary[1], **self.glossary[2], **self.replaced}
        written = [codes[word] for word in words] + [self.default] * missing
        return f"{self.opening} " + f"{SEPARATORS[self.separator]} ".join(written)

    def ask(self, rng: Random, *, rare: float = 0.12) -> tuple[str, str]:
        """Draw a query and its answer.

        With probability `rare` it is about an exception, for each of them, and so it is that no third word is named.
        """
        words: list[str] = [rng.choice(list(entries)) for entries in self.glossary]
        for word in self.replaced:
            if rng.random() < rare:
                slot = next(i for i, entries in enumerate(self.glossary) if word in entries)
                words[slot] = word
        missing = rng.random() < rare and words[2] not in self.replaced
        sentence = rng.choice(self.domain.short_asks if missing else self.domain.asks)
        named = [words[int(slot)] for slot in re.findall(r"{(\d)}", sentence)]
        return sentence.format(*words), self.answer(named, missing=missing)


def invent(seed: int, *, entries: int | None = None, domain: Domain | None = None, rules: bool = True) -> Episode:
    """Invent the episode of this seed.

    `entries` fixes the size of the glossary (3 to 54; drawn from 42 to 54 when None); `rules=False` leaves the
    exceptions out, for the first lessons.

    >>> episode = invent(7, entries=42)
    >>> episode.entries, episode.template == invent(7, entries=42).template
    (42, True)
    """
    rng = Random(seed)
    domain = domain or rng.choice(DOMAINS)
    total = entries or rng.randint(42, 54)
    sizes = [total // 3 + (i < total % 3) for i in range(3)]
    codes = rng.sample(CODES, total + 4)
    deal = iter(codes)
    glossary = tuple(
        {word: next(deal) for word in rng.sample(words, size)} for words, size in zip(domain.words, sizes, strict=True)
    )
    exceptional = [rng.choice(list(words)) for words in glossary]
    rng.shuffle(exceptional)
    default, *spare = list(deal)
    count = rng.randint(1, 2) if rules else 0
    return Episode(
        domain=domain,
        glossary=(glossary[0], glossary[1], glossary[2]),
        opening=rng.choice(OPENINGS),
        separator=rng.choice(list(SEPARATORS)),
        default=default,
        replaced=dict(zip(exceptional[:count], spare, strict=False)),
        wording=rng.getrandbits(32),
    )
