"""A task folder: task.toml, the template, and the train, valid and test examples, read strictly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, PilocalError, did_you_mean, raise_all
from pilocal.settings import build, line_of, read_text, read_toml, require

STARTER = "starter"
"""The name of the bundled base model."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "exact_match": (),
    "bleu": (),
    "python_tests": ("timeout", "memory_mb"),
    "sqlite": ("database", "timeout", "max_rows"),
    "command": ("command", "timeout"),
}
"""The metrics that score an answer, each with the keys of `[scoring]` that it reads."""

METHODS = ("rules", "ladder", "surprisal", "summary", "llmlingua2")
"""The compressors."""

DEVICES = ("auto", "cuda", "mps", "cpu")

LOSSLESS = "lossless"
"""The type of the served file that loses nothing: the base in its own 4 bits, the adapter beside it."""

AUTO = "auto"
"""The smallest type that the gate lets through."""

LACKING = "the record has no"
"""How the fault of a record without a field begins."""

OPTIMIZERS = ("adamw", "adam", "adafactor")
PRECISIONS = ("float32", "bfloat16")
LR_SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """`[retrieval]`: how shots are chosen."""

    similarity: str = "bleu"
    """"bleu" (between answers, as published) or "embedding" (cosine of sentence-transformers vectors). Where the answer
    is not known, in validation and test, queries are compared: by character n-grams, or by the same embedding."""
    over: str = "answer"
    """What "embedding" compares in training: "answer" or "query"; BLEU compares answers."""
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Hub id or local directory, for similarity = "embedding"."""
    pool: float = 1.0
    """Share of the training examples that may be shots, drawn by [training] seed; all of them are trained on."""

    def __post_init__(self) -> None:
        answers = self.similarity != "bleu" or self.over == "answer"
        require(
            (self.similarity in ("bleu", "embedding"), "similarity", 'must be "bleu" or "embedding"'),
            (self.over in ("answer", "query"), "over", 'must be "answer" or "query"'),
            (answers, "over", 'must be "answer" with similarity = "bleu"'),
            (bool(self.embedding_model.strip()), "embedding_model", "must not be empty"),
            (0 < self.pool <= 1, "pool", "must be above 0 and at most 1"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """`[compression]`: how the template gets shorter."""

    method: str = "rules"
    """The compressor: "rules" drops whole rules, sentences and words by priority; "ladder" takes your own texts;
    "surprisal" drops the words that the base could have guessed; "summary" has the base rewrite the template;
    "llmlingua2" drops the words that an LLMLingua-2 checkpoint holds for dispensable."""
    keep: tuple[str, ...] = ()
    """Texts (placeholders, code) that go last: what holds one of them outlives everything else."""
    drop_first: tuple[str, ...] = ()
    """Texts that go first: what holds one of them is dropped before anything else; not for "ladder"."""
    ladder: str | None = None
    """For "ladder": the folder of your texts, one for each tau of the schedule, named by it, such as 0.67.md."""
    checkpoint: str = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
    """For "llmlingua2": Hub id or local directory."""
    device: str = "auto"
    """For "llmlingua2": "cuda", "mps" or "cpu"; "auto" takes the first of them that is there."""

    def __post_init__(self) -> None:
        require(
            (self.method in METHODS, "method", f"must be one of {', '.join(METHODS)}"),
            (all(self.keep), "keep", "must not hold an empty text"),
            (all(self.drop_first), "drop_first", "must not hold an empty text"),
            (self.ladder != "", "ladder", "must not be empty"),
            (bool(self.checkpoint.strip()), "checkpoint", "must not be empty"),
            (self.device in DEVICES, "device", f"must be one of {', '.join(DEVICES)}"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """`[lora]`: the adapter. The defaults are those of the published recipes: every linear layer, rank 16."""

    kind: str = "lora"
    """"lora", or "dora" (weight-decomposed, arXiv 2402.09353), which also learns each output's magnitude."""
    rank: int = 16
    """Rank of each update."""
    scale: float = 2.0
    """Factor on the update; mlx-lm's `scale`, PEFT's alpha / rank."""
    dropout: float = 0.0
    """Share of the update's inputs dropped in training."""
    layers: int | None = None
    """How many of the last layers get an adapter; all when left out."""
    linears: tuple[str, ...] = ()
    """Which linear layers of a layer get an adapter, such as "self_attn.q_proj"; all when left out."""

    def __post_init__(self) -> None:
        require(
            (self.kind in ("lora", "dora"), "kind", 'must be "lora" or "dora"'),
            (self.rank >= 1, "rank", "must be at least 1"),
            (self.scale > 0, "scale", "must be above 0"),
            (0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1"),
            (self.layers is None or self.layers >= 1, "layers", "must be at least 1; leave it out for all layers"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """`[training]`: one optimizer through all stages."""

    steps: int = 1000
    """Optimizer steps of the whole run; a schedule shares them out among its stages."""
    batch_size: int = 8
    """Rows in a step."""
    accumulate: int = 1
    """Parts in which a step's rows are computed one after the other: the same gradient in less memory."""
    recompute: bool = False
    """Gradient checkpointing: compute a layer's activations again backwards instead of keeping them."""
    precision: str | None = None
    """"float32" or "bfloat16" for what the base computes (slow on a CPU); when left out, float32 on a CPU and what the
    base's files hold elsewhere. The adapter, its gradients and the loss are float32 always."""
    compile: bool | None = None
    """Compile the step with mx.compile, once for each shape that batches have; on Metal and CUDA when left out."""
    optimizer: str = "adamw"
    """"adamw", "adam" or "adafactor"."""
    learning_rate: float = 1e-4
    """Peak of the learning-rate schedule."""
    lr_schedule: str = "cosine"
    """"cosine" or "linear" (to 0 over the whole run, not per stage) or "constant"; all after the warm-up."""
    warmup: float = 0.03
    """Share of the run's steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not for "adam"."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    validate_every: int = 100
    """Steps between two looks at the validation loss (one more at each stage's end)."""
    patience: int | None = None
    """End the last stage after this many looks without a new low and keep the lowest's adapter; never when left out."""
    checkpoint_every: int = 50
    """Steps between two checkpoints (one more at each stage's end)."""
    seed: int = 0
    """Seeds the adapter's start, the order of the rows, dropout and, with [retrieval] pool, the choice of the bank."""
    direct_drop: bool = True
    """Also train the arm direct_drop, the ablation: it costs more than the run itself."""

    def __post_init__(self) -> None:
        require(
            (self.steps >= 1, "steps", "must be at least 1"),
            (self.batch_size >= 1, "batch_size", "must be at least 1"),
            (self.learning_rate > 0, "learning_rate", "must be above 0"),
            (self.lr_schedule in LR_SCHEDULES, "lr_schedule", f"must be one of {', '.join(LR_SCHEDULES)}"),
            (self.optimizer in OPTIMIZERS, "optimizer", f"must be one of {', '.join(OPTIMIZERS)}"),
            (self.precision in (None, *PRECISIONS), "precision", f"must be one of {', '.join(PRECISIONS)}"),
            (self.accumulate >= 1, "accumulate", "must be at least 1"),
            (self.accumulate <= self.batch_size, "accumulate", "must not be above batch_size"),
            (self.optimizer != "adam" or not self.weight_decay, "weight_decay", 'must be 0 for "adam"; take "adamw"'),
            (self.patience is None or self.patience >= 1, "patience", "must be at least 1; leave it out for never"),
            (0 <= self.warmup < 1, "warmup", "must be at least 0 and below 1"),
            (self.weight_decay >= 0, "weight_decay", "must not be negative"),
            (self.clip > 0, "clip", "must be above 0"),
            (self.validate_every >= 1, "validate_every", "must be at least 1"),
            (self.checkpoint_every >= 1, "checkpoint_every", "must be at least 1"),
            (self.seed >= 0, "seed", "must not be negative"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """`[generation]`: how answers are made in an evaluation; always greedy."""

    max_tokens: int = 256
    """Longest answer, in tokens."""
    batch_size: int = 16
    """Answers generated side by side in MLX."""
    timed_requests: int = 20
    """How many test queries are timed in llama.cpp, one at a time."""

    def __post_init__(self) -> None:
        require(
            (self.max_tokens >= 1, "max_tokens", "must be at least 1"),
            (self.batch_size >= 1, "batch_size", "must be at least 1"),
            (self.timed_requests >= 1, "timed_requests", "must be at least 1"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`[export]`: what is shipped."""

    quant: str = "lossless"
    """What is served: "lossless" (the base in its own 4 bits and the adapter beside it), a type of llama.cpp's in which
    both are fused ("f16", "q8_0", "q4_k_m", ...), or "auto": the smallest that the gate lets through."""
    gate_rows: int = 64
    """Validation rows on which the gate compares what is served with what was trained."""
    accept_loss: bool = False
    """Ship what the gate refuses: its distance from the trained adapter is above a tenth of that without an adapter."""

    def __post_init__(self) -> None:
        require(
            (bool(self.quant.strip()), "quant", "must not be empty"),
            (self.gate_rows >= 1, "gate_rows", "must be at least 1"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """`[scoring]`: what the metric needs to know; a key that the metric does not read is an error."""

    database: str | None = None
    """For sqlite: the database that the queries run on, read-only; relative to the task folder."""
    command: tuple[str, ...] = ()
    """For command: the program and its arguments; it reads answers as JSON lines and prints a mark for each."""
    timeout: float | None = None
    """Seconds for an answer (python_tests; 10 when left out), a query (sqlite; 10) or the program (command; 600)."""
    memory_mb: int = 512
    """For python_tests: memory that an answer may take."""
    max_rows: int = 10_000
    """For sqlite: an answer that brings more rows is wrong."""

    def __post_init__(self) -> None:
        require(
            (self.database is None or bool(self.database.strip()), "database", "must not be empty"),
            (self.timeout is None or self.timeout > 0, "timeout", "must be more than 0"),
            (self.memory_mb >= 64, "memory_mb", "must be at least 64"),
            (self.max_rows >= 1, "max_rows", "must be at least 1"),
        )


TABLES: Mapping[str, type[Any]] = {
    "retrieval": Retrieval,
    "compression": Compression,
    "lora": Lora,
    "training": Training,
    "generation": Generation,
    "export": Export,
    "scoring": Scoring,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Top:
    """The keys of task.toml outside any table."""

    name: str
    model: str = STARTER
    template: str = "template.md"
    train: str = "train.jsonl"
    valid: str = "valid.jsonl"
    test: str = "test.jsonl"
    metric: str = "exact_match"

    def __post_init__(self) -> None:
        require(
            (bool(self.name.strip()), "name", "must not be empty"),
            (bool(self.model.strip()), "model", "must not be empty"),
            (self.metric in METRICS, "metric", f"must be one of {', '.join(METRICS)}"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One solved task of the pool."""

    id: str
    query: str
    """The last user turn."""
    answer: str
    """What the model should say to it."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (role, content) turns of a multi-turn record, oldest first."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the record holds, for the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A whole task, checked."""

    folder: Path
    name: str
    model: str
    template: str
    """The template's text."""
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str
    retrieval: Retrieval
    compression: Compression
    lora: Lora
    training: Training
    generation: Generation
    export: Export
    scoring: Scoring
    files: Mapping[str, Path]
    """Every file that was read: task, template, train, valid, test, and the metric's database where it has one."""


def load_task(folder: Path) -> Task:
    """Read and check a task folder (or its task.toml).

    Raises InputError for the only fault, or Faults with every fault of every file.
    """
    toml_path = folder if folder.is_file() else folder / "task.toml"
    folder = toml_path.parent
    if not toml_path.is_file():
        raise InputError(toml_path, "no such task", fix="`pilocal init DIR` makes one")
    values, text = read_toml(toml_path)
    faults: list[PilocalError] = []
    tables: dict[str, Any] = {}
    asked = set(values["scoring"]) if isinstance(values.get("scoring"), dict) else set[str]()
    for name, cls in TABLES.items():
        table = values.pop(name, {})
        if not isinstance(table, dict):
            line = line_of(text, name)
            faults.append(
                InputError(f"{toml_path}:{line}", f"{name} must be a table", got=table, fix=f"write [{name}]")
            )
            continue
        tables[name] = build(cls, table, faults, toml_path, text, name)
    names = {"name", "model", "template", "train", "valid", "test", "metric"}
    for key in [key for key, value in values.items() if isinstance(value, dict) and key not in names]:
        line = next((n for n, row in enumerate(text.splitlines(), 1) if row.strip().startswith(f"[{key}")), 1)
        faults.append(InputError(f"{toml_path}:{line}", f"unknown table [{key}]", fix=did_you_mean(key, TABLES)))
        del values[key]
    top = build(_Top, values, faults, toml_path, text)
    if top is None:
        raise_all(faults)
    assert top is not None
    scoring = tables.get("scoring") or Scoring()
    for name in asked & {key.name for key in fields(Scoring)} - set(METRICS[top.metric]):
        where = f"{toml_path}:{line_of(text, name, 'scoring')}"
        fix = f"it reads {', '.join(METRICS[top.metric]) or 'none'}; remove the key"
        faults.append(InputError(where, f"the metric {top.metric} does not read [scoring] {name}", fix=fix))
    files = {"task": toml_path, "template": folder / top.template}
    if scoring.database is not None:
        files["database"] = folder / scoring.database
    template = ""
    try:
        template = read_text(files["template"])
    except PilocalError as fault:
        faults.append(fault)
    splits: dict[str, tuple[Example, ...]] = {}
    for split, name in (("train", top.train), ("valid", top.valid), ("test", top.test)):
        files[split] = folder / name
        splits[split] = _read_examples(files[split], split, faults)
    _find_leaks(splits, files, faults)
    raise_all(faults)
    return Task(
        folder=folder,
        name=top.name,
        model=top.model,
        template=template.strip("\n"),
        metric=top.metric,
        files=files,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        retrieval=tables["retrieval"],
        compression=tables["compression"],
        lora=tables["lora"],
        training=tables["training"],
        generation=tables["generation"],
        export=tables["export"],
        scoring=tables["scoring"],
    )


def load_examples(path: Path, split: str = "train") -> tuple[Example, ...]:
    """Read a JSONL file of records; raises InputError or Faults, with line numbers."""
    faults: list[PilocalError] = []
    examples = _read_examples(path, split, faults)
    raise_all(faults)
    return examples


def _read_examples(path: Path, split: str, faults: list[PilocalError]) -> tuple[Example, ...]:
    try:
        text = read_text(path)
    except PilocalError as fault:
        faults.append(fault)
        return ()
    examples: list[Example] = []
    seen: dict[str, int] = {}
    before = len(faults)
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            example = _example(json.loads(line), f"{split}-{number}", f"{path}:{number}")
        except json.JSONDecodeError as error:
            fix = "one JSON object a line"
            faults.append(InputError(f"{path}:{number}", f"broken JSON: {error.msg}", got=line, fix=fix))
            continue
        except PilocalError as fault:
            faults.append(fault)
            continue
        if example.id in seen:
            fix = "make the ids unique or leave them out"
            faults.append(
                InputError(
                    f"{path}:{number}", f"duplicate id, first on line {seen[example.id]}", got=example.id, fix=fix
                )
            )
        seen.setdefault(example.id, number)
        examples.append(example)
    faults[before:] = _together(faults[before:])
    return tuple(examples)


def _together(faults: Sequence[PilocalError]) -> list[PilocalError]:
    """Return the faults with every field that several records lack as one, at the first of them."""
    lacking = Counter(fault.problem for fault in faults if fault.problem.startswith(LACKING))
    told: list[PilocalError] = []
    for fault in faults:
        count = lacking.get(fault.problem, 1)
        if count > 1:
            what = f"{fault.problem}, nor have {count - 1} after it"
            told.append(InputError(fault.where, what, got=fault.got, fix=fault.fix))
            lacking[fault.problem] = 0
        elif count:
            told.append(fault)
    return told


def _example(record: Any, default_id: str, where: str) -> Example:
    fix = 'a record is {"query": "...", "answer": "..."} or {"messages": [...]}'
    if not isinstance(record, dict):
        raise InputError(where, "not a JSON object", got=record, fix=fix)
    record = dict(record)
    identity = record.pop("id", default_id)
    if not isinstance(identity, str | int):
        raise InputError(where, "the id must be text or a number", got=identity, fix="correct it or leave it out")
    if "messages" in record:
        history = _turns(record.pop("messages"), where)
        if len(history) < 2 or [role for role, _ in history[-2:]] != ["user", "assistant"]:
            raise InputError(where, "messages must end with a user and an assistant turn", fix=fix)
        *earlier, (_, query), (_, answer) = history
    else:
        earlier = []
        for key in ("query", "answer"):
            if not isinstance(record.get(key), str) or not record[key].strip():
                raise InputError(where, f"{LACKING} {key}", got=record.get(key), fix=fix)
        query, answer = record.pop("query"), record.pop("answer")
    return Example(id=str(identity), query=query, answer=answer, history=tuple(earlier), extra=record)


def _turns(messages: Any, where: str) -> list[tuple[str, str]]:
    fix = 'messages is [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]'
    if not isinstance(messages, list):
        raise InputError(where, "messages must be a list", got=messages, fix=fix)
    turns = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role == "system":
            raise InputError(where, "a system message inside a record", fix="its text belongs in the template")
        if role not in ("user", "assistant") or not isinstance(content, str) or not content.strip():
            raise InputError(where, "a message without role or content", got=message, fix=fix)
        turns.append((role, content))
    return turns


def _find_leaks(splits: Mapping[str, Sequence[Example]], files: Mapping[str, Path], faults: list[PilocalError]) -> None:
    owner: dict[tuple[Any, ...], str] = {}
    for split in ("train", "valid", "test"):
        leaked = 0
        for example in splits[split]:
            key = (example.history, example.query.strip())
            if owner.setdefault(key, split) != split:
                leaked += 1
                first = f"{owner[key]}'s query {example.query!r}"
        if leaked:
            what = f"{leaked} queries also stand in an earlier split, the last being {first}"
            faults.append(
                InputError(files[split], what, fix="split by content, so that nothing is tested on what it saw")
            )
