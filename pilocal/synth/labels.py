"""Labels: an answer to each query by the prompted self, and why it is not learned from where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pilocal.compress.entries import alone
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.prompt.render import Message
from pilocal.prompt.sampling import Sampling
from pilocal.synth.conversation import END, Reply, converse
from pilocal.synth.queries import Asked
from pilocal.synth.records import Labelled
from pilocal.synth.teacher import Teacher, asking
from pilocal.task import Example
from pilocal.task.synth_table import WHOLE, Synth

DISAGREES = "the answer is another one where its entries stand alone, or do not"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeller:
    """Answers queries and looks at the answers."""

    teacher: Teacher
    metric: Metric
    """The task's, which may refuse an answer without knowing the right one."""
    template: str
    settings: Synth
    """The task's."""
    environment: Teacher | None = None
    """Whoever speaks to the base in conversations, where there are to be some."""
    example: Example | None = None
    """Shows that side what a conversation is like."""

    def label(self, asked: Sequence[Asked], number: int) -> list[Labelled]:
        """Return each query of a chunk with its answer, and the conversation that goes on from there if there are such.

        The seed and the `number` of the chunk's first query decide what is drawn. Raises as `Teacher.reply` does.
        """
        settings = self.settings
        answers = self._answers(asked, self._sampling(number))
        dropped = [self._objection(answer) for answer in answers]
        if settings.agreement:
            self._compare(asked, answers, dropped)
        found = [
            Labelled(query=one.query, answer=answer, dropped=why)
            for one, answer, why in zip(asked, answers, dropped, strict=True)
        ]
        return self._talk(found, number, self.environment.usable) if self.environment else found

    def _answers(self, asked: Sequence[Asked], sampling: Sampling | None) -> list[str]:
        queries = [one.query for one in asked]
        if self.settings.prompt == WHOLE:
            return self.teacher.reply(asking(queries), sampling)
        return self.teacher.answer_after(self._templates(asked), queries, sampling)

    def _templates(self, asked: Sequence[Asked], *, other: bool = False) -> list[str]:
        """Return what each query is answered after, or the `other` of both; without a name that is the whole."""
        whole = (self.settings.prompt == WHOLE) != other
        return [self.template if whole or not one.entries else alone(self.template, one.entries) for one in asked]

    def _sampling(self, *place: int) -> Sampling | None:
        """Return how the answers at a place are drawn; None where they are not."""
        settings = self.settings
        return Sampling(settings.temperature, (settings.seed, *place)) if settings.temperature else None

    def _objection(self, answer: str) -> str | None:
        return self.teacher.objection(answer) or self.metric.objection(answer)

    def _compare(self, asked: Sequence[Asked], answers: Sequence[str], dropped: list[str | None]) -> None:
        """Drop the answers that are others with, or without, what the query does not name; without a name none can."""
        checked = [i for i, one in enumerate(asked) if dropped[i] is None and one.entries]
        queries = [asked[i].query for i in checked]
        others = self.teacher.answer_after(self._templates([asked[i] for i in checked], other=True), queries)
        agree = self.metric.agree(others, [answers[i] for i in checked], queries)
        for i, same in zip(checked, agree, strict=True):
            dropped[i] = None if same else DISAGREES

    def _talk(self, found: Sequence[Labelled], number: int, environment: Reply) -> list[Labelled]:
        """Go on with the conversations that some queries and their answers have begun."""
        kept = [one for one in found if one.dropped is None]
        begun = [[("user", one.query), ("assistant", one.answer)] for one in kept]
        talks = converse(begun, self.settings.turns, self._agent(number), environment, self.example)
        later = {id(one): talk[2:] for one, talk in zip(kept, talks, strict=True)}
        return [replace(one, turns=later.get(id(one), ())) for one in found]

    def _agent(self, number: int) -> Reply:
        """Return what answers in conversations: as the first answers are drawn, and looked at in the same way."""
        time = 0

        def reply(chats: Sequence[Sequence[Message]]) -> list[str | None]:
            nonlocal time
            time += 1
            said = self.teacher.usable(chats, self._sampling(number, time))
            return [text if text and not self.metric.objection(text.partition(END)[0]) else None for text in said]

        return reply
