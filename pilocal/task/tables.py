"""The tables of task.toml: every key, its default and what it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pilocal.task.toml import require

STARTER = "starter"
"""The name of the bundled base model."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "exact_match": (),
    "bleu": (),
    "python_tests": ("timeout", "memory_mb"),
    "sqlite": ("database", "timeout", "max_rows"),
    "command": ("command", "timeout"),
}
"""The metrics that score an answer, each with the keys of `[scoring]` that it reads.

Each is a file of the same name in pilocal/evaluate/scoring.
"""

METHODS = ("rules", "ladder", "surprisal", "summary", "llmlingua2")
"""The compressors."""

DEVICES = ("auto", "cuda", "mps", "cpu")

LOSSLESS = "lossless"
"""The type of the served file that loses nothing: the base in its own 4 bits, the adapter beside it."""

AUTO = "auto"
"""The smallest type that the gate lets through."""

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
