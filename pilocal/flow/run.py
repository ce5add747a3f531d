"""A run as a program sees it: made by `run`, or opened again from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.base.load import load_base
from pilocal.errors import InputError, PilocalError, RunError
from pilocal.flow.exporting import export_forms
from pilocal.flow.followers import follow_leader
from pilocal.flow.listeners import QUIET, Listeners, StepResult
from pilocal.flow.opening import base_of, default_run, open_run, open_task, task_file_of
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.start import Start, begin
from pilocal.flow.steps import EVALUATE, TRAIN
from pilocal.progress import Progress, silent
from pilocal.prompt.render import Message
from pilocal.prompt.tokens import answer_text, end_tokens, prompt_tokens
from pilocal.retrieve.shipped import ShippedShots
from pilocal.run_folder.files import read_json
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.shipped import Shipped, read_shipped
from pilocal.task import LOSSLESS, load_task
from pilocal.task.slots import slot_values
from pilocal.task.text import path_of
from pilocal.training.backend import Backend, backend_named

if TYPE_CHECKING:
    from pilocal.llamacpp.engine import Engine

CONTEXT = 2048
"""Longest prompt and answer of `Run.answer`, in tokens."""


class Run:
    """A run folder; `with` closes what `answer` has loaded."""

    def __init__(self, folder: str | Path) -> None:
        """Open a run folder; raises RunError when no run has begun there."""
        self.folder = path_of(folder)
        self._opened = ExitStack()
        if "task" not in RunDir(self.folder).state:
            fix = "point at the run folder of `pilocal run TASK`"
            raise RunError(self.folder, "no run has begun here", fix=fix)

    def __repr__(self) -> str:
        """Return the call that opens it again."""
        return f"Run({str(self.folder)!r})"

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json; raises RunError when nothing has been evaluated yet."""
        path = RunDir(self.folder).metrics
        try:
            found: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            raise RunError(self.folder, "nothing was evaluated here yet", fix="run it until evaluate") from None
        except ValueError as error:
            raise RunError(path, f"damaged: {error}", fix="delete this file and run again") from None
        return found

    def report(self, *, price: float | None = None, comparison: str | Path | None = None) -> Path:
        """Write RUN/report.html from what the run has left so far, and return it; the page needs no other file.

        `price` is money per million prompt tokens, for what is saved. `comparison` is the folder of a comparison, by
        default TASK/compare, if there is one. What is missing is named there with the command that makes it. Raises
        InputError for a price that is none or a comparison that is not there, RunError for a damaged file.
        """
        from pilocal.report import write_report

        return write_report(self.folder, price=price, comparison=path_of(comparison) if comparison else None)

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter, in mlx-lm's format; raises RunError when nothing has been trained yet."""
        folder = RunDir(self.folder).adapter
        if not folder.is_dir():
            raise RunError(self.folder, "nothing was trained here yet", fix="run it until train")
        return folder

    def answer(
        self, query: str | Sequence[Message], *, max_tokens: int | None = None, slots: Mapping[str, str] | None = None
    ) -> str:
        """Return what the served file answers in llama.cpp, greedily; the file stays loaded until `close`.

        `query` is the bare query, or a chat that ends with it, each message a dict with `role` and `content`; what
        stays of the prompt is put before it, and so are the values of the template's `slots`. `max_tokens` is the
        task's by default. Raises RunError when nothing is served yet, InputError when the query and its answer do not
        fit CONTEXT tokens, or a slot has no value.
        """
        messages = [Message(role="user", content=query)] if isinstance(query, str) else list(query)
        residue, values = self._served.residue, slot_values(slots or {}, self._served.slots, "slots")
        if residue or values:
            messages = residue.of(messages, self._shots, values)
        prompt, limit = prompt_tokens(messages, self._tokenizer), max_tokens or self._max_tokens
        if len(prompt) + limit >= CONTEXT:
            what, fix = f"the query and its answer do not fit {CONTEXT} tokens", "shorten it, or lower max_tokens"
            raise InputError("query", what, got=f"{len(prompt)} + {limit} tokens", fix=fix)
        how: dict[str, Any] = {"ends": end_tokens(self._tokenizer), "max_tokens": limit, "progress": silent}
        answered = self._engine.answer([prompt], warm=False, name="answer", **how)
        text = answer_text(answered.answers[0], self._tokenizer)
        return text

    def close(self) -> None:
        """Free the served file if `answer` has loaded it."""
        for kept in ("_engine", "_served", "_shots"):
            self.__dict__.pop(kept, None)
        self._opened.close()

    def __enter__(self) -> Run:
        """Return the run."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self.close()

    @cached_property
    def _engine(self) -> Engine:
        from pilocal.llamacpp.engine import Engine

        served = self._served
        return self._opened.enter_context(Engine(served.served_path, CONTEXT, served.adapter_path))

    @cached_property
    def _served(self) -> Shipped:
        return read_shipped(self.folder)

    @cached_property
    def _shots(self) -> ShippedShots:
        return ShippedShots(self._served, self._served.examples())

    @cached_property
    def _tokenizer(self) -> Any:
        return base_of(self.folder).tokenizer

    @property
    def _max_tokens(self) -> int:
        return load_task(task_file_of(self.folder)).generation.max_tokens

    def export(
        self,
        *forms: str,
        quants: Sequence[str] = (),
        accept_loss: bool = False,
        copy: bool = False,
        beside: Sequence[str | Path] = (),
        progress: Progress = silent,
    ) -> dict[str, dict[str, Any]]:
        """Write the trained adapter in other forms below RUN/export; return what artefacts.json says about them.

        `forms` are "mlx", "peft", "ollama" and "llama-server": a script that starts llama.cpp's own server with this
        run and the runs `beside`, on one base. `quants` make GGUF files: "lossless", or a type of llama.cpp such as
        "q8_0", or "auto", with base and adapter fused into one file; the first is served from now on. Without either it
        is "lossless", or with `copy` no form more. With `accept_loss` a form that a gate refuses is kept. With `copy`
        RUN/export holds no links, so that it can be copied to another disk. Raises RunError when the training is not
        finished or the task has changed since, ExportError when the gate refuses a form.
        """
        how: dict[str, Any] = {"forms": forms, "quants": quants, "accept_loss": accept_loss, "copy": copy}
        return export_run(self.folder, **how, beside=beside, listeners=Listeners(progress=progress))


def run(
    task: str | Path,
    *,
    schedule: str | Path | None = None,
    run: str | Path | None = None,
    until: str = "evaluate",
    backend: str | Backend | None = None,
    start: str | Path | Start | None = None,
    progress: Progress = silent,
) -> Run:
    """Run a task up to a step, as `pilocal run` does, and return the run; what is done already is skipped.

    `task` is a task folder or its task.toml, `schedule` a schedule file (by default the task's, else linear with 4
    stages and 5 shots), `run` the run folder (TASK/run by default), `until` the last step: "compress", "index",
    "stages", "train", "export" or "evaluate". `backend` is "mlx" or "torch", by default the one that trained the run so
    far. `start` is the run whose adapter this one goes on from, after the template was edited (TASK/NAME-edited by
    default); it is returned itself where no entry has changed. `progress` hears of long work; warnings are Python's.
    Raises PilocalError: InputError for what the user wrote, ModelError for the base, RunError for the folder,
    TrainingError and ExportError for what cannot go on.
    """
    task = path_of(task)
    chosen = backend_named(backend) if isinstance(backend, str) else backend
    begun = Start(path_of(start)) if isinstance(start, str | Path) else start
    folder = path_of(run) if run else default_run(task, begun)
    listeners = Listeners(progress=progress)
    done = run_task(task, schedule, folder, until=until, backend=chosen, start=begun, listeners=listeners)
    return Run(done or folder)


def run_task(
    task: str | Path,
    schedule: str | Path | None,
    run: Path,
    *,
    until: str,
    backend: Backend | None = None,
    start: Start | None = None,
    listeners: Listeners = QUIET,
) -> Path | None:
    """Run a task up to a step; `listeners` hear of it. Return the run folder.

    With a `start` whose template is still the task's nothing is done, and it is the start's. A process that was
    launched to help another one's training only helps, and returns None.
    """
    step = step_named(until)
    if follow_leader(Path(task), step, backend):
        return None
    if start is not None:
        _check_place(start, run, backend)
        start, edit = begin(load_task(task), start)
        if not edit.changes:
            note = f"no entry of the template has changed since {start.run}"
            listeners.step(StepResult("edit", True, 0.0, note))
            return start.folder
    path, trains = path_of(schedule) if schedule else None, step.uses(TRAIN)
    with open_task(Path(task), path, run, listeners, backend, to_export=trains, start=start) as context:
        run_steps(context, step)
        if step is EVALUATE:
            _keep_report(Run(run), listeners)
    return run


def _keep_report(run: Run, listeners: Listeners) -> None:
    """Write report.html where the scores are newer; what hinders that is a warning, since the run itself is done."""
    folder = RunDir(run.folder)
    if folder.report.is_file() and folder.report.stat().st_mtime >= folder.metrics.stat().st_mtime:
        return
    try:
        run.report()
    except PilocalError as error:
        listeners.warn(f"no report: {error}")


def _check_place(start: Start, run: Path, backend: Backend | None) -> None:
    """Raise InputError when a run would go on from itself, or from two adapters."""
    if start.folder.resolve() == run.resolve():
        fix = "name another folder with --run"
        raise InputError(run, "a run cannot go on from itself", got=str(start.run), fix=fix)
    if backend is not None and backend.initial_adapter is not None:
        what, fix = "two adapters to begin with", "leave out --initial-adapter, or --from"
        raise InputError("--initial-adapter", what, got=str(backend.initial_adapter), fix=fix)


def export_run(
    run: str | Path,
    *,
    forms: Sequence[str] = (),
    quants: Sequence[str] = (),
    accept_loss: bool = False,
    copy: bool = False,
    beside: Sequence[str | Path] = (),
    listeners: Listeners = QUIET,
) -> dict[str, dict[str, Any]]:
    """Write a trained adapter in other forms, as `Run.export` does."""
    if not (forms or quants or copy):
        quants = (LOSSLESS,)
    with open_run(Path(run), listeners) as context:
        others = [path_of(folder) for folder in beside]
        return export_forms(context, quants, forms, accept_loss=accept_loss, copy=copy, beside=others)


def load(run: str | Path) -> tuple[Any, Any]:
    """Return the base with the run's trained adapter and its tokenizer, as mlx_lm.load does: (model, tokenizer).

    The model is frozen and ready for mlx_lm.generate. Raises RunError when nothing was trained yet, ModelError when the
    base or the adapter is damaged.
    """
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from mlx_lm.tokenizer_utils import load as load_wrapped

    opened = Run(run)
    base = base_of(opened.folder)
    tokenizer = TokenizerWrapper(base.tokenizer) if base.gguf else load_wrapped(base.folder)
    tokenizer.chat_template = base.layout.template
    return load_base(base, opened.adapter), tokenizer
