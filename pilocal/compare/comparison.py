"""Running a comparison: every arm is answered, timed and scored once, and what is known is never done again."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from pilocal.base.load import load_base
from pilocal.compare.arms import Arm
from pilocal.compare.results import Result, read_result, result_name
from pilocal.errors import InputError
from pilocal.flow.checks import checked_context
from pilocal.flow.context import Context
from pilocal.flow.listeners import Listeners
from pilocal.flow.runner import run_steps
from pilocal.flow.steps import STAGES, TRAIN
from pilocal.progress import Progress, silent
from pilocal.prompt.tokens import end_tokens
from pilocal.run.folder import RunDir
from pilocal.run.hashes import fingerprint
from pilocal.run.log import Log
from pilocal.task import AUTO, LOSSLESS, Example, Task, load_task
from pilocal.task.schedule import Law, Schedule, Stage

LINEAR = Law(decay="linear")

CURVE_ARMS = ("direct", "linear", "adaptive")
"""The arms of the learning curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What is compared."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    law: Law = LINEAR
    """Stages, shots and rates of every schedule; its decay counts for nothing."""
    curve: tuple[int, ...] = ()
    """Numbers of training examples of the learning curve."""

    def check(self, task: Task) -> None:
        """Raise InputError when there is no seed, or the curve asks for more than there is."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError("--seeds", "seeds are different whole numbers from 0", got=self.seeds, fix="write 0,1,2")
        for count in self.curve:
            if not self.law.shots < count <= len(task.train):
                least = self.law.shots + 1
                fix = f"write numbers between {least} and {len(task.train)}"
                raise InputError("--curve", "the training set does not have so many examples", got=count, fix=fix)


class Comparison:
    """A task, a design and a folder that holds every result; make it with `open_comparison`."""

    def __init__(
        self,
        task: Task,
        design: Design,
        run: RunDir,
        progress: Progress = silent,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Check the design, and that answers can be scored; raises InputError, ModelError or SandboxError."""
        from pilocal.evaluate.scoring.metrics import make_metric

        design.check(task)
        self.task = replace(task, training=replace(task.training, direct_drop=False))
        self.design = design
        self.run = run
        self.listeners = Listeners(progress=progress, warn=warn)
        self.progress = progress
        self.metric = make_metric(task.metric, task.scoring, task.folder)
        self.metric.check(task.test)

    def results(self, report: Callable[[Result], None]) -> list[Result]:
        """Return every result, one after the other; tell `report` of each that was not there yet.

        The arms of the first seed come first, then the other seeds, then the learning curve.
        """
        found = [self._asked(arm, report) for arm in self.design.arms if not arm.trained]
        trained = [arm for arm in self.design.arms if arm.trained]
        found += [self._trained(arm.name, seed, None, report) for seed in self.design.seeds for arm in trained]
        for seed in self.design.seeds:
            for count in self.design.curve:
                found += [self._trained(name, seed, count, report) for name in CURVE_ARMS]
        return found

    @property
    def _folder(self) -> Path:
        return self.run.path / "results"

    def _asked(self, arm: Arm, report: Callable[[Result], None]) -> Result:
        """Answer with the base and a prompt."""
        shots = self.design.law.shots
        kept = arm.tau if arm.tau is not None else 0.0 if arm.name == "query-only" else 1.0
        asked = Stage(tau=kept, shots=0 if arm.name == "query-only" else shots, share=0.0)
        compression = self.task.compression
        if arm.compressor:
            compression = replace(compression, method=arm.compressor)
        with self._opened(
            f"prompt-{kept:g}-{arm.compressor or 'whole'}",
            replace(self.task, compression=compression),
            Schedule((asked, Stage(tau=0.0, shots=0, share=1.0))),
        ) as context:
            key = self._key(STAGES.key(context), arm.name)
            if known := self._known(arm.name, None, None, key):
                return known
            run_steps(context, STAGES)
            prompts = context.test_prompts(0)
        if arm.name == "full-prompt-cached":
            answers, times = self._in_llama(self._base_gguf, prompts, arm.title, warm=True)
        else:
            answers = self._in_mlx(None, prompts, arm.title)
            _, times = self._in_llama(self._base_gguf, self._some(prompts), f"time: {arm.title}")
        return self._finish(
            Result(
                arm=arm.name,
                seed=None,
                key=key,
                answers=answers,
                prompt_tokens=mean(map(len, prompts)),
                times=times,
            ),
            report,
        )

    def _trained(self, name: str, seed: int, examples: int | None, report: Callable[[Result], None]) -> Result:
        """Train an adapter and answer with it and the bare query."""
        title = result_name(name, seed, examples)
        task = replace(self.task, training=replace(self.task.training, seed=seed))
        if examples is not None:
            task = replace(task, train=draw(task.train, examples, seed))
        schedule = replace(self.design.law, decay=name).schedule()
        timed = seed == self.design.seeds[0] and examples is None
        with self._opened(title, task, schedule) as context:
            key = self._key(TRAIN.key(context), name, seed, examples)
            if known := self._known(name, seed, examples, key):
                return known
            run_steps(context, TRAIN)
            prompts = context.test_prompts(context.last_stage)
            answers = self._in_mlx(context.run.adapter, prompts, title)
            times: dict[str, float] = {}
            if timed:
                with self._exported(context) as (gguf, lora):
                    _, times = self._in_llama(gguf, self._some(prompts), f"time: {title}", adapter=lora)
            logs = [Log(context.run.stage(number) / "metrics.jsonl").lines for number in schedule.trained]
        lines = [line for log in logs for line in log]
        training = {
            "tokens": sum(line["prompt_tokens"] + line["trained_tokens"] for line in lines),
            "computed_tokens": sum(line["computed_tokens"] for line in lines),
            "seconds": round(sum(line["seconds"] for line in lines), 2),
            "ends": [log[-1]["step"] for log in logs],
        }
        return self._finish(
            Result(
                arm=name,
                seed=seed,
                examples=examples,
                key=key,
                answers=answers,
                prompt_tokens=mean(map(len, prompts)),
                times=times,
                training=training,
            ),
            report,
        )

    def _known(self, arm: str, seed: int | None, examples: int | None, key: str) -> Result | None:
        """Return a result that is there already, scored."""
        known = read_result(self._folder, result_name(arm, seed, examples), key)
        return self._scored(known) if known else None

    def _finish(self, result: Result, report: Callable[[Result], None]) -> Result:
        """Keep the answers before they are scored, for a metric may fail."""
        result.save(self._folder)
        report(self._scored(result))
        return result

    def _scored(self, result: Result) -> Result:
        from pilocal.evaluate.scoring.metrics import metric_facts

        key = fingerprint(metric_facts(self.task))
        if result.marks_key != key:
            result.marks = self.metric.marks(result.answers, self.task.test, self.progress).tolist()
            result.marks_key = key
            result.save(self._folder)
        return result

    def _key(self, *parts: Any) -> str:
        examples = [(example.query, example.answer, dict(example.extra)) for example in self.task.test]
        task = self.task
        return fingerprint(version("pilocal"), parts, asdict(task.generation), self._quant, examples)

    @contextmanager
    def _opened(self, name: str, task: Task, schedule: Schedule) -> Iterator[Context]:
        """Open the run folder of an arm; what the first one found out about examples and template is copied."""
        folder = self.run.path / "runs" / name
        others = sorted(path for path in (self.run.path / "runs").glob("*") if path != folder)
        with RunDir.locked(folder, task=task.name, folder=task.folder) as run:
            for part in (run.templates, run.index):
                source = next((other / part.name for other in others if (other / part.name).is_dir()), None)
                if source and not part.exists():
                    shutil.copytree(source, part)
            yield checked_context(task, schedule, run, self.listeners)

    @cached_property
    def _first(self) -> Context:
        """A context that nothing is run in, for what belongs to the base."""
        return checked_context(self.task, self.design.law.schedule(), self.run, self.listeners)

    @property
    def _tokenizer(self) -> Any:
        return self._first.tokenizer

    @cached_property
    def _ends(self) -> frozenset[int]:
        return end_tokens(self._tokenizer)

    def _some(self, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        return prompts[: self.task.generation.timed_requests]

    def _in_mlx(self, adapter: Path | None, prompts: Sequence[Sequence[int]], title: str) -> list[str]:
        from pilocal.evaluate.generate import generate

        generation = self.task.generation
        completions = generate(
            load_base(self._first.base, adapter),
            prompts,
            ends=self._ends,
            max_tokens=generation.max_tokens,
            batch_size=generation.batch_size,
            progress=self.progress,
            name=title,
        )
        return [self._text(completion) for completion in completions]

    def _in_llama(
        self,
        gguf: Path,
        prompts: Sequence[Sequence[int]],
        title: str,
        *,
        adapter: Path | None = None,
        warm: bool = False,
    ) -> tuple[list[str], dict[str, float]]:
        from pilocal.llamacpp.engine import Engine

        most = self.task.generation.max_tokens
        with Engine(gguf, max(map(len, prompts)) + most + 1, adapter) as engine:
            timed = engine.answer(
                prompts, ends=self._ends, max_tokens=most, warm=warm, progress=self.progress, name=title
            )
        times = {"ttft_ms": timed.ttft_ms, "latency_ms": timed.latency_ms}
        return [self._text(completion) for completion in timed.answers], times

    def _text(self, completion: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(completion, skip_special_tokens=True)
        return text

    @property
    def _quant(self) -> str:
        """The form in which everything is timed."""
        return LOSSLESS if self.task.export.quant == AUTO else self.task.export.quant

    @cached_property
    def _base_gguf(self) -> Path:
        """The base as llama.cpp runs it; made once."""
        from pilocal.export.ship import ship_base

        folder = self.run.path / "base" / self._first.base_hash[:16]
        known = folder / f"base-{self._quant}.gguf"
        if self._quant != LOSSLESS and known.is_file():
            return known
        return ship_base(self._first.base, folder, self._quant, self._first.base_hash, self.progress)[0]

    @contextmanager
    def _exported(self, context: Context) -> Iterator[tuple[Path, Path | None]]:
        """Yield an arm's GGUF, or the base's and that of its adapter, while it is timed; the trained adapter stays."""
        from pilocal.export.ship import ship_adapter

        facts = {"name": self.task.name, "base_sha256": context.base_hash}
        adapter, fused = ship_adapter(context.base, context.run.adapter, context.run.export, self._quant, **facts)
        try:
            yield fused or self._base_gguf, adapter
        finally:
            for path in (adapter, fused):
                if path:
                    path.unlink()


def draw(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """Return some of the training examples, in their order; with one seed, fewer are a part of more.

    >>> pool = [Example(id=str(i), query=str(i), answer="") for i in range(9)]
    >>> fewer, more = ({example.id for example in draw(pool, count, 0)} for count in (3, 5))
    >>> len(fewer), fewer < more
    (3, True)
    """

    def place(example: Example) -> bytes:
        return hashlib.sha256(f"{seed} {example.id} {example.query}".encode()).digest()

    chosen = {example.id for example in sorted(examples, key=place)[:count]}
    return tuple(example for example in examples if example.id in chosen)


@contextmanager
def open_comparison(
    task_folder: Path,
    folder: Path,
    design: Design,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[Comparison]:
    """Read a task and open the comparison's folder for writing; a second process is refused."""
    task = load_task(task_folder)
    with RunDir.locked(folder, task=task.name, folder=task.folder) as run:
        run.describe(versions={name: version(name) for name in ("pilocal", "mlx", "mlx-lm", "llama-cpp-python")})
        yield Comparison(task, design, run, progress, warn)
