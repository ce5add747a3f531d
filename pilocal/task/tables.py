"""The tables of task.toml: every key, its default and what it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pilocal.task.export_table import Export
from pilocal.task.optimizers import OPTIMIZERS
from pilocal.task.serving_table import Serving
from pilocal.task.synth_table import Synth
from pilocal.task.toml import one_of, require
from pilocal.task.within import Within, within

STARTER = "starter"
"""The name of the bundled base model."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "exact_match": ("strip",),
    "contains": (),
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

PRECISIONS = ("float32", "bfloat16")

LR_SCHEDULES = ("cosine", "linear", "constant")

ANSWERS, DISTILL, GENPI = OBJECTIVES = ("answers", "distill", "genpi")
"""What a training lowers: the cross-entropy of the answers, the distance from the prompted base, or the cross-entropy
of the answers and that of the template."""

MOST_STEPS = 10_000_000

LARGEST_SEED = 2**63 - 1

LEAST_WINDOW = 64
"""Tokens of the shortest part into which a template is cut."""

FORWARD, REVERSE, JENSEN_SHANNON = DIVERGENCES = ("forward", "reverse", "js")
"""KL(teacher, student), KL(student, teacher), and the mean of both to their mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """`[retrieval]`: how shots are chosen."""

    similarity: str = "bleu"
    """"bleu" (between answers, as published) or "embedding" (cosine of sentence-transformers vectors). In validation
    and test, where the answer is not known, queries are compared: by character n-grams, or by the same embedding."""
    over: str = "answer"
    """What "embedding" compares in training: "answer" or "query"; BLEU compares answers."""
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Hub id or local directory, for similarity = "embedding"; owner/name@REVISION stays with one commit or tag."""
    pool: Annotated[float, Within(0, 1, above=True)] = 1.0
    """Share of the training examples that may be shots, drawn by [training] seed; all of them are trained on."""

    def __post_init__(self) -> None:
        answers = self.similarity != "bleu" or self.over == "answer"
        require(
            *within(self),
            one_of(self.similarity, "similarity", ("bleu", "embedding")),
            one_of(self.over, "over", ("answer", "query")),
            (answers, "over", 'must be "answer" with similarity = "bleu"'),
            (bool(self.embedding_model.strip()), "embedding_model", "must not be empty"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """`[compression]`: how the template gets shorter."""

    method: str = "rules"
    """The compressor: "rules" drops whole rules, sentences and words by priority; "ladder" takes your own texts;
    "surprisal" drops the words that the base could have guessed; "summary" has the base rewrite the template;
    "llmlingua2" drops the words that an LLMLingua-2 checkpoint marks as dispensable."""
    keep: tuple[str, ...] = ()
    """Texts (placeholders, code) to keep longest: parts that contain one are dropped last."""
    stay: tuple[str, ...] = ()
    """Texts of the template (sections, entries) that are never dropped: they stay in every request, also where tau is
    0; every compressor keeps them."""
    drop_first: tuple[str, ...] = ()
    """Texts to drop first: parts that contain one are dropped before anything else; not for "ladder"."""
    ladder: str | None = None
    """For "ladder": the folder of your texts, one per tau of the schedule, named after it, such as 0.67.md."""
    checkpoint: str = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
    """For "llmlingua2": Hub id or local directory; owner/name@REVISION stays with one commit or tag."""
    device: str = "auto"
    """For "llmlingua2": "cuda", "mps" or "cpu"; "auto" takes the first that is available."""

    def __post_init__(self) -> None:
        require(
            one_of(self.method, "method", METHODS),
            (all(self.keep), "keep", "must not hold an empty text"),
            (all(text.strip() for text in self.stay), "stay", "must not hold an empty text"),
            (all(self.drop_first), "drop_first", "must not hold an empty text"),
            (self.ladder != "", "ladder", "must not be empty"),
            (bool(self.checkpoint.strip()), "checkpoint", "must not be empty"),
            one_of(self.device, "device", DEVICES),
        )

    @property
    def protected(self) -> tuple[str, ...]:
        """The texts that are dropped last or never."""
        return self.keep + self.stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """`[lora]`: the adapter. The defaults are those of the published recipes: every linear layer, rank 16."""

    kind: str = "lora"
    """"lora", or "dora" (weight-decomposed, arXiv 2402.09353), which also learns each output's magnitude."""
    rank: Annotated[int, Within(1, 4096)] = 16
    """Rank of each update."""
    scale: Annotated[float, Within(0, 1000, above=True)] = 2.0
    """Factor on the update; mlx-lm's `scale`, PEFT's alpha / rank."""
    dropout: Annotated[float, Within(0, 1, below=True)] = 0.0
    """Share of the update's inputs dropped in training."""
    layers: Annotated[int | None, Within(1, 1000, otherwise="; leave it out for all layers")] = None
    """How many of the last layers get an adapter; by default all."""
    linears: tuple[str, ...] = ()
    """Which linear layers of a layer get an adapter, such as "self_attn.q_proj"; by default all."""

    def __post_init__(self) -> None:
        require(
            *within(self),
            one_of(self.kind, "kind", ("lora", "dora")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """`[training]`: one optimizer through all stages."""

    steps: Annotated[int, Within(1, MOST_STEPS)] = 1000
    """Optimizer steps of the whole run; the schedule divides them among its stages."""
    batch_size: Annotated[int, Within(1, 10_000)] = 8
    """Rows per step."""
    accumulate: Annotated[int, Within(1, 10_000)] = 1
    """Number of parts in which a step is computed, one after the other: the same gradient in less memory."""
    recompute: bool = False
    """Gradient checkpointing: compute a layer's activations again in the backward pass instead of keeping them."""
    precision: str | None = None
    """What the base computes in: "float32" or "bfloat16" (on a CPU slow in MLX, and in PyTorch without AMX). By
    default float32 on a CPU, elsewhere what the base's files hold. The adapter, its gradients and the loss are always
    float32."""
    compile: bool | None = None
    """Compile the step with mx.compile, once per shape of batch; by default on Metal and CUDA only."""
    objective: str = "answers"
    """"answers" lowers the cross-entropy of the answers; "distill" the distance from what the base says with the whole
    prompt, without an adapter: so the adapter learns what it knows beside the answers, too. "genpi" has the adapter
    also write the template from what it changes (GenPI, NAACL 2025)."""
    distill_top_k: Annotated[int, Within(1, 1_000_000)] = 20
    """For "distill": so many of the teacher's likeliest tokens are kept, all others are one."""
    distill_temperature: Annotated[float, Within(0, 100, above=True)] = 1.0
    """For "distill": divides teacher's and student's logits."""
    distill_divergence: str = "forward"
    """For "distill": "forward" is KL(teacher, student), "reverse" the other way round, "js" Jensen-Shannon's."""
    distill_answers: Annotated[float, Within(0, 1, below=True, otherwise='; 1 is "answers"')] = 0.0
    """For "distill": the weight of the answers' cross-entropy; the distance has the rest."""
    genpi_lambda: Annotated[float, Within(0, 1, above=True, below=True, otherwise='; 1 is "answers"')] = 0.7
    """For "genpi": the weight of the answers' cross-entropy in every step; the writing of the template has the rest."""
    genpi_window: Annotated[int, Within(LEAST_WINDOW, 1_000_000)] = 1024
    """For "genpi" and `restate`: the most tokens of the template that one row writes. A longer template is cut into
    overlapping parts, and nothing of it is dropped."""
    restate: Annotated[int, Within(0, 10_000)] = 0
    """How many times the template's entries are restated as rows of their own, in an order and a wording of each."""
    mix: Annotated[float, Within(0, 1, below=True)] = 0.0
    """Share of the rows of every step that are unrelated requests, in whole rows and at least one. They are learned as
    the bare base answers them, by the distance that the distill_* keys describe, so that the rest is not forgotten."""
    mix_queries: str | None = None
    """For `mix`: file of the unrelated requests, one {"query": "..."} per line; by default general ones of pilocal."""
    mix_prompt: bool = False
    """For `mix`: half of its requests are training queries behind the whole template. They are learned as the prompted
    base answers them, so that callers who still send the prompt are answered as before."""
    on_policy: bool = False
    """For "distill": after the last stage the student answers the training queries, and the training goes on with what
    the base says with the whole prompt about these answers, beside the answers of the task."""
    on_policy_steps: Annotated[int | None, Within(1, MOST_STEPS)] = None
    """Optimizer steps with the student's own answers; by default a quarter of `steps`."""
    optimizer: str = "adamw"
    """"adamw", "adam" or "adafactor"."""
    learning_rate: Annotated[float, Within(0, 10, above=True)] = 1e-4
    """Peak of the learning-rate schedule."""
    lr_schedule: str = "cosine"
    """"cosine" or "linear" (to 0 over the whole run, not per stage) or "constant"; all after the warm-up."""
    warmup: Annotated[float, Within(0, 1, below=True)] = 0.03
    """Share of the run's steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Within(0, 10)] = 0.0
    """Decoupled weight decay; not for "adam"."""
    clip: Annotated[float, Within(0, 1_000_000, above=True)] = 1.0
    """Largest global norm of the gradient."""
    validate_every: Annotated[int, Within(1, MOST_STEPS)] = 100
    """Steps between two measurements of the validation loss; one more at each stage's end."""
    patience: Annotated[int | None, Within(1, MOST_STEPS, otherwise="; leave it out for never")] = None
    """End the last stage after so many measurements without a new low, and keep the best adapter; by default never."""
    checkpoint_every: Annotated[int, Within(1, MOST_STEPS)] = 50
    """Steps between two checkpoints; one more at each stage's end."""
    seed: Annotated[int, Within(0, LARGEST_SEED)] = 0
    """Seed of the adapter's start, the order of rows, dropout and, with [retrieval] pool, the choice of examples."""
    direct_drop: bool = True
    """Also train the arm direct_drop, the ablation: trained with the whole prompt throughout, asked without it."""
    direct_drop_steps: Annotated[int | None, Within(1, MOST_STEPS)] = None
    """Optimizer steps of the ablation; by default those of the run, at several times its cost."""

    def __post_init__(self) -> None:
        require(
            *within(self),
            one_of(self.objective, "objective", OBJECTIVES),
            one_of(self.distill_divergence, "distill_divergence", DIVERGENCES),
            *self._template_rows(),
            *self._rows_beside(),
            one_of(self.lr_schedule, "lr_schedule", LR_SCHEDULES),
            one_of(self.optimizer, "optimizer", OPTIMIZERS),
            one_of(self.precision or PRECISIONS[0], "precision", PRECISIONS),
            (self.accumulate <= self.batch_size, "accumulate", "must not be above batch_size"),
            (self._may_decay, "weight_decay", f'must be 0 for "{self.optimizer}"; take "adamw"'),
            (self.direct_drop_steps is None or self.direct_drop, "direct_drop_steps", "needs direct_drop = true"),
        )

    @property
    def mixed_rows(self) -> int:
        """Unrelated requests in every step.

        >>> [Training(mix=share).mixed_rows for share in (0, 0.01, 0.2, 0.9)]
        [0, 1, 2, 7]
        """
        return min(self.batch_size - self.kinds, max(1, round(self.mix * self.batch_size))) if self.mix else 0

    @property
    def kinds(self) -> int:
        """Kinds of the task's own rows, of which every step has one each at least."""
        return 2 if self.objective == GENPI else 1

    def _template_rows(self) -> tuple[tuple[bool, str, str], ...]:
        return (
            (self.batch_size >= self.kinds or self.batch_size < 1, "batch_size", f'must be at least 2 for "{GENPI}"'),
        )

    def _rows_beside(self) -> tuple[tuple[bool, str, str], ...]:
        return (
            (
                not self.mix or self.batch_size > self.kinds,
                "mix",
                f"needs a batch_size of {self.kinds + 1} or more: a row of each kind",
            ),
            (not self.mix_prompt or self.mix > 0, "mix_prompt", "needs mix above 0"),
            (self.mix_queries is None or bool(self.mix_queries.strip()), "mix_queries", "must not be empty"),
            (not self.on_policy or self.objective == DISTILL, "on_policy", f'needs objective = "{DISTILL}"'),
            (self.on_policy_steps is None or self.on_policy, "on_policy_steps", "needs on_policy = true"),
        )

    @property
    def _may_decay(self) -> bool:
        optimizer = OPTIMIZERS.get(self.optimizer)
        return optimizer is None or optimizer.decays or not self.weight_decay


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """`[generation]`: how an evaluation generates answers; always greedily."""

    max_tokens: Annotated[int, Within(1, 1_000_000)] = 256
    """Longest answer, in tokens."""
    batch_size: Annotated[int, Within(1, 10_000)] = 16
    """Answers generated at once in MLX."""
    timed_requests: Annotated[int, Within(1, 100_000)] = 20
    """How many test queries are timed in llama.cpp, one at a time."""

    def __post_init__(self) -> None:
        require(
            *within(self),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`[evaluation]`: what the adapter changes elsewhere."""

    unrelated: str | None = None
    """File of your own prompts that have nothing to do with the task, one {"query": "..."} per line. With "answer" in
    a line (and other forms in "accepts"), base and adapter are scored, too. By default 40 general prompts."""
    unrelated_tokens: Annotated[int, Within(1, 100_000)] = 32
    """Longest answer of the base to such a prompt, in tokens."""

    def __post_init__(self) -> None:
        require(
            *within(self),
            (self.unrelated is None or bool(self.unrelated.strip()), "unrelated", "must not be empty"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """`[scoring]`: the metric's own settings; a key that the metric does not read is an error."""

    database: str | None = None
    """For sqlite: the database that the queries run on, read-only; relative to the task folder."""
    command: tuple[str, ...] = ()
    """For command: the program and its arguments; it reads one JSON object per line and prints one mark per line."""
    timeout: Annotated[float | None, Within(0, 86_400, above=True)] = None
    """Seconds for an answer (python_tests, by default 10), a query (sqlite, 10) or the program (command, 600)."""
    memory_mb: Annotated[int, Within(64, 1_048_576)] = 512
    """For python_tests: memory limit of an answer, in MiB."""
    max_rows: Annotated[int, Within(1, 100_000_000)] = 10_000
    """For sqlite: an answer that returns more rows is wrong."""
    strip: bool = True
    """For exact_match: leave white space at both ends of answer and reference out of the comparison; with false they
    are compared byte for byte."""

    def __post_init__(self) -> None:
        require(
            *within(self),
            (self.database is None or bool(self.database.strip()), "database", "must not be empty"),
        )


TABLES: Mapping[str, type[Any]] = {
    "retrieval": Retrieval,
    "compression": Compression,
    "lora": Lora,
    "training": Training,
    "generation": Generation,
    "export": Export,
    "evaluation": Evaluation,
    "serving": Serving,
    "scoring": Scoring,
    "synth": Synth,
}
