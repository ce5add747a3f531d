"""Reasons (GenPI, NAACL 2025): what the base answers without the template, what with it, and why it has to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pilocal.flow.listeners import Listeners
from pilocal.flow.template_rows import REASON, WITH, WITHOUT
from pilocal.prompt.render import Message
from pilocal.prompt.sampling import Sampling
from pilocal.synth.queries import ORIGINS
from pilocal.synth.records import Records
from pilocal.synth.teacher import CHUNK, Teacher

SAME = "the answer does not change"
NO_REASON = "the reason is empty or too long, or asking for it leaves the context"
"""Why a record has no reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoned:
    """What was found out about a record."""

    without_prompt: str
    with_prompt: str
    reason: str | None = None
    missing: str | None = None
    """Why there is no reason; None where there is one."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Return its line."""
        return asdict(self)

    @property
    def fields(self) -> dict[str, str]:
        """What a record gets of it."""
        found = {WITHOUT: self.without_prompt, WITH: self.with_prompt}
        return found | ({REASON: self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoner:
    """Who answers and gives reasons: the base each time."""

    student: Teacher
    """Without the template."""
    teacher: Teacher
    """With it."""
    writer: Teacher
    """Writes reasons."""
    template: str
    temperature: float
    seed: int

    def find(
        self, records: Sequence[Mapping[str, Any]], kept: Records[Reasoned], listeners: Listeners
    ) -> list[Reasoned]:
        """Return what is found out about records; `kept` remembers it, CHUNK of them at a time.

        Raises ModelError for damaged weights, RunError if the disk is full.
        """
        for begin in kept.missing(len(records), CHUNK):
            kept.add(self._some(records[begin : begin + CHUNK], begin))
            listeners.progress("reasons", min(begin + CHUNK, len(records)), len(records))
        return list(kept.done)

    def _some(self, records: Sequence[Mapping[str, Any]], begin: int) -> list[Reasoned]:
        chats = [chat_of(record) for record in records]
        without, prompted = self.student.reply(chats), _prompted(self.teacher.reply, records, chats)
        pairs = list(zip(chats, without, prompted, strict=True))
        asked = [number for number, (_, one, other) in enumerate(pairs) if one.strip() != other.strip()]
        requests = [[Message(role="user", content=self.request(*pairs[number]))] for number in asked]
        how = Sampling(self.temperature, (self.seed, begin)) if self.temperature else None
        reasons = dict(zip(asked, self.writer.usable(requests, how) if requests else [], strict=True))
        return [
            Reasoned(without_prompt=one, with_prompt=other, **_reason(number in reasons, reasons.get(number)))
            for number, (_, one, other) in enumerate(pairs)
        ]

    def request(self, chat: Sequence[Message], without: str, prompted: str) -> str:
        """Return what the base is asked for a reason."""
        said = "\n".join(f"{message['role']}: {message['content']}" for message in chat)
        asked = chat[-1]["content"] if len(chat) == 1 else said
        return "\n\n".join(
            [
                f"An assistant works by these instructions:\n\n{self.template}",
                f"It was asked:\n\n{asked}",
                f"Without the instructions it answers:\n\n{without}",
                f"With the instructions it answers:\n\n{prompted}",
                "Why does the answer have to change? Give the reason in one or two sentences, by the instructions.",
            ]
        )


def _reason(asked: bool, text: str | None) -> dict[str, str]:
    if text is None:
        return {"missing": NO_REASON if asked else SAME}
    return {"reason": text.strip()}


def chat_of(record: Mapping[str, Any]) -> list[Message]:
    """Return the chat that a record's last answer answers."""
    if "messages" in record:
        return [Message(role=turn["role"], content=turn["content"]) for turn in record["messages"][:-1]]
    return [Message(role="user", content=record["query"])]


def _prompted(
    reply: Callable[[Sequence[Sequence[Message]]], list[str]],
    records: Sequence[Mapping[str, Any]],
    chats: Sequence[Sequence[Message]],
) -> list[str]:
    """Return what the teacher answers; where an answer is its own, that."""
    own = [number for number, record in enumerate(records) if record.get("origin") in ORIGINS]
    others = [number for number in range(len(records)) if number not in own]
    found = {number: _answer(records[number]) for number in own}
    found |= zip(others, reply([chats[number] for number in others]) if others else [], strict=True)
    return [found[number] for number in range(len(records))]


def _answer(record: Mapping[str, Any]) -> str:
    return str(record["messages"][-1]["content"] if "messages" in record else record["answer"])


def with_reasons(record: Mapping[str, Any], found: Reasoned) -> dict[str, Any]:
    """Return a record with what was found out; a field that it has already stays as it is.

    >>> with_reasons({"query": "a", "reason": "mine"}, Reasoned(without_prompt="b", with_prompt="c", reason="d"))
    {'query': 'a', 'reason': 'mine', 'without_prompt': 'b', 'with_prompt': 'c'}
    """
    return dict(record) | {name: text for name, text in found.fields.items() if name not in record}


def reasons_report(found: Sequence[Reasoned]) -> dict[str, int]:
    """Return how many records have a reason, and how many have none, by why."""
    counts = Counter(one.missing or "written" for one in found)
    return {"written": counts.pop("written", 0)} | dict(sorted(counts.items()))
