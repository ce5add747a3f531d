"""Running a comparison: every arm is answered, timed and scored once, and a known result is never made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import pilocal
from pilocal.comparison.arms import NEAREST, ComparedArm, parse_arm
from pilocal.comparison.changed import changed
from pilocal.comparison.design import CURVE_ARMS, Design, subset
from pilocal.comparison.gguf import GgufFiles
from pilocal.comparison.results import Result, read_result, result_name
from pilocal.evaluate.arms import BASE_FULL_PROMPT, Program, Prompt
from pilocal.evaluate.asking import Asker, Same
from pilocal.evaluate.scoring.metrics import Metric, make_metric, metric_facts
from pilocal.flow.checks import checked_context
from pilocal.flow.context import Context
from pilocal.flow.listeners import QUIET, Listeners, unheard
from pilocal.flow.references import has_accelerator, reference_loader
from pilocal.flow.residues import Template, templates_at
from pilocal.flow.runner import run_steps
from pilocal.flow.steps import STAGES, adapter_step, stage_folders
from pilocal.packages import versions
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.files import copy_folder
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.hashes import fingerprint
from pilocal.run_folder.log import FILE, StepLine, read_log
from pilocal.task import AUTO, LOSSLESS, Task, load_task
from pilocal.task.schedule import Schedule, Stage
from pilocal.training.backend import Backend, backend_of


class Comparison:
    """A task, a design and a folder that holds every result; make it with `open_comparison`."""

    def __init__(
        self,
        task: Task,
        design: Design,
        metric: Metric,
        run: RunDir,
        backend: Backend,
        listeners: Listeners = QUIET,
    ) -> None:
        """Take what was checked; whether there is such a `backend` is seen when it is first needed."""
        self.task = replace(task, training=replace(task.training, direct_drop=False, direct_drop_steps=None))
        self.design = design
        self.run = run
        self.listeners = replace(listeners, step=unheard)  # an arm's own steps interest nobody
        self.metric = metric
        self._chosen = backend

    @property
    def backend(self) -> Backend:
        """What trains the schedules; raises InputError, or Faults, where it cannot."""
        return self._first.backend

    def results(self, report: Callable[[Result], None]) -> list[Result]:
        """Return every result, one after the other; tell `report` about each new one.

        The base's arms come first, then each seed's schedules, then the learning curve and the rates of the residue.
        Raises what the steps of a run and the metric raise; finished results stay.
        """
        self.run.describe(backend=self.backend.as_json())
        _ = self.residues  # made, or refused, before hours are spent
        found = [self._asked(arm, report) for arm in self.design.arms if not arm.trained]
        trained = [arm for arm in self.design.arms if arm.trained]
        found += [self._trained(arm, seed, None, report) for seed in self.design.seeds for arm in trained]
        for seed in self.design.seeds:
            for count in self.design.curve:
                found += [self._trained(parse_arm(name), seed, count, report) for name in CURVE_ARMS]
        if self.design.residue:
            for seed in self.design.seeds:
                found += self._asked_after_training(seed, report)
        return found

    @cached_property
    def residues(self) -> tuple[Template, ...]:
        """The template at each rate of the design; raises InputError, or Faults, for those that cannot be made."""
        return templates_at(self._first, self.design.residue, self.run.path / "residue")

    @property
    def _folder(self) -> Path:
        return self.run.path / "results"

    def _asked(self, arm: ComparedArm, report: Callable[[Result], None]) -> Result:
        """Return the result of the base with a prompt."""
        if arm.name == NEAREST:
            return self._looked_up(arm, report)
        with self._prompted(arm) as context:
            key = self._key(STAGES.key(context), arm.name)
            if known := self._known(arm.name, None, None, key):
                return known
            run_steps(context, STAGES)
            prompts = context.test_prompts(0)
        answers, times = self._ask_base(arm, prompts)
        tokens = mean(map(len, prompts))
        result = Result(arm=arm.name, seed=None, key=key, answers=answers, prompt_tokens=tokens, times=times)
        return self._finish(result, report)

    @contextmanager
    def _prompted(self, arm: ComparedArm) -> Iterator[Context]:
        """Open the run folder whose first stage has the prompts of an arm of the base."""
        full = arm.prompt is Prompt.FULL
        law = self.design.decay_schedule
        shots = law.shots if arm.shots is None else arm.shots
        # What every request has is the same for the base and for what is trained.
        asked = Stage(tau=arm.tau if full else law.until_tau, shots=shots if full else law.until_shots, share=0.0)
        compression = self.task.compression
        if arm.compressor:
            compression = replace(compression, method=arm.compressor)
        with self._opened(
            f"prompt-{asked.tau:g}-{arm.compressor or 'whole'}" + ("" if arm.shots is None else f"-{arm.shots}"),
            replace(self.task, compression=compression),
            Schedule((asked, Stage(tau=0.0, shots=0, share=1.0))),
        ) as context:
            yield context

    @cached_property
    def _whole_prompts(self) -> tuple[str, list[list[int]]]:
        """The prompts of the base's full prompt, and the key of the step that wrote them."""
        with self._prompted(parse_arm(BASE_FULL_PROMPT.compare)) as context:
            run_steps(context, STAGES)
            return STAGES.key(context), context.test_prompts(0)

    def _looked_up(self, arm: ComparedArm, report: Callable[[Result], None]) -> Result:
        """Return the result of the training answers whose questions are most like the queries."""
        task, seed = self.task, self.task.training.seed
        key = self._key(asdict(task.retrieval), seed, [example.facts for example in task.train], arm.name)
        if known := self._known(arm.name, None, None, key):
            return known
        answers = self._first.nearest_answers()
        return self._finish(Result(arm=arm.name, seed=None, key=key, answers=answers, prompt_tokens=0.0), report)

    def _ask_base(self, arm: ComparedArm, prompts: list[list[int]]) -> tuple[list[str], dict[str, float]]:
        """Return the base's answers and times, in the arm's program."""
        asker, same = self._asker, Same(self._gguf.base) if self._quant == LOSSLESS else None
        said = None if arm.program is Program.LLAMA_CPP else asker.in_backend(None, prompts, arm.title, same)
        with asker.engine(self._gguf.base, prompts) as engine:
            if said is None:
                return asker.in_llama(engine, prompts, arm.title, warm=arm.warm)
            return said.answers, asker.times(engine, prompts, arm.title) | said.facts

    def _asked_after_training(self, seed: int, report: Callable[[Result], None]) -> list[Result]:
        """Return the results of one adapter, asked with each part of the template."""
        found, name, shots = list[Result](), self.design.residue_arm, self.design.decay_schedule.until_shots
        with self._opened(result_name(name, seed, None), *self._training_of(name, seed)) as context:
            last = adapter_step(context)
            for template in self.residues:
                rate = template.tau
                key = self._key(last.key(context), name, seed, template.text, shots)
                if known := self._known(name, seed, None, key, rate):
                    found.append(known)
                    continue
                run_steps(context, last)
                prompts = context.prompts_after(Preamble(template.text, shots))
                said = self._asker.in_backend(context.run.adapter, prompts, result_name(name, seed, None, rate))
                tokens = mean(map(len, prompts))
                result = Result(arm=name, seed=seed, rate=rate, key=key, answers=said.answers, prompt_tokens=tokens)
                found.append(self._finish(result, report))
        return found

    def _training_of(self, schedule: str, seed: int, examples: int | None = None) -> tuple[Task, Schedule]:
        """Return what an adapter is trained with: the task with its seed and examples, and the schedule of a name."""
        task = replace(self.task, training=replace(self.task.training, seed=seed))
        if examples is not None:
            task = replace(task, train=subset(task.train, examples, seed))
        return task, replace(self.design.decay_schedule, decay=schedule).schedule()

    def _trained(self, arm: ComparedArm, seed: int, examples: int | None, report: Callable[[Result], None]) -> Result:
        """Return the result of an adapter, trained by a schedule, as the arm asks it."""
        title, training = result_name(arm.name, seed, examples), self._training_of(arm.schedule, seed, examples)
        whole = self._whole_prompts if arm.prompt is Prompt.FULL else None
        with self._opened(result_name(arm.schedule, seed, examples), *training) as context:
            last = adapter_step(context)
            key = self._key(last.key(context), arm.name, seed, examples, *([whole[0]] if whole else []))
            if known := self._known(arm.name, seed, examples, key):
                return known
            run_steps(context, last)
            prompts = whole[1] if whole else context.test_prompts(context.last_stage)
            with changed(context.run.adapter, arm, seed) as adapter:
                result = Result(
                    arm=arm.name,
                    seed=seed,
                    examples=examples,
                    key=key,
                    answers=self._asker.in_backend(adapter, prompts, title).answers,
                    prompt_tokens=mean(map(len, prompts)),
                )
                if arm.is_plain:
                    result.training = _training([read_log(folder / FILE) for folder in stage_folders(context)])
                if seed == self.design.seeds[0] and examples is None:
                    with (
                        self._gguf.of_adapter(adapter, context.run.export) as (gguf, lora),
                        self._asker.engine(gguf, prompts, lora) as engine,
                    ):
                        result.times = self._asker.times(engine, prompts, title)
        return self._finish(result, report)

    def _known(
        self, arm: str, seed: int | None, examples: int | None, key: str, rate: float | None = None
    ) -> Result | None:
        """Return an earlier result, scored, or None."""
        known = read_result(self._folder, result_name(arm, seed, examples, rate), key)
        return self._scored(known) if known else None

    def _finish(self, result: Result, report: Callable[[Result], None]) -> Result:
        """Keep the answers before they are scored, since a metric may fail."""
        result.save(self._folder)
        report(self._scored(result))
        return result

    def _scored(self, result: Result) -> Result:
        key = fingerprint(metric_facts(self.task, self.metric))
        if result.marks_key != key:
            result.marks = self.metric.marks(result.answers, self.task.test, self.listeners.progress).tolist()
            result.marks_key = key
            result.save(self._folder)
        return result

    def _key(self, *parts: Any) -> str:
        examples = [(example.asked, example.answer, dict(example.extra)) for example in self.task.test]
        return fingerprint(pilocal.__version__, parts, asdict(self.task.generation), self._quant, examples)

    @contextmanager
    def _opened(self, name: str, task: Task, schedule: Schedule) -> Iterator[Context]:
        """Open the run folder of an arm, with the templates and the index of an earlier arm if there are any."""
        folder = self.run.path / "runs" / name
        others = sorted(path for path in (self.run.path / "runs").glob("*") if path != folder)
        with RunDir.locked(folder, task=task.name, files=task.files) as run:
            for part in (run.templates, run.index):
                source = next((other / part.name for other in others if (other / part.name).is_dir()), None)
                if source and not part.exists():
                    copy_folder(source, part)
            yield checked_context(task, schedule, run, self.listeners, self.backend)

    @property
    def _quant(self) -> str:
        """The type of GGUF file that everything is timed in."""
        return LOSSLESS if self.task.export.quant == AUTO else self.task.export.quant

    @cached_property
    def _first(self) -> Context:
        """A context in which no step runs, for what belongs to the base."""
        schedule = self.design.decay_schedule.schedule()
        return checked_context(self.task, schedule, self.run, self.listeners, self._chosen)

    @cached_property
    def _asker(self) -> Asker:
        base = self._first.base
        return Asker(
            base=base,
            ends=end_tokens(base.tokenizer),
            generation=self.task.generation,
            progress=self.listeners.progress,
            load=reference_loader(self._first),
            accelerated=has_accelerator(self._first),
        )

    @cached_property
    def _gguf(self) -> GgufFiles:
        return GgufFiles(
            made_from=self._first.base,
            quant=self._quant,
            folder=self.run.path / "base",
            task=self.task.name,
            progress=self.listeners.progress,
        )


def _training(logs: list[list[StepLine]]) -> dict[str, Any]:
    """Return what a training took, from the lines of each stage's metrics.jsonl."""
    lines = [line for log in logs for line in log]
    return {
        "tokens": sum(line.tokens for line in lines),
        "computed_tokens": sum(line.computed_tokens for line in lines),
        "seconds": round(sum(line.seconds for line in lines), 2),
        "ends": [log[-1].step for log in logs],
    }


@contextmanager
def open_comparison(
    task_folder: Path,
    folder: Path,
    design: Design,
    listeners: Listeners = QUIET,
    backend: Backend | None = None,
) -> Iterator[Comparison]:
    """Read a task, check the design and that answers can be scored, and open the comparison's folder for writing.

    Without a `backend` it is the one that the comparison was trained with so far, or MLX. Raises what `load_task`
    raises, InputError or SandboxError before there is a folder, and RunError if another process has it.
    """
    task = load_task(task_folder)
    design.check(task)
    metric = make_metric(task.metric, task.scoring, task.folder)
    metric.check(task.test)
    with RunDir.locked(folder, task=task.name, files=task.files) as run:
        run.describe(versions=versions("mlx", "mlx-lm", "llama-cpp-python"))
        yield Comparison(task, design, metric, run, backend or backend_of(run.state, run.file), listeners)
