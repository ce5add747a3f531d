"""Clients that ask a server for long, hang up amid answers, and know what each answer has to be."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from tests.bench.http_load import Clients, Connection, Reply, replies
from tests.bench.serving import resident
from tests.soak.questions import Question, is_tie

HANGS_UP = 0.2
"""Share of the requests whose client does not wait for the end."""

LONGEST = 4096
"""Bytes of an answer after which a client that hangs up amid it does so at the latest."""

NEAR = 0.05
"""Nats between two tokens that are as likely: sums in another order differ by less."""

WARM_UP = 0.1
"""Share of the time after which memory is measured for the first time."""

GROWTH = 1.05
"""Times of the memory after the warm-up that the memory at the end may be, with so many MiB beside it:"""
SLACK = 4.0

SAMPLES = 2000
"""How often memory is measured."""


@dataclass
class Result:
    """What came of a soak."""

    answered: Counter[str] = field(default_factory=Counter)
    """Answers that came whole, by kind of question."""
    left: Counter[str] = field(default_factory=Counter)
    """Requests whose client hung up, by kind."""
    ties: int = 0
    """Answers that differ from those alone where two tokens were as likely."""
    wrong: list[str] = field(default_factory=list)
    """What must not be."""
    memory: list[float] = field(default_factory=list)
    """MiB that are resident, over the time."""

    @property
    def grown(self) -> tuple[float, float]:
        """MiB after the warm-up and at the end: what is held between batches, as nine of ten samples have more.

        While llama.cpp computes a batch, pages of its buffers come on top, some 20 MiB, and are given back after it.
        """
        tenth = max(1, round(len(self.memory) * WARM_UP))
        return lowest(self.memory[tenth : 2 * tenth] or self.memory), lowest(self.memory[-tenth:])

    @property
    def is_flat(self) -> bool:
        """Whether the memory has not grown by more than it may."""
        first, last = self.grown
        return last <= GROWTH * first + SLACK


def answers_alone(port: int, questions: Sequence[Question]) -> list[Question]:
    """Return the questions with their answers, of a server that has nothing else to do.

    Left out are those whose answer another client's question has, too.
    """
    known = []
    for question in questions:
        answer = question.answer
        if answer is None:
            (reply,) = replies(port, [question.forms[0][0]], 1, status=question.status)
            answer = read_of(question, reply)
        known.append(replace(question, answer=answer))
    owners: dict[str | None, set[int]] = {}
    for question in known:
        owners.setdefault(question.answer, set()).add(question.owner)
    return [question for question in known if not question.is_owned or len(owners[question.answer]) == 1]


def read_of(question: Question, reply: Reply) -> str:
    """Return the answer in a reply to a question's form of the same number."""
    return question.forms[reply.number][1](reply.body)


def is_as_likely(port: int, question: Question, said: str) -> bool:
    """Tell whether an answer parts from the server's only where two tokens are as likely."""
    if question.likely is None:
        return False
    request, read = question.likely
    (reply,) = replies(port, [request], 1)
    return is_tie(said, read(reply.body), NEAR)


@dataclass
class Client:
    """What one client has asked."""

    questions: Sequence[Question]
    asked: Question
    hangs_up: Callable[[Connection], bool] | None = None
    """Tells when it does, if it does."""


@dataclass
class Soak:
    """So many clients of one server; `run` lets them ask."""

    port: int
    pid: int
    questions: Sequence[Question]
    rng: Random
    tell: Callable[[Result, float], None] = lambda result, seconds: None
    """Called now and then with what there is, and the seconds so far."""
    result: Result = field(default_factory=Result)
    _odd: Counter[tuple[Question, str]] = field(default_factory=Counter)
    _usual: float = 0.1
    """Seconds that an answer took lately."""

    def run(self, seconds: float, least: int = 0) -> Result:
        """Ask for some seconds, and at least so many questions; return what came of it."""
        owners = sorted({question.owner for question in self.questions})
        own = [[question for question in self.questions if question.owner == owner] for owner in owners]
        began, step = time.monotonic(), seconds / SAMPLES
        with Clients(self.port, len(own)) as clients:
            asking = dict(zip(clients.connections, [Client(each, each[0]) for each in own], strict=True))
            for connection, client in asking.items():
                self._ask(connection, client)
            while (now := time.monotonic() - began) < seconds or self.result.answered.total() < least:
                self._turn(clients, asking)
                if now >= step * len(self.result.memory):
                    self.result.memory.append(resident(self.pid))
                    self.tell(self.result, now)
        self._judge()
        return self.result

    def _turn(self, clients: Clients, asking: dict[Connection, Client]) -> None:
        """Read what has come, and let those go on that are ready to."""
        for connection, whole in clients.wait():
            if whole:
                self._read(asking[connection].asked, connection.reply)
                self._ask(connection, asking[connection])
        for connection, client in asking.items():
            if client.hangs_up is not None and client.hangs_up(connection):
                connection.hang_up()
                self.result.left[client.asked.kind] += 1
                self._ask(connection, client)

    def _ask(self, connection: Connection, client: Client) -> None:
        """Ask a client's next question, in one of its forms."""
        client.asked = self.rng.choice(client.questions)
        number = self.rng.randrange(len(client.asked.forms))
        client.hangs_up = self._moment() if self.rng.random() < HANGS_UP else None
        connection.send(number, client.asked.forms[number][0])

    def _moment(self) -> Callable[[Connection], bool]:
        """Return when a client hangs up: after some bytes of the answer, or after some time, answer or not."""
        if self.rng.random() < 0.5:
            size = self.rng.randrange(1, LONGEST)
            return lambda connection: connection.received >= size
        until = time.perf_counter() + self.rng.random() * 1.5 * self._usual
        return lambda connection: time.perf_counter() >= until

    def _read(self, question: Question, reply: Reply) -> None:
        self.result.answered[question.kind] += 1
        self._usual += 0.05 * (reply.ended - reply.began - self._usual)
        try:
            said = read_of(question, reply) if reply.status == question.status else f"status {reply.status}"
        except (ValueError, LookupError, TypeError) as error:
            said = f"{error} in {reply.body[:200]!r}"
        if said != question.answer:
            self._odd[question, said] += 1

    def _judge(self) -> None:
        """Sort what was not said alone: ties of two tokens, and what is wrong."""
        for (question, said), times in self._odd.items():
            if is_as_likely(self.port, question, said):
                self.result.ties += times
                continue
            what = f"{times} times {said!r} for {question.answer!r}"
            self.result.wrong.append(f"client {question.owner}, {question.kind}: {what}")


def lowest(samples: Sequence[float]) -> float:
    """Return what nine of ten samples are above.

    >>> lowest([20.0, 3.0] * 9 + [1.0])
    3.0
    """
    return sorted(samples)[len(samples) // 10]


def handles(pid: int) -> int | None:
    """Return how many files a process has open, where the system tells."""
    folder = Path(f"/proc/{pid}/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else None


def table(result: Result) -> Iterator[str]:
    """Yield lines that tell of a soak by kind of question."""
    yield f"{'kind':<14}{'answered':>10}{'hung up':>10}"
    for kind, count in result.answered.most_common():
        yield f"{kind:<14}{count:>10}{result.left[kind]:>10}"
