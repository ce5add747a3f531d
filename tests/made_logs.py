"""Logs of which it is known what recurs in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pilocal.starter.episodes import DOMAINS, FIRST_TEST_SEED, invent

WORDS = [
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "ivory", "jetty", "kelp", "linen",
    "maple", "noble", "ocean", "pearl", "quartz", "river", "slate", "tulip", "umber", "velvet", "willow", "yarrow",
    "zephyr", "anchor", "bridge", "candle", "drift", "engine", "fabric", "garden", "harbor", "island",
]  # fmt: skip
NAMES = ["Ann", "Bob", "Chloe", "Dmitri", "Elif", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lena", "Mateo"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

Message = dict[str, Any]


@dataclass(frozen=True)
class MadeLog:
    """A log, and what is to be found in it."""

    kind: str
    rows: list[list[Message]]
    """Messages, the answer as the last."""
    template: str
    """Every line of it recurs, and nothing else does; what changes in it is a slot."""
    queries: list[str]
    """The query of each row that has the template, by the row's number; empty for the others."""
    warned: bool
    """Whether what was found needs a warning."""
    slots: list[dict[str, str]]
    """What each row has in the slots."""

    @property
    def lines(self) -> list[str]:
        return [" ".join(line.split()) for line in self.template.split("\n") if line.strip()]


def sentence(rng: random.Random, low: int = 6, high: int = 14) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def rules(rng: random.Random, count: int | None = None) -> str:
    lines = [f"You are the {rng.choice(WORDS)} assistant of {rng.choice(WORDS).title()} Ltd.", ""]
    for number in range(count or rng.randint(4, 40)):
        lines.append(f"- {rng.choice(WORDS).title()} {number}: {sentence(rng)}.")
    return "\n".join([*lines, f"Answer with {sentence(rng, 2, 4)}."])


def query(rng: random.Random) -> str:
    forms = ("please {}", "what about {}?", "{}", "I need {}. Can you help?", "tell me: {}", "{}\n{}")
    return rng.choice(forms).format(sentence(rng, 3, 9), sentence(rng, 3, 9)).strip()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(rng: random.Random) -> Message:
    return {"role": "assistant", "content": sentence(rng, 1, 4)}


def log(
    kind: str, rng: random.Random, rows: Sequence[tuple[list[Message], str]], template: str, *, warned: bool
) -> MadeLog:
    answered = [[*messages, said(rng)] for messages, _ in rows]
    return MadeLog(kind, answered, template, [each for _, each in rows], warned, [{} for _ in rows])


def made(rng: random.Random, count: int, one: Callable[[str], list[Message]]) -> list[tuple[list[Message], str]]:
    asked = [query(rng) for _ in range(count)]
    return [(one(each), each) for each in asked]


def slotted(
    kind: str, rng: random.Random, count: int, prompt: tuple[str, str], values: Callable[[], dict[str, str]]
) -> MadeLog:
    """A log of a prompt with slots: a system message, and the user's turn in which {{query}} stands for the query."""
    rows, slots = [], []
    for _ in range(count):
        asked, held = query(rng), values()
        texts = list(prompt)
        for name, value in (held | {"query": asked}).items():
            texts = [text.replace("{{" + name + "}}", value) for text in texts]
        rows.append(([*([{"role": "system", "content": texts[0]}] if texts[0] else []), user(texts[1])], asked))
        slots.append(held)
    template = "\n\n".join(filter(None, (prompt[0], *map(str.strip, prompt[1].split("{{query}}")))))
    return replace(log(kind, rng, rows, template, warned=True), slots=slots)


def system_prompt(rng: random.Random, count: int) -> MadeLog:
    text = rules(rng)
    rows = made(rng, count, lambda asked: [{"role": "system", "content": text}, user(asked)])
    return log("system", rng, rows, text, warned=False)


def prefix(rng: random.Random, count: int) -> MadeLog:
    text = rules(rng)
    rows = made(rng, count, lambda asked: [user(f"{text}\n\n{asked}")])
    return log("prefix", rng, rows, text, warned=False)


def suffix(rng: random.Random, count: int) -> MadeLog:
    text = rules(rng)
    rows = made(rng, count, lambda asked: [user(f"{asked}\n\n{text}")])
    return log("suffix", rng, rows, text, warned=True)


def both_sides(rng: random.Random, count: int) -> MadeLog:
    text, end = rules(rng), f"Remember {sentence(rng)}."
    rows = made(rng, count, lambda asked: [user(f"{text}\n\nQuestion of a customer\n{asked}\n\n{end}")])
    return log("both sides", rng, rows, f"{text}\n\nQuestion of a customer\n{end}", warned=True)


def one_line(rng: random.Random, count: int) -> MadeLog:
    text = f"Decide whether the {rng.choice(WORDS)} of the customer is {rng.choice(WORDS)} or {rng.choice(WORDS)}:"
    rows = made(rng, count, lambda asked: [user(f"{text} {asked}")])
    return log("one line", rng, rows, text, warned=True)


def few_shot(rng: random.Random, count: int) -> MadeLog:
    text = rules(rng)
    shots = [turn for _ in range(rng.randint(1, 5)) for turn in (user(query(rng)), said(rng))]
    rows = made(rng, count, lambda asked: [{"role": "system", "content": text}, *shots, user(asked)])
    return log("few-shot", rng, rows, text, warned=True)


def drawn_shots(rng: random.Random, count: int) -> MadeLog:
    text = rules(rng)
    pool = [(user(query(rng)), said(rng)) for _ in range(6)]

    def one(asked: str) -> list[Message]:
        chosen = rng.sample(pool, 3)
        return [{"role": "system", "content": text}, *(turn for pair in chosen for turn in pair), user(asked)]

    return log("drawn shots", rng, made(rng, count, one), text, warned=True)


def two_templates(rng: random.Random, count: int) -> MadeLog:
    prompts = rules(rng), rules(rng)
    rows = []
    for number in range(count):
        asked = query(rng)
        text = prompts[number % 3 == 0]
        rows.append(([{"role": "system", "content": text}, user(asked)], asked if text == prompts[0] else ""))
    return log("two templates", rng, rows, prompts[0], warned=False)


def variants(rng: random.Random, count: int) -> MadeLog:
    text = rules(rng, 20)
    lines = text.split("\n")
    other = "\n".join([*lines[:6], f"- New: {sentence(rng)}.", *lines[6:9], *lines[10:]])
    third = text.replace("Answer with", "Always answer with")
    rows = []
    for number in range(count):
        asked, chosen = query(rng), (text, text, text, other, third)[number % 5]
        rows.append(([{"role": "system", "content": chosen}, user(asked)], asked if chosen == text else ""))
    return log("variants", rng, rows, text, warned=True)


def date(rng: random.Random) -> str:
    return f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def texts(rng: random.Random, most: int) -> str:
    return "\n".join(f"{sentence(rng, 10, 20)}." for _ in range(rng.randint(1, most)))


def dated(rng: random.Random, count: int) -> MadeLog:
    lines = rules(rng).split("\n")
    place = rng.choice((1, len(lines) // 2, len(lines)))
    text = "\n".join([*lines[:place], "Today is {{today}}.", *lines[place:]])
    return slotted("dates", rng, count, (text, "{{query}}"), lambda: {"today": f"{rng.choice(DAYS)}, {date(rng)}"})


def named(rng: random.Random, count: int) -> MadeLog:
    text = f"The user is called {{{{user}}}} and speaks {{{{value_1}}}}. {rules(rng)}"

    def values() -> dict[str, str]:
        return {"user": rng.choice(NAMES), "value_1": rng.choice(("German", "English", "Turkish"))}

    return slotted("names", rng, count, (text, "{{query}}"), values)


def dated_prefix(rng: random.Random, count: int) -> MadeLog:
    first, rest = rules(rng).split("\n", 1)
    text = f"{first} It is {{{{time}}}} for {{{{value_1}}}}.\n{rest}\n\n{{{{query}}}}"

    def values() -> dict[str, str]:
        time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        return {"time": time, "value_1": f"{rng.choice(NAMES)} {rng.choice(NAMES)}"}

    return slotted("dates in the user's turn", rng, count, ("", text), values)


def passages(rng: random.Random, count: int) -> MadeLog:
    text = f"{rules(rng)}\n\n{{{{value_1}}}}"
    return slotted("passages", rng, count, (text, "{{query}}"), lambda: {"value_1": texts(rng, 4)})


def retrieved(rng: random.Random, count: int) -> MadeLog:
    text = f"{rules(rng)}\nUse the context.\n\nContext:\n{{{{context}}}}\n\nQuestion: {{{{query}}}}"
    return slotted("passages in the user's turn", rng, count, ("", text), lambda: {"context": texts(rng, 4)})


def facts(rng: random.Random, count: int) -> MadeLog:
    first, rest = rules(rng).split("\n", 1)
    text = f"{first}\nDate: {{{{today}}}}\nUser: {{{{user}}}}\nLocale: {{{{locale}}}}\n{rest}\n# Notes\n{{{{notes}}}}\n"

    def values() -> dict[str, str]:
        names = {"user": f"{rng.choice(NAMES)} {rng.choice(NAMES)}", "locale": rng.choice(("de-DE", "en-GB", "fr-FR"))}
        return {"today": date(rng), **names, "notes": texts(rng, 2)}

    return slotted("facts", rng, count, (f"{text}- End with {sentence(rng, 3, 5)}.", "{{query}}"), values)


def house(count: int, *, entries: int = 48, notes: int = 6) -> tuple[str, list[list[Message]]]:
    """Return a template that the starter can learn, and a log of it in which three rows of ten have one of 3 variants.

    Codes for words, as in examples/smart-home, some 900 of the starter's tokens; the notes decide nothing.
    """
    rng = random.Random(5)
    task = invent(FIRST_TEST_SEED + 77, entries=entries, domain=DOMAINS[0])
    first, *rest = task.template.split("\n")
    known = [f"- Note {number}: {sentence(rng, 26, 34)}." for number in range(1, notes + 1)]
    text = "\n".join([first, "What is known of the house:", *known, *rest])
    lines = text.split("\n")
    fewer = "\n".join([*lines[:4], *lines[6:]])
    more = "\n".join([*lines[:9], "- Added: the owners sleep until nine.", *lines[9:]])
    forms = [text, fewer, text.replace("Do not explain it.", "Never explain it."), more]
    rows = []
    for number in range(count):
        asked, answer = task.ask(rng)
        chosen = number % 10 if number % 10 < len(forms) else 0
        system = {"role": "system", "content": forms[chosen]}
        rows.append([system, user(asked), {"role": "assistant", "content": answer}])
    return text, rows


def conversations(rng: random.Random, count: int) -> MadeLog:
    text = rules(rng)

    def one(asked: str) -> list[Message]:
        earlier = [turn for _ in range(rng.randint(0, 2)) for turn in (user(query(rng)), said(rng))]
        return [{"role": "system", "content": text}, *earlier, user(asked)]

    return log("conversations", rng, made(rng, count, one), text, warned=False)


KINDS = (
    system_prompt, prefix, suffix, both_sides, one_line, few_shot, drawn_shots, two_templates, variants, dated, named,
    dated_prefix, passages, conversations, retrieved, facts,
)  # fmt: skip


def made_logs(count: int) -> list[MadeLog]:
    """Return so many logs, of every kind in turn, each of another size."""
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        found.append(KINDS[seed % len(KINDS)](rng, rng.choice((30, 60, 120, 250))))
    return found
