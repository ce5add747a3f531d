"""What a run will cost, before it begins: tokens, memory and time of every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from pilocal.base.blas import processor_flags
from pilocal.base.recipe import recipe_for, size_of
from pilocal.errors import InputError
from pilocal.flow.context import Context
from pilocal.flow.gap import SECONDS, SYNTH, Gap, draw_census, longest_prompt, measure_gap, seconds_on_cpu, takes_long
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.mixing import check_requests, unanswered
from pilocal.flow.opening import open_task
from pilocal.flow.references import has_accelerator
from pilocal.flow.rendering import SPLITS, RenderedStage, StageBudget, render_stages
from pilocal.flow.runner import describe
from pilocal.flow.sampling import parts, sampled
from pilocal.flow.saving import TIMED, Prices, Saving, saving
from pilocal.flow.setups import training_setup
from pilocal.flow.stage_prompts import StagePrompt, one_prompt
from pilocal.flow.start import WRITE_SLOTTED
from pilocal.flow.steps.teacher import check_teacher
from pilocal.packages import is_installed, not_installed
from pilocal.run_folder.files import write_json
from pilocal.task.slots import stated
from pilocal.task.text import path_of
from pilocal.training.backend import MLX, Backend
from pilocal.training.memory import Need
from pilocal.training.row_order import StagePlan

MODELLESS = ("rules", "ladder")
"""The compressors that load no model."""

UNSEEN = "of the base only sizes and tokenizer were looked at; where it is to be trained, `pilocal check` reads it all"
"""What a check for another machine leaves out."""

AMX = "amx_bf16"
"""Linux's word for a processor with products of bfloat16 matrices: Intel's, from Sapphire Rapids on."""

WIDE = 512
"""From this hidden size on PyTorch trains a base faster on a CPU than MLX does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What a check was about."""

    name: str
    model: str
    """The base, as task.toml names it."""
    task: Path
    """Its folder or file, as it was given; so is the schedule."""
    schedule: Path | None
    backend: str
    rows: Mapping[str, int]
    """How many examples each split has."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will cost."""

    context: int
    """The longest sequence that the base takes, in tokens."""
    stages: list[StageBudget]
    needs: list[Need | None]
    """For each stage; None where nothing is trained."""
    memory: int
    """Bytes that the training may use."""
    advice: str | None
    """What to change when it does not fit; None when it does."""
    saving: Saving
    """What every request will save."""
    hints: tuple[str, ...] = ()
    """What could be had for less, one line each."""
    weights: str | None = None
    """How the numbers of a base in GGUF are held in memory, in a sentence; None for any other base."""
    gap: Gap | None = None
    """What the prompt is worth to the base; None where that was not measured."""
    picture: Path | None = None
    """The census as a picture; None where it was not kept."""
    about: TaskFacts | None = None
    """What the check was about; `pilocal.check` always says it."""
    warnings: tuple[str, ...] = ()
    """What is odd about the task's files, one line each, with its file and mostly its line."""
    prompts: tuple[StagePrompt, ...] = ()
    """What one training example is asked in every stage."""
    machine: int | None = None
    """Bytes of unified memory of the Mac that was planned for; None for this machine."""
    sample: Mapping[str, int] = field(default_factory=dict)
    """How many examples of a split were looked at, where that was a sample; its whole size is in `about`."""

    @property
    def peak(self) -> int:
        """Bytes at the peak of the stage that needs the most."""
        return max(need.peak for need in self.needs if need)

    def write_page(self, path: str | Path, prices: Prices | None = None) -> Path:
        """Write all of it as one page that needs no other file, as `pilocal check --html` does; return its path.

        Raises InputError for a path where none should be written, RunError where none can be.
        """
        from pilocal.flow.check_page.write import write_check

        return write_check(self, path_of(path), prices)


def check(
    task: str | Path,
    *,
    schedule: str | Path | None = None,
    run: str | Path | None = None,
    probe: bool = True,
    gap: bool | None = None,
    backend: Backend | None = None,
    listeners: Listeners = QUIET,
    machine: int | None = None,
) -> Plan:
    """Check a task and return what its run will cost, as `pilocal check` does; nothing is trained.

    Without `run` nothing is left behind; with it, templates and shots are kept there for the run to come. With `probe`
    one real step is taken to predict memory and time from, if the `backend` has one. With `gap` the base answers, to
    say what the prompt is worth; None means where that takes no more than a few minutes, and a probe is taken. With
    `machine`, bytes of unified memory, it is told whether a Mac that has so many could train the run; of the base only
    config.json and the tokenizer are needed, and nothing is loaded. Raises InputError, ModelError, or Faults with all
    that is wrong.
    """
    if machine is not None:
        check_machine(machine, run=run is not None, gap=bool(gap), backend=backend)
    folder = path_of(run) if run else None
    path = path_of(schedule) if schedule else None
    said: dict[str, None] = {}

    def warn(text: str) -> None:
        said.setdefault(text)
        listeners.warn(text)

    heard = replace(listeners, warn=warn)
    options: dict[str, Any] = {"to_export": True, "weights": machine is None}
    with open_task(path_of(task), path, folder, heard, backend, **options) as context:
        if folder:
            describe(context)  # else the later run would take it for another's folder
        plan = plan_run(context, probe=probe, gap=gap) if machine is None else plan_machine(context, machine)
        picture = _keep_census(context, plan.gap) if folder and plan.gap else None
        about = _facts(context, path_of(task), path)
        return replace(plan, about=about, picture=picture, warnings=tuple(said))


def _keep_census(context: Context, gap: Gap) -> Path | None:
    """Write census.json, and beside it the picture, which is returned; None where nothing can draw it."""
    write_json(context.run.census, asdict(gap))
    path = context.run.census.with_suffix(".svg")
    if not gap.entries:
        return None
    if not is_installed("matplotlib"):
        context.warn(str(not_installed(path, "matplotlib")))
        return None
    draw_census(gap, path, f"{context.task.name}: what each entry of the template is worth to {context.base.model}")
    return path


def plan_run(context: Context, *, probe: bool, gap: bool | None = False, machine: int | None = None) -> Plan:
    """Return what every stage costs in tokens, memory and, with a probe (one real step), time.

    `gap` and `machine` are as for `check`. Where a split has more than `sampling.MANY` examples a sample is looked at.
    Raises InputError when a row is longer than the context, or answers to the test set could not be scored.
    """
    context.metric.check(context.task.test)
    whole = parts(context)
    with sampled(context) as part:
        found = _plan(part, probe=probe, gap=gap, machine=machine)
    looked_at = {split: len(getattr(part.task, split)) for split in whole}
    return replace(found, sample=looked_at, hints=(*_said_of_sample(whole, looked_at), *found.hints))


def check_machine(machine: int, *, run: bool, gap: bool, backend: Backend | None) -> None:
    """Raise InputError for what cannot be asked of another machine."""
    if machine < 1:
        raise InputError("--machine", "must be above 0 bytes", got=machine, fix="give what the Mac has, such as 32GB")
    if backend is not None and backend.name != MLX:
        what = "it is a Mac's unified memory, which MLX trains in"
        raise InputError("--machine", what, got=f"--backend {backend.name}", fix="leave one of the two out")
    for option, is_given in (("--gap", gap), ("--run", run)):
        if is_given:
            what = "with --machine nothing is loaded, and nothing is kept"
            raise InputError(option, what, fix=f"leave --machine or {option} out")


def plan_machine(context: Context, machine: int) -> Plan:
    """Return what `plan_run` does for a Mac with so many bytes of unified memory; no model is loaded.

    A compressor that would load one is stood in for by "rules", which drops as many tokens.
    """
    compression, hints = context.task.compression, [UNSEEN]
    if compression.method not in MODELLESS:
        hints.append(f'the lengths are those of [compression] method = "rules": "{compression.method}" loads a model')
        rules = replace(compression, method=MODELLESS[0])
        context = replace(context, task=replace(context.task, compression=rules))
    found = plan_run(context, probe=False, gap=False, machine=machine)
    return replace(found, hints=(*hints, *found.hints))


def _plan(context: Context, *, probe: bool, gap: bool | None, machine: int | None) -> Plan:
    """Return what every stage costs by all examples of a context."""
    stages, trained = render_stages(context), context.schedule.trained
    check_teacher(context)
    check_requests(context)
    steps = context.schedule.steps(context.task.training.steps)
    mix = unanswered(context)
    plans = [
        StagePlan(n, stages[n].train, (), steps[n], context.run.stage(n), stages[n].generation, mix) for n in trained
    ]
    setup = training_setup(context.task, context.base, context.backend, **_planned_for(machine))
    forecast = setup.plan(plans, probe=probe, progress=context.progress)
    needs = dict(zip(trained, forecast.needs, strict=True))
    own = [needs.get(number) for number in range(len(stages))]
    answers = probe and not takes_long(context) if gap is None else bool(gap)
    over = longest_prompt(context) - context.base.context if answers else 0
    found = measure_gap(context, stages) if answers and over <= 0 else None
    return Plan(
        context.base.context,
        [stage.budget for stage in stages],
        own,
        forecast.memory,
        forecast.advice,
        saving(context, stages, own, timed=found is not None or (probe and _is_soon_read(context, stages))),
        (
            *_hints(context, machine),
            *_said_of_length(over),
            *(_advised(context, found) if found else ()),
        ),
        forecast.weights,
        found,
        machine=machine,
        prompts=one_prompt(context, stages),
    )


def _planned_for(machine: int | None) -> dict[str, int]:
    """Return what the setup of MLX is told of another machine."""
    return {} if machine is None else {"unified": machine}


def _is_soon_read(context: Context, stages: Sequence[RenderedStage]) -> bool:
    """Tell whether a CPU reads the prompts that are timed in a minute or two, at a guess."""
    tokens = (TIMED + 1) * sum(stages[number].budget.prompt_tokens for number in (0, -1))
    return seconds_on_cpu(context, tokens) <= SECONDS


def _facts(context: Context, task: Path, schedule: Path | None) -> TaskFacts:
    own = context.task
    rows = {split: len(getattr(own, split)) for split in SPLITS}
    known: dict[str, Any] = {"name": own.name, "model": own.model, "backend": context.backend.name, "rows": rows}
    return TaskFacts(task=task, schedule=schedule, **known)


def _advised(context: Context, gap: Gap) -> list[str]:
    """Return what follows from the gap; no synthesis makes up values for slots."""
    own = WRITE_SLOTTED if context.task.slots else f"`pilocal synth {context.task.folder}` makes some"
    return [hint.replace(SYNTH, own) for hint in gap.hints]


def _said_of_sample(whole: Mapping[str, int], looked_at: Mapping[str, int]) -> Iterator[str]:
    if whole:
        seen = ", ".join(f"{looked_at[split]:,} of {count:,} {split} examples" for split, count in whole.items())
        yield f"planned from a sample, {seen}, the longest among them; `pilocal stages` looks at every row"


def _said_of_length(over: int) -> Iterator[str]:
    if over > 0:
        yield f"no census: the whole prompt is {over} tokens over the model's context"


def _hints(context: Context, machine: int | None) -> Iterator[str]:
    """Yield what every request costs beside the bare query, and how the training could be faster if it is here."""
    yield from _request_hints(context)
    yield from _rate_hints(context)
    if machine is not None:
        return
    if context.backend.name == MLX and context.base.config["hidden_size"] >= WIDE and not has_accelerator(context):
        how = "--backend torch" if is_installed("torch") else "pip install 'pilocal[torch]', then --backend torch"
        yield f"on a CPU PyTorch trains such a base two to three times as fast as MLX: {how}"
    if context.backend.device == "cpu" and context.task.training.precision is None and AMX in processor_flags():
        yield 'this processor multiplies bfloat16 in hardware: [training] precision = "bfloat16" is faster here'


def _rate_hints(context: Context) -> Iterator[str]:
    """Yield that the learning rate is far from what bases of this size are trained with."""
    rate, base = context.task.training.learning_rate, context.base
    recipe = recipe_for(size_of(base.model, base))
    if recipe.is_far(rate):
        how = f"bases of this size take {recipe.learning_rate:g} ({recipe.known})"
        yield f"[training] learning_rate = {rate:g} is {'low' if rate < recipe.learning_rate else 'high'}: {how}"


def _request_hints(context: Context) -> Iterator[str]:
    if residue := context.residue:
        tokens = context.compression_tools.count_tokens(residue.template) if residue.template else 0
        yield f"{tokens} tokens of the template and {residue.shots} shots stay in every request"
    if names := context.task.slots:
        count, examples = context.compression_tools.count_tokens, context.task.train
        values = mean(count(stated(example.slots)) for example in examples)
        yield f"{values:.1f} tokens of every bare query, on average, are the values of its slots: {', '.join(names)}"
    if tokens := context.base.default_system_tokens:
        if context.base.chat.default_system:
            what = f"{tokens} tokens of every bare query are a system message that the chat template writes by itself"
            yield f"{what}; [serving] default_system = false leaves it out"
        else:
            yield f"[serving] default_system = false makes every bare query {tokens} tokens shorter"
