"""The whole flow: every step reads files, writes files, and is skipped while its inputs are unchanged."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pilocal.base.base import (
    base_hash,
    context_length,
    download,
    find_base,
    read_config,
    stock_reads_rope,
)
from pilocal.base.device import keeps_packed, machine_memory
from pilocal.base.language_model import BaseModel
from pilocal.base.load import load_base, load_tokenizer
from pilocal.compress import CompressedTemplate, Tools, compress_template, compression_facts
from pilocal.errors import InputError, PilocalError, RunError, raise_all
from pilocal.flow.formats import Order, StageSet, write_mlx, write_openai
from pilocal.flow.shipping import Artefacts, Shipper
from pilocal.progress import Progress, silent
from pilocal.prompt.render import Record, render
from pilocal.prompt.tokens import Row, end_tokens, prompt_tokens, token_counter, tokenize
from pilocal.retrieve import ShotPicker, check_bank, contradictions, model_hash
from pilocal.run.files import replacing, write_json
from pilocal.run.folder import RunDir
from pilocal.run.hashes import fingerprint, hashes
from pilocal.run.shipped import read_shipped
from pilocal.task import AUTO, LOSSLESS, STARTER, Compression, Example, Task, load_task
from pilocal.task.schedule import DEFAULT, Adaptive, Schedule, Stage, load_schedule
from pilocal.training.backend import NF4, PACKED, TORCH, Backend, backend_of, torchrun_rank

if TYPE_CHECKING:
    from pilocal.evaluate.arms import Answered

STEPS = ("compress", "index", "stages", "train", "direct_drop", "export", "evaluate")
"""Every step, in the order in which they run."""

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class StageBudget:
    """What one stage costs in tokens."""

    tau: float
    shots: int
    steps: int
    template_tokens: int
    ratio: float
    """The realised share of the template's tokens."""
    prompt_tokens: float
    """Mean over the training rows."""
    longest_row: int
    """Prompt and completion of the longest row of any split."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will cost, before it begins."""

    stages: list[StageBudget]
    needs: list[Any]
    """A train.plan.Need for each stage; None where nothing is trained."""
    memory: int
    """Bytes that the training may use here."""
    advice: str | None
    """What to change when it does not fit; None when it does."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one step."""

    name: str
    skipped: bool
    """True when its files were there and its inputs unchanged."""
    seconds: float
    note: str = ""
    """What there is to say of it."""


class Pipeline:
    """One task, one schedule, one run folder; make it with `open_pipeline`."""

    def __init__(
        self,
        task: Task,
        schedule: Schedule,
        run: RunDir,
        progress: Progress = silent,
        warn: Callable[[str], None] = warnings.warn,
        report_to: str | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Check what can be checked without work; raises InputError, Faults or ModelError.

        `report_to` names a tracker that gets every line of the training; without a `backend` it is the one that the run
        was trained with so far.
        """
        self.task = task
        self.schedule = schedule
        self.run = run
        self.progress = progress
        self.warn = warn
        self.report_to = report_to
        self.backend = backend or backend_of(run.state, run.file)
        self.team: Any = None
        from pilocal.evaluate.scoring.metrics import make_metric
        from pilocal.training.mlx.plan import read_sizes
        from pilocal.training.tracker import check_tracker

        faults: list[PilocalError] = []
        most = max(stage.shots for stage in schedule.stages)
        with _collecting(faults):
            check_bank(task.train, task.retrieval, most, task.training.seed, task.files["train"])
        if task.training.steps < len(schedule.trained):
            fix = "raise steps or take fewer stages"
            what = f"{len(schedule.trained)} stages need at least as many steps"
            faults.append(InputError(f"{task.files['task']} [training] steps", what, got=task.training.steps, fix=fix))
        if task.training.recompute and task.lora.dropout:
            what, fix = (
                "what is computed again would be dropped out anew",
                "set [lora] dropout = 0 or recompute = false",
            )
            faults.append(InputError(f"{task.files['task']} [training] recompute", what, fix=fix))
        if report_to:
            with _collecting(faults):
                check_tracker(report_to)
        with _collecting(faults):
            self.metric = make_metric(task.metric, task.scoring, task.folder)
        with _collecting(faults):
            self.base = find_base(task.model, task.folder)
            read_sizes(read_config(self.base), task.lora)
        with _collecting(faults):
            self._check_quant(task.export.quant, f"{task.files['task']} [export] quant")
        with _collecting(faults):
            faults += self._check_backend(find=backend is not None)
        raise_all(faults)
        unclear, query = contradictions(task.train)
        if unclear:
            what = f"{unclear} queries have more than one answer" if unclear > 1 else "a query has more than one answer"
            warn(f"{task.files['train']}: {what}, such as {query!r}")

    def _check_backend(self, *, find: bool) -> list[PilocalError]:
        """Return what the backend cannot do; with `find`, look whether its device is there, too."""
        if self.backend.name != TORCH:
            return []
        from pilocal.training.torch_backend.device import check_bitsandbytes, find_device, refusals

        if find or self.backend.device is None:
            self.backend = replace(self.backend, device=find_device(self.backend.device))
        if self.backend.weights == NF4:
            check_bitsandbytes()
        if self.backend.weights == PACKED and not read_config(self.base).get("quantization"):
            what, fix = "the weights of this base are not packed", "leave --weights out, or take a 4-bit base"
            raise InputError("--weights packed", what, got=self.task.model, fix=fix)
        self._backend_facts  # noqa: B018, the initial adapter has to be there
        return refusals(self.task.lora, self.task.training, adaptive=self.schedule.adaptive is not None)

    @cached_property
    def _backend_facts(self) -> list[Any]:
        """What the backend adds to the key of a training."""
        return self.backend.facts(self.task.training.precision or "float32")

    def _check_quant(self, quant: str, where: str) -> None:
        """Raise InputError or ExportError for a form that could not be served."""
        from pilocal.llamacpp.quantize import check_quant

        if quant == LOSSLESS and self.task.lora.kind == "dora":
            what, fix = "GGUF has no adapters with magnitudes (DoRA)", 'take "q8_0", which fuses it, or "auto"'
            raise InputError(where, what, got=quant, fix=fix)
        if quant not in (LOSSLESS, AUTO):
            check_quant(quant, where)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return load_tokenizer(self.base)

    @cached_property
    def base_hash(self) -> str:
        """The base's fingerprint."""
        return base_hash(self.base)

    @cached_property
    def templates(self) -> tuple[CompressedTemplate, ...]:
        """The template at every stage's tau."""
        return self.compress(self.taus, self.task.compression)

    @property
    def taus(self) -> list[float]:
        """Every stage's tau."""
        return [stage.tau for stage in self.schedule.stages]

    def compress(self, taus: Sequence[float], compression: Compression) -> tuple[CompressedTemplate, ...]:
        """Return the template at some taus, in their order, and keep it in the run folder."""
        return compress_template(self.task.template, taus, compression, self._tools, self.run.templates)

    def _count_tokens(self, text: str) -> int:
        return token_counter(self.tokenizer)(text)

    @cached_property
    def _tools(self) -> Tools:
        return Tools(
            count_tokens=self._count_tokens,
            base_id=self.base_hash,
            folder=self.task.folder,
            load_model=lambda: BaseModel(self.base, self.tokenizer),
            download=download,
        )

    @cached_property
    def _compression_facts(self) -> list[Any]:
        return compression_facts(self.taus, self.task.compression, self._tools)

    @cached_property
    def picker(self) -> ShotPicker:
        """Chooses the shots."""
        most = max(stage.shots for stage in self.schedule.stages)
        return ShotPicker(
            self.task.train,
            self.task.retrieval,
            self.run.index,
            k=most,
            seed=self.task.training.seed,
            where=self.task.files["train"],
            models=self.task.folder,
            progress=self.progress,
        )

    def key(self, step: str) -> str:
        """Return the fingerprint of everything that decides what `step` writes."""
        task, stages = self.task, [asdict(stage) for stage in self.schedule.stages]
        made = version("pilocal")
        if step == "compress":
            return fingerprint(made, step, task.template, self.taus, self._compression_facts)
        if step == "index":
            most = max(stage["shots"] for stage in stages)
            how = asdict(task.retrieval)
            if task.retrieval.similarity == "embedding":
                how["model_sha256"] = model_hash(task.retrieval.embedding_model, task.folder)
            if task.retrieval.pool < 1:
                how["seed"] = task.training.seed
            return fingerprint(made, step, [asdict(example) for example in task.train], how, most)
        if step == "stages":
            others = [asdict(example) for example in (*task.valid, *task.test)]
            prompts = [(stage["tau"], stage["shots"]) for stage in stages]
            return fingerprint(made, step, self.key("compress"), self.key("index"), others, prompts)
        if step in ("train", "direct_drop"):
            shares = [stage["share"] for stage in stages] if step == "train" else []
            adaptive = asdict(self.schedule.adaptive) if step == "train" and self.schedule.adaptive else None
            training = asdict(task.training)
            training.pop("direct_drop")
            return fingerprint(
                made, step, self.key("stages"), shares, adaptive, asdict(task.lora), training, *self._backend_facts
            )
        if step == "export":
            return fingerprint(made, step, self.key("train"), asdict(task.export))
        from pilocal.evaluate.scoring.metrics import metric_facts

        what = (self.key("export"), self._served, self._ablation, metric_facts(task), asdict(task.generation))
        return fingerprint(made, step, *what)

    def run_steps(self, last: str, report: Callable[[StepResult], None]) -> None:
        """Run every step that `last` needs and `last` itself, skipping what is done; tell `report` of each.

        When several processes were launched together and there is something to train, this one leads them. Raises
        InputError, before any work, when answers to the test set could not be scored.
        """
        if last == "evaluate":
            self.metric.check(self.task.test)
        self._describe()
        with self._leading() if "train" in STEPS[: STEPS.index(last) + 1] else nullcontext():
            self._run_steps(last, report)

    @contextmanager
    def _leading(self) -> Iterator[None]:
        if self.backend.name == TORCH:
            from pilocal.training.torch_backend.team import Team as TorchTeam

            self.team = TorchTeam.join(self.backend.device or "cpu")
        else:
            from pilocal.training.mlx.team import Team, launched_rank

            self.team = Team() if launched_rank() is None else Team.join()
        try:
            yield
        finally:
            self.team.end()

    def _run_steps(self, last: str, report: Callable[[StepResult], None]) -> None:
        for name in STEPS[: STEPS.index(last) + 1]:
            if name == "direct_drop" and (last == "export" or not self.task.training.direct_drop):
                continue
            key = self.key(name)
            if self.run.is_done(name, key):
                report(StepResult(name, True, 0.0))
                continue
            began = time.monotonic()
            files: list[Path] = getattr(self, f"_{name}")(key)
            seconds = time.monotonic() - began
            self.run.finish(name, key, files, seconds)
            report(StepResult(name, False, seconds, self._pace() if name == "train" else ""))

    def _pace(self) -> str:
        """Return where the stages of an adaptive schedule ended."""
        if self.schedule.adaptive is None:
            return ""
        ends = [str(self.log(number)[-1]["step"]) for number in self.schedule.trained]
        return f"the stages ended after {', '.join(ends)} steps"

    def log(self, stage: int) -> list[dict[str, Any]]:
        """Return the lines of a trained stage's metrics.jsonl."""
        text = (self.run.stage(stage) / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def plan(self, *, probe: bool) -> Plan:
        """Return what every stage costs in tokens, memory and, with a probe (one real step), time.

        Raises InputError when a row is longer than the context, or answers to the test set could not be scored.
        """
        from pilocal.training.mlx import plan

        self.metric.check(self.task.test)

        task, lora, training = self.task, self.task.lora, self.task.training
        _, budgets, rows = self._render()
        config = read_config(self.base)
        sizes = plan.read_sizes(config, lora)
        share = "sliding_attention" not in config.get("layer_types", ())
        trained = self.schedule.trained
        works = [plan.survey(sizes, rows[number], training, number, share=share) for number in trained]
        base = plan.base_bytes(config, sorted(self.base.glob("model*.safetensors")), as_float32=not keeps_packed())
        taken = None
        if probe:
            self.progress("probe", 0, 1)
            taken = plan.take_probe(self._trained_base(), works[0].heaviest, lora, training)
            self.progress("probe", 1, 1)
        steps, memory = self.schedule.steps(task.training.steps), machine_memory()
        needs = plan.predict(sizes, works, [steps[number] for number in trained], training, base, taken)
        return Plan(
            budgets,
            [needs[trained.index(number)] if number in trained else None for number in range(len(steps))],
            memory,
            plan.advise(sizes, works, training, base, taken, memory, may_recompute=not lora.dropout),
        )

    def _describe(self) -> None:
        packages = ("pilocal", "mlx", "mlx-lm", "llama-cpp-python", "numpy")
        self.run.describe(
            versions={name: version(name) for name in packages} | {"python": platform.python_version()},
            seed=self.task.training.seed,
            model=self.task.model,
            base_sha256=self.base_hash,
            inputs=hashes(self.task.files),
            schedule=[asdict(stage) for stage in self.schedule.stages],
            adaptive=asdict(self.schedule.adaptive) if self.schedule.adaptive else None,
            task_file=self.task.files["task"].name,
            backend=self.backend.as_json(),
        )

    def _compress(self, key: str) -> list[Path]:
        assert self.templates
        return sorted(path for path in self.run.templates.iterdir() if path.is_file())

    def _index(self, key: str) -> list[Path]:
        assert self.picker
        return sorted(path for path in self.run.index.iterdir() if path.is_file())

    def _stages(self, key: str) -> list[Path]:
        rendered, _, _ = self._render()
        files = []
        for number, splits in enumerate(rendered):
            for split, records in splits.items():
                path = self.run.stage(number) / f"{split}.jsonl"
                with replacing(path) as file:
                    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                files.append(path)
        return files

    def write_format(self, form: str) -> Order:
        """Write the stages for another trainer ("openai" or "mlx") into RUN/<form>, once the step "stages" is done.

        Stages without optimizer steps are left out. Raises RunError when the disk is full.
        """
        from pilocal.training.learning_rate import learning_rate

        training, total = self.task.training, self.task.training.steps
        sets, first, steps = [], 0, self.schedule.steps(total)
        for done, number in enumerate(self.schedule.trained, 1):
            stage, train = self.schedule.stages[number], self._rows(number, "train")
            rows = [len(row.tokens) for row in train]
            sets.append(
                StageSet(
                    number=number,
                    tau=stage.tau,
                    shots=stage.shots,
                    train=self._records(number, "train"),
                    valid=self._records(number, "valid"),
                    tokens=sum(rows),
                    longest=max(*rows, *(len(row.tokens) for row in self._rows(number, "valid"))),
                    rates=[learning_rate(step, total, training) for step in range(first, first + steps[number])],
                )
            )
            first += steps[number]
            self.progress(form, done, len(self.schedule.trained))
        folder = self.run.path / form
        if form == "openai":
            return write_openai(sets, folder, training, self.warn)
        if not stock_reads_rope(self.base):
            fix = "write them as rope_theta and rope_scaling, too"
            self.warn(f"{self.base / 'config.json'}: mlx_lm.lora does not read rope_parameters; {fix}")
        local = self.task.model == STARTER or (self.task.folder / self.task.model).is_dir()
        model = str(self.base.resolve()) if local else self.task.model
        return write_mlx(sets, folder, model, self.task.lora, training)

    def _render(self) -> tuple[list[dict[str, list[Record]]], list[StageBudget], list[list[Row]]]:
        """Render and measure every record of every stage; the longest must fit the context.

        The rows are those of the training examples, stage by stage.
        """
        task, context = self.task, context_length(self.base)
        most = max(stage.shots for stage in self.schedule.stages)
        shots: dict[str, list[tuple[int, ...]]] = {
            "train": [self.picker.for_training(i, most) for i in range(len(task.train))],
            "valid": self.picker.for_queries([(example.query, example.history) for example in task.valid], most),
            "test": self.picker.for_queries([(example.query, example.history) for example in task.test], most),
        }
        rendered: list[dict[str, list[Record]]] = []
        budgets: list[StageBudget] = []
        rows: list[list[Row]] = []
        faults: list[PilocalError] = []
        steps = self.schedule.steps(task.training.steps)
        for number, (stage, template) in enumerate(zip(self.schedule.stages, self.templates, strict=True)):
            splits: dict[str, list[Record]] = {}
            longest = 0
            rows.append([])
            for split in SPLITS:
                examples: tuple[Example, ...] = getattr(task, split)
                splits[split] = []
                for example, chosen in zip(examples, shots[split], strict=True):
                    nearest = chosen[len(chosen) - stage.shots :]
                    record = render(template.text, [task.train[i] for i in nearest], example)
                    splits[split].append(record)
                    row = tokenize(record, self.tokenizer, f"stage {number}, {split} {example.id}")
                    longest = max(longest, len(row.tokens))
                    if split == "train":
                        rows[-1].append(row)
                self.progress("render", number * 3 + SPLITS.index(split) + 1, 3 * len(self.schedule.stages))
            if longest > context:
                what = f"the longest row is {longest - context} tokens over the model's context of {context}"
                fix = "shorten the template, lower shots, or take a model with a longer context"
                faults.append(InputError(f"stage {number} (tau {stage.tau:g}, {stage.shots} shots)", what, fix=fix))
            rendered.append(splits)
            budgets.append(
                StageBudget(
                    stage.tau,
                    stage.shots,
                    steps[number],
                    template.tokens,
                    template.ratio,
                    mean(row.offset for row in rows[-1]),
                    longest,
                )
            )
        raise_all(faults)
        return rendered, budgets, rows

    def _records(self, number: int, split: str) -> list[Record]:
        with (self.run.stage(number) / f"{split}.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _rows(self, number: int, split: str) -> list[Row]:
        path = self.run.stage(number) / f"{split}.jsonl"
        records = enumerate(self._records(number, split), 1)
        return [tokenize(record, self.tokenizer, f"{path}:{n}") for n, record in records]

    def _train(self, key: str) -> list[Path]:
        from pilocal.export.gguf import check_exportable
        from pilocal.training.row_order import StagePlan

        check_exportable(self.base)
        steps = self.schedule.steps(self.task.training.steps)
        plans = [
            StagePlan(i, self._rows(i, "train"), self._rows(i, "valid"), steps[i], self.run.stage(i))
            for i in self.schedule.trained
        ]
        files = self._fit(plans, key, "train", self.schedule.adaptive)
        self.run.adapter.mkdir(exist_ok=True)
        for name in ("adapters.safetensors", "adapter_config.json"):
            with replacing(self.run.adapter / name, "wb") as file:
                file.write((plans[-1].folder / name).read_bytes())
            files.append(self.run.adapter / name)
        return files

    def _direct_drop(self, key: str) -> list[Path]:
        from pilocal.training.row_order import StagePlan

        folder, steps = self.run.path / "direct_drop", self.task.training.steps
        plan = StagePlan(0, self._rows(0, "train"), self._rows(0, "valid"), steps, folder)
        return self._fit([plan], key, "direct_drop")

    def _fit(self, plans: Sequence[Any], key: str, name: str, adaptive: Adaptive | None = None) -> list[Path]:
        from pilocal.training.mlx.loop import train
        from pilocal.training.tracker import Tracker, open_tracker

        def track(first: int) -> Tracker:
            assert self.report_to
            folder = self.run.path / "reports" / name
            settings = {
                "task": self.task.name,
                "stages": [asdict(stage) for stage in self.schedule.stages],
                "lora": asdict(self.task.lora),
                "training": asdict(self.task.training),
            }
            title = f"{self.task.name} {name}"
            return open_tracker(
                self.report_to, folder, name=title, key=key, config=settings, first=first, warn=self.warn
            )

        facts = {"model": self.task.model, "base_sha256": self.base_hash}
        if self.backend.name == TORCH:
            from pilocal.training.torch_backend.device import find_device
            from pilocal.training.torch_backend.loop import train as train_in_torch

            find_device(self.backend.device)
            return train_in_torch(
                torch_setup(self.task, self.base, self.backend),
                plans,
                self._initial_adapter,
                key=key,
                facts=facts,
                progress=self.progress,
                warn=self.warn,
                name=name,
                team=self.team,
                track=track if self.report_to else None,
                peft=self.run.path / "adapter_peft" if name == "train" else None,
            )
        return train(
            self._trained_base(),
            plans,
            self.task.lora,
            self.task.training,
            key=key,
            facts=facts,
            progress=self.progress,
            warn=self.warn,
            name=name,
            adaptive=adaptive,
            team=self.team,
            track=track if self.report_to else None,
        )

    def _initial_adapter(self) -> dict[str, Any] | None:
        """Return the adapter that PyTorch starts from: the user's, else MLX's; None where MLX cannot be imported."""
        from pilocal.training.torch_backend.adapter import read_adapter

        if self.backend.initial_adapter:
            return read_adapter(self.backend.initial_adapter, self.task.lora, self.base_hash)
        try:
            from pilocal.training.mlx.adapter import initial_adapter
        except ImportError:
            return None
        return initial_adapter(self.base, self.task.lora, self.task.training.seed)

    @property
    def _served(self) -> list[str | None]:
        """The names of the files that are served."""
        try:
            served = read_shipped(self.run.path)
        except RunError:
            return []
        return [served.base, served.adapter, served.fused]

    @property
    def _ablation(self) -> str:
        return self.key("direct_drop") if self.task.training.direct_drop else ""

    def _trained_base(self) -> Any:
        return load_base(self.base, precision=self.task.training.precision)

    @property
    def shipper(self) -> Shipper:
        """Makes what is served of the trained adapter."""
        most = max(stage.shots for stage in self.schedule.stages)
        return Shipper(self.task, self.run, self.base, self.base_hash, most, self.progress, self.warn)

    def _export(self, key: str) -> list[Path]:
        Artefacts(self.run.export).clear()
        with self.shipper.gate(self._rows(self._last, "valid")) as gate:
            files, _ = self.shipper.ship(gate, self.task.export.quant, accept_loss=self.task.export.accept_loss)
        return self.shipper.serve(files)

    def export(self, quants: Sequence[str], forms: Sequence[str], *, accept_loss: bool) -> dict[str, dict[str, Any]]:
        """Ship a trained adapter in other ways: `quants` through the gate, then some of shipping.FORMS.

        The first of `quants` is served from now on. Returns RUN/export/artefacts.json. Raises RunError when the
        training is not finished or the task has changed since, ExportError when the gate refuses a form.
        """
        if not self.run.is_done("train", self.key("train")):
            known = "train" in self.run.state["steps"]
            what = "the task or its settings have changed since" if known else "the training is not finished"
            raise RunError(self.run.path, what, fix=f"pilocal run {self.task.files['task']} --run {self.run.path}")
        for quant in quants:
            self._check_quant(quant, "--quant")
        self.metric.check(self.task.test)
        shipper = self.shipper
        if quants:
            with shipper.gate(self._rows(self._last, "valid")) as gate:
                for number, quant in enumerate(quants):
                    files, _ = shipper.ship(gate, quant, accept_loss=accept_loss)
                    shipper.score(files, self._prompts(self._last), self.tokenizer, self.metric)
                    if number == 0:
                        self.run.finish("export", self.key("export"), shipper.serve(files), 0.0)
        for form in forms:
            shipper.make(form, self.tokenizer)
        return Artefacts(self.run.export).entries

    @property
    def _last(self) -> int:
        """The number of the last stage."""
        return len(self.schedule.stages) - 1

    def _prompts(self, stage: int) -> list[list[int]]:
        """Return the test set's prompts as a stage has them."""
        return [prompt_tokens(record["messages"][:-1], self.tokenizer) for record in self._records(stage, "test")]

    def _evaluate(self, key: str) -> list[Path]:
        from pilocal.evaluate.arms import score

        answered = self._answered()
        metrics = score(answered, self.task.test, self.metric, self.progress)
        gate = {"gate": Artefacts(self.run.export).gated}
        write_json(self.run.metrics, {"metric": self.task.metric} | metrics | gate)
        path = self.run.path / "answers.jsonl"
        with replacing(path) as file:
            for i, example in enumerate(self.task.test):
                line = {"id": example.id, "query": example.query, "answer": example.answer}
                line |= {arm: said[i] for arm, said in answered.answers.items()}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return [self.run.metrics, path]

    def _answered(self) -> Answered:
        """Return every arm's answers: those of an earlier evaluation, if nothing but the scoring has changed."""
        from pilocal.evaluate.arms import Answered, TestSet, Weights, answer

        path = self.run.path / "answered.json"
        served = read_shipped(self.run.path)
        key = fingerprint(self.key("export"), self._served, self._ablation, asdict(self.task.generation))
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["key"] == key:
                return Answered(known["answers"], known["costs"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # made again

        answered = answer(
            Weights(
                self.base,
                self.run.adapter,
                self.run.path / "direct_drop" if self.task.training.direct_drop else None,
                served.folder / served.base,
                served.folder / (served.fused or served.base),
                served.folder / served.adapter if served.adapter else None,
            ),
            TestSet(self._prompts(0), self._prompts(self._last)),
            generation=self.task.generation,
            tokenizer=self.tokenizer,
            ends=end_tokens(self.tokenizer),
            progress=self.progress,
        )
        write_json(path, {"key": key} | asdict(answered))
        return answered


@contextmanager
def _collecting(faults: list[PilocalError]) -> Iterator[None]:
    """Add what the block raises to the faults."""
    try:
        yield
    except PilocalError as fault:
        faults.append(fault)


@contextmanager
def open_pipeline(
    task_folder: Path,
    schedule_path: Path | None,
    run_folder: Path | None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
    report_to: str | None = None,
    backend: Backend | None = None,
) -> Iterator[Pipeline]:
    """Read a task and a schedule and open the run folder for writing; `report_to` and `backend` are as for Pipeline.

    Without a schedule the default is taken; without a run folder a temporary one, which is gone afterwards.
    """
    task = load_task(task_folder)
    schedule = load_schedule(schedule_path) if schedule_path else DEFAULT
    temporary = Path(tempfile.mkdtemp(prefix="pilocal-")) if run_folder is None else None
    try:
        with RunDir.locked(run_folder or temporary or Path(), task=task.name, folder=task.folder) as run:
            yield Pipeline(task, schedule, run, progress, warn, report_to, backend)
    finally:
        if temporary:
            shutil.rmtree(temporary)


def torch_setup(task: Task, base: Path, backend: Backend) -> Any:
    """Return what every process of a training in PyTorch has to have itself, a torch.loop.Setup."""
    from pilocal.training.torch_backend.loop import Setup

    return Setup(
        base=base,
        base_sha256=base_hash(base),
        lora=task.lora,
        training=task.training,
        device=backend.device or "cpu",
        weights=backend.weights,
    )


def follow_leader(task_folder: Path, last: str, backend: Backend | None = None) -> bool:
    """Help to train a task if this process was launched to, and return whether it was.

    Of the processes that `mlx.launch` starts (`torchrun`, with PyTorch as `backend`), all but the first compute shares
    of its batches and write nothing; in the steps up to `last` that train nothing they have nothing to do. They need a
    copy of the task folder and the base. Raises TrainingError when the first is gone, or has other settings.
    """
    trains = "train" in STEPS[: STEPS.index(last) + 1]
    if backend is not None and backend.name == TORCH:
        return _follow_torch(task_folder, trains, backend)
    if torchrun_rank() is not None:
        fix = "say --backend torch, or start the processes with mlx.launch"
        raise InputError("torchrun", "these processes train together in PyTorch alone", fix=fix)
    from pilocal.training.mlx.team import Team, launched_rank

    if not launched_rank():
        return False
    if not trains:
        return True
    from pilocal.training.mlx.follow import follow
    from pilocal.training.mlx.loop import same_everywhere

    task = load_task(task_folder)
    base = find_base(task.model, task.folder)
    same = same_everywhere({"base_sha256": base_hash(base)}, task.lora, task.training)
    follow(Team.join(), lambda: load_base(base, precision=task.training.precision), task.lora, task.training, same)
    return True


def _follow_torch(task_folder: Path, trains: bool, backend: Backend) -> bool:
    if not torchrun_rank():
        return False
    if trains:
        from pilocal.training.torch_backend.device import find_device

        device = find_device(backend.device)
        from pilocal.training.torch_backend.loop import follow
        from pilocal.training.torch_backend.team import Team

        task = load_task(task_folder)
        setup = torch_setup(task, find_base(task.model, task.folder), replace(backend, device=device))
        follow(Team.join(device), setup)
    return True


@contextmanager
def open_run(
    run_folder: Path, progress: Progress = silent, warn: Callable[[str], None] = warnings.warn
) -> Iterator[Pipeline]:
    """Open a run again, with the task and the schedule that it was made with; raises RunError when it has none."""
    state = RunDir(run_folder).state
    fix = "point at the run folder of `pilocal run TASK`"
    try:
        task_file = Path(state["task"]["folder"]) / state["task_file"]
        stages = tuple(Stage(**stage) for stage in state["schedule"])
        adaptive = Adaptive(**state["adaptive"]) if state["adaptive"] else None
    except (KeyError, TypeError):
        raise RunError(run_folder, "no run has begun here", fix=fix) from None
    task = load_task(task_file)
    with RunDir.locked(run_folder, task=task.name, folder=task.folder) as run:
        yield Pipeline(task, Schedule(stages, adaptive), run, progress, warn)
