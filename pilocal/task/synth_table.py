"""The table of task.toml that `pilocal synth` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pilocal.task.toml import one_of, require
from pilocal.task.within import Within, within

SIMILARITIES = ("ngrams", "embedding")

WHOLE, ENTRIES = PROMPTS = ("template", "entries")
"""What the base answers after: the whole template, or what a query asks for alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synth:
    """`[synth]`: training data from the template, by `pilocal synth`."""

    per_entry: Annotated[int, Within(1, 100_000)] = 10
    """Queries that each entry of the template gets at least, those of the solved examples included."""
    labelled: str | None = None
    """File of the solved examples that there are. By default `train`, or train.jsonl where `train` is what synth
    writes; it need not exist."""
    queries: str = "queries.jsonl"
    """File of your own queries without answers, one {"query": "..."} per line; it need not exist. A record may name the
    entry of the template that it asks for, as the template has it: {"query": "...", "entry": "..."}."""
    generator: str | None = None
    """Who writes queries for entries that no query names: "base", another model as for `model`, or the address of an
    OpenAI-compatible endpoint, up to /v1, whose key is in PILOCAL_API_KEY. By default nobody."""
    generator_model: str = ""
    """For an endpoint: the model that it is asked for."""
    budget: Annotated[int, Within(1, 100_000_000)] = 1000
    """For an endpoint: requests that may be sent, those that fail included."""
    budget_tokens: Annotated[int | None, Within(1, 10**12)] = None
    """For an endpoint: tokens that it may count, of requests and answers together; by default no limit."""
    similarity: str = "ngrams"
    """How a generated query is found to be nearly another: "ngrams" (of characters), or "embedding", which compares
    embeddings of [retrieval] embedding_model as well."""
    temperature: Annotated[float, Within(0, 5)] = 0.0
    """Of the answers: 0 takes the likeliest token each time; above it, tokens are drawn by `seed`."""
    prompt: str = WHOLE
    """What the base answers after: "template", the whole of it, or "entries", where lists keep the entries that the
    query names and no others. A small base finds one fact more surely than one among forty."""
    agreement: bool = False
    """Learn an answer only if the base says the same after the other of both prompts: by the task's metric if it can
    compare two answers, else word for word."""
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    """Draws the new queries, the answers if there is a temperature, and the words of reasons."""
    turns: Annotated[int, Within(1, 100)] = 1
    """The most answers of a conversation. Above 1 the base also plays the user, who goes on where an answer ends; it
    sees itself as the assistant and the answers as the user's messages."""
    reasons: bool = False
    """Also write into each record what the base answers with the template (`with_prompt`) and without it
    (`without_prompt`), and why it has to change (`reason`), for [training] objective = "genpi"."""
    reasons_temperature: Annotated[float, Within(0, 5)] = 0.7
    """At which the reasons are written; 0 takes the likeliest words."""

    def __post_init__(self) -> None:
        require(
            *within(self),
            (self.labelled is None or bool(self.labelled.strip()), "labelled", "must not be empty"),
            (bool(self.queries.strip()), "queries", "must not be empty"),
            (self.generator is None or bool(self.generator.strip()), "generator", "must not be empty"),
            (not self.is_endpoint or bool(self.generator_model), "generator_model", "must name the endpoint's model"),
            one_of(self.similarity, "similarity", SIMILARITIES),
            one_of(self.prompt, "prompt", PROMPTS),
        )

    @property
    def is_endpoint(self) -> bool:
        """Whether the generator is an address."""
        return (self.generator or "").startswith(("http://", "https://"))
