"""The arms: every way of answering that pilocal compares, known once, with its name in every file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Variant(StrEnum):
    """Which weights answer."""

    BASE = "base"
    """The base as it is."""
    ADAPTER = "adapter"
    """The base with the internalized adapter."""
    DIRECT_DROP = "direct_drop"
    """The base with the ablation's adapter."""
    SHIPPED = "shipped"
    """What llama.cpp serves: the base and the adapter, in one GGUF file or in two."""


class Prompt(StrEnum):
    """What a query is asked with."""

    FULL = "full"
    """Template, shots and query."""
    BARE = "bare"
    """The query alone."""


class Program(StrEnum):
    """What computes the answers."""

    MLX = "mlx"
    LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of answering."""

    name: str
    """Its key in metrics.json, answered.json and answers.jsonl."""
    title: str
    """Its name in charts and sentences."""
    short: str
    """Its name in tables of 80 columns; at most 19 characters."""
    variant: Variant
    prompt: Prompt
    program: Program
    """The program whose answers are scored."""
    timed: bool = True
    """Whether its requests are timed, always in llama.cpp."""
    warm: bool = False
    """Whether the KV cache already holds the prompt's prefix."""
    optional: bool = False
    """Whether an evaluation may do without it."""
    compare: str = ""
    """Its name in `pilocal compare` and compare.json; empty if it is not an arm there."""
    bench: str = ""
    """Its key in bench.json; empty if `pilocal bench` does not time it."""
    serve: str = ""
    """Its name in X-Pilocal-Arm, the request log and /metrics; empty if `pilocal serve` does not answer this way."""


BASE_QUERY_ONLY = Arm(
    name="base_query_only",
    title="base, bare query",
    short="base, bare query",
    variant=Variant.BASE,
    prompt=Prompt.BARE,
    program=Program.MLX,
    compare="query-only",
)
BASE_FULL_PROMPT = Arm(
    name="base_full_prompt",
    title="base, full prompt",
    short="base, full prompt",
    variant=Variant.BASE,
    prompt=Prompt.FULL,
    program=Program.MLX,
    compare="full-prompt",
    bench="full_prompt_cold",
    serve="full-prompt",
)
BASE_FULL_PROMPT_CACHED = Arm(
    name="base_full_prompt_cached",
    title="base, full prompt, warm prefix cache",
    short="base, warm prefix",
    variant=Variant.BASE,
    prompt=Prompt.FULL,
    program=Program.LLAMA_CPP,
    warm=True,
    compare="full-prompt-cached",
    bench="full_prompt_warm",
)
DIRECT_DROP = Arm(
    name="direct_drop",
    title="trained with the full prompt, asked without",
    short="direct drop",
    variant=Variant.DIRECT_DROP,
    prompt=Prompt.BARE,
    program=Program.MLX,
    timed=False,
    optional=True,
)
INTERNALIZED = Arm(
    name="internalized",
    title="internalized, bare query (MLX)",
    short="internalized (MLX)",
    variant=Variant.ADAPTER,
    prompt=Prompt.BARE,
    program=Program.MLX,
    timed=False,
)
SHIPPED = Arm(
    name="shipped",
    title="shipped, bare query (llama.cpp)",
    short="shipped (llama.cpp)",
    variant=Variant.SHIPPED,
    prompt=Prompt.BARE,
    program=Program.LLAMA_CPP,
    bench="bare_query",
    serve="internalized",
)

ARMS = (BASE_QUERY_ONLY, BASE_FULL_PROMPT, BASE_FULL_PROMPT_CACHED, DIRECT_DROP, INTERNALIZED, SHIPPED)
"""Every arm, in the order of the table."""

BY_NAME = {arm.name: arm for arm in ARMS}
"""Every arm by its key in metrics.json."""

BY_COMPARE = {arm.compare: arm for arm in ARMS if arm.compare}
"""The base's arms in `pilocal compare`, by their names there."""

BY_BENCH = {arm.bench: arm for arm in ARMS if arm.bench}
"""The arms that `pilocal bench` times, by their keys in bench.json."""
