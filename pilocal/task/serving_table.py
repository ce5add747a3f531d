"""The table `[serving]` of task.toml."""

from __future__ import annotations

from dataclasses import dataclass

from pilocal.task.toml import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """`[serving]`: how the model is asked."""

    default_system: bool = True
    """Keep the system message that some chat templates (SmolLM2's, Qwen 2.5's) write where a chat has none. With false
    nothing is trained or served with it, so that every bare query is shorter; `pilocal check` says by how much."""
    json_schema: str | None = None
    """File with a JSON schema that every served answer to a bare query fits. `pilocal check` tells which training
    answers do not."""
    grammar: str | None = None
    """The same as a grammar in GBNF, llama.cpp's own form."""

    def __post_init__(self) -> None:
        both = self.json_schema is not None and self.grammar is not None
        require(
            (not both, "grammar", "an answer has one form; leave out json_schema or this"),
            (self.json_schema != "", "json_schema", "must not be empty"),
            (self.grammar != "", "grammar", "must not be empty"),
        )
