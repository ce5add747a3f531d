"""What the steps of a run work with: the task, the run folder, and what is computed once from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from pilocal.base.base import Base
from pilocal.base.hub import download
from pilocal.base.language_model import BaseModel
from pilocal.compress import TOLERANCE, CompressedTemplate, Tools, compress_template
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.progress import Progress
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.render import Record, render
from pilocal.prompt.tokens import prompt_tokens, token_counter
from pilocal.retrieve import ShotPicker
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.rows import read_records, read_rows, read_rows_of_each
from pilocal.task import Compression, Example, Task
from pilocal.task.schedule import Schedule
from pilocal.training.backend import Backend

if TYPE_CHECKING:
    from pilocal.evaluate.scoring.metrics import Metric
    from pilocal.flow.start import Start
    from pilocal.prompt.tokens import Row


@dataclass(kw_only=True)
class Context:
    """One task, one schedule, one run folder; make it with `opening.open_task` or `opening.open_run`."""

    task: Task
    schedule: Schedule
    run: RunDir
    base: Base
    metric: Metric
    backend: Backend
    """What trains."""
    listeners: Listeners = QUIET
    start: Start | None = None
    """The run whose adapter this one goes on from, after the template was edited."""
    warnings: Sequence[str] = ()
    """What the checks found odd about the task's files."""
    team: Any = None
    """The processes that train together, while `followers.leading` lasts."""
    whole: Task | None = None
    """The whole task, where `task` has a sample of its examples; see `sampling.sampled`."""
    shots: Path | None = None
    """Where the ranking of shots is kept; by default in the run folder."""
    keys: dict[str, str] = field(default_factory=dict, init=False)
    """The keys of steps that do not change any more, once they are known."""

    @property
    def progress(self) -> Progress:
        """Called by long work with its progress."""
        return self.listeners.progress

    @property
    def warn(self) -> Callable[[str], None]:
        """Called with warnings."""
        return self.listeners.warn

    @property
    def taus(self) -> list[float]:
        """Every stage's tau."""
        return [stage.tau for stage in self.schedule.stages]

    @property
    def max_shots(self) -> int:
        """The shots of the stage that has the most."""
        return max(stage.shots for stage in self.schedule.stages)

    @property
    def last_stage(self) -> int:
        """The number of the last stage."""
        return len(self.schedule.stages) - 1

    @property
    def trained(self) -> tuple[int, ...]:
        """The numbers of the stages that are trained, in their order; after an edit only the last is."""
        return (self.last_stage,) if self.start else self.schedule.trained

    @cached_property
    def templates(self) -> tuple[CompressedTemplate, ...]:
        """The template at every stage's tau; warns of the stages whose tau was not met."""
        templates = self.compress(self.taus, self.task.compression)
        self._warn_of_other_ratios(templates)
        return templates

    @cached_property
    def residue(self) -> Preamble:
        """What stands before a query once the run is over; false where that is nothing, and requests are bare."""
        text = self.compress(self.taus, self.task.compression)[-1].text if self._template_stays else ""
        return Preamble(text, self.schedule.stages[-1].shots, self.task.slots)

    @property
    def may_stay(self) -> bool:
        """Whether the settings leave anything before a query; true even where the texts then turn out to be empty."""
        return self._template_stays or self.schedule.stages[-1].shots > 0

    @property
    def _template_stays(self) -> bool:
        return bool(self.taus[-1] or self.task.compression.stay)

    def _warn_of_other_ratios(self, templates: Sequence[CompressedTemplate]) -> None:
        off = [(number, template) for number, template in enumerate(templates) if template.is_off]
        if off:
            said = [f"stage {number} has {found.ratio:.3f} for tau {found.tau:.4g}" for number, found in off]
            what = f"{self.task.compression.method} misses tau by more than {TOLERANCE:g} of the template's tokens"
            fix = 'take other taus, or write the texts yourself: [compression] method = "ladder"'
            self.warn(f"{self.task.files['template']}: {what}: {', '.join(said)}; {fix}")
        if templates[-1].tau and not templates[-1].tokens:
            what = f"{self.task.compression.method} leaves nothing of the template at tau {templates[-1].tau:.4g}"
            fix = "raise until_tau, or name what is to stay in [compression] stay"
            self.warn(f"{self.task.files['template']}: {what}, where the schedule ends; {fix}")

    def compress(self, taus: Sequence[float], compression: Compression) -> tuple[CompressedTemplate, ...]:
        """Return the template at some taus, in their order, and keep it in the run folder."""
        return compress_template(self.task.template, taus, compression, self.compression_tools, self.run.templates)

    @cached_property
    def compression_tools(self) -> Tools:
        """What compressors need of the base."""
        return Tools(
            count_tokens=self._count_tokens,
            base_id=self.base.sha256,
            folder=self.task.folder,
            load_model=lambda: BaseModel(self.base),
            download=download,
        )

    def _count_tokens(self, text: str) -> int:
        return self._counter(text)

    @cached_property
    def _counter(self) -> Callable[[str], int]:
        return token_counter(self.base.tokenizer)

    @cached_property
    def picker(self) -> ShotPicker:
        """Chooses the shots."""
        return self._picker(self.shots or self.run.index, self.max_shots)

    def _picker(self, folder: Path | None, most: int) -> ShotPicker:
        return ShotPicker(
            self.task.train,
            self.task.retrieval,
            folder,
            k=most,
            seed=self.task.training.seed,
            where=self.task.files["train"],
            models=self.task.folder,
            progress=self.progress,
        )

    def nearest_answers(self) -> list[str]:
        """Return for each test query the answer of the training example whose question is most like it."""
        asked = [(example.query, example.history) for example in self.task.test]
        return [self.task.train[number].answer for (number,) in self._picker(None, 1).for_queries(asked, 1)]

    def records(self, stage: int, split: str) -> list[Record]:
        """Return the rendered records of a stage; raises RunError for a damaged file."""
        return read_records(self.run.stage(stage), split)

    def rows(self, stage: int, split: str) -> list[Row]:
        """Return the records of a stage as token rows; raises RunError for a damaged file."""
        return read_rows(self.run.stage(stage), split, self.base.tokenizer)

    def rows_of_each(self, stage: int, split: str) -> list[list[Row]]:
        """Return the token rows of each record of a stage; raises RunError for a damaged file."""
        return read_rows_of_each(self.run.stage(stage), split, self.base.tokenizer)

    def train_rows(self, stage: int) -> list[Row]:
        """Return what a stage trains on: its examples and, if there are any, the rows that restate the template."""
        splits = ("train", "restated") if self.task.training.restate else ("train",)
        return [row for split in splits for row in self.rows(stage, split)]

    def request(self, example: Example) -> Record:
        """Return a record that asks a query as every request does, after what stays of the prompt, with its answer.

        Where the template has slots and the query brings no values, it gets those of some training example.
        """
        residue, example = self.residue, self._with_slots(example)
        shots = self.picker.for_query(example.query, residue.shots, example.history) if residue.shots else ()
        return render(residue.template, [self.task.train[i] for i in shots], example)

    def _with_slots(self, example: Example) -> Example:
        train = self.task.train
        if example.slots or not self.task.slots:
            return example
        return replace(example, slots=train[crc32(example.query.encode()) % len(train)].slots)

    def prompts_after(self, preamble: Preamble) -> list[list[int]]:
        """Return the tokens of the test set's queries after a template and shots; at most `max_shots` of these."""
        train, asked = self.task.train, [(example.query, example.history) for example in self.task.test]
        chosen = self.picker.for_queries(asked, preamble.shots)
        records = [
            render(preamble.template, [train[i] for i in shots], example)
            for example, shots in zip(self.task.test, chosen, strict=True)
        ]
        return [prompt_tokens(record["messages"][:-1], self.base.tokenizer) for record in records]

    def test_prompts(self, stage: int) -> list[list[int]]:
        """Return the tokens of the test set's prompts as a stage has them."""
        return [prompt_tokens(record["messages"][:-1], self.base.tokenizer) for record in self.records(stage, "test")]
