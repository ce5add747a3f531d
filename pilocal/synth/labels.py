"""Labels: an answer to each query by the prompted self, and why it is not learned from where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pilocal.compress.entries import alone
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.prompt.sampling import Sampling
from pilocal.synth.queries import Asked
from pilocal.synth.records import Labelled
from pilocal.synth.teacher import Teacher, asking
from pilocal.task.tables import Synth

DISAGREES = "the answer is another one where its entries stand alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeller:
    """Answers queries and looks at the answers."""

    teacher: Teacher
    metric: Metric
    """The task's, which may refuse an answer without knowing the right one."""
    template: str
    settings: Synth
    """The task's."""

    def label(self, asked: Sequence[Asked], number: int) -> list[Labelled]:
        """Return each query of a chunk with its answer; raises as `Teacher.reply` does.

        The seed and the `number` of the chunk's first query decide what is drawn.
        """
        queries, settings = [one.query for one in asked], self.settings
        if settings.temperature:
            sampling = Sampling(settings.temperature, (settings.seed, number))
            answers = self.teacher.reply(asking(queries), sampling)
        else:
            answers = self.teacher.answer(queries)
        dropped = [self.teacher.objection(answer) or self.metric.objection(answer) for answer in answers]
        if settings.agreement:
            self._compare(asked, answers, dropped)
        return [
            Labelled(query=one.query, answer=answer, dropped=why)
            for one, answer, why in zip(asked, answers, dropped, strict=True)
        ]

    def _compare(self, asked: Sequence[Asked], answers: Sequence[str], dropped: list[str | None]) -> None:
        """Drop the answers that change when what the query does not name is left out; without a name none can."""
        checked = [i for i, one in enumerate(asked) if dropped[i] is None and one.entries]
        queries = [asked[i].query for i in checked]
        others = self.teacher.answer_after([alone(self.template, asked[i].entries) for i in checked], queries)
        agree = self.metric.agree(others, [answers[i] for i in checked], queries)
        for i, same in zip(checked, agree, strict=True):
            dropped[i] = None if same else DISAGREES
