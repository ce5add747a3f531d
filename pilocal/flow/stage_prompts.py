"""What one example is asked in every stage, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pilocal.flow.context import Context
from pilocal.flow.rendering import RenderedStage
from pilocal.prompt.render import Message, Record
from pilocal.prompt.tokens import prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePrompt:
    """One training example as a stage has it."""

    example: str
    """Its id."""
    line: int
    """Its line in the training file."""
    messages: tuple[Message, ...]
    """The template, the shots, the query and the answer."""
    tokens: int
    """Of all but the answer, with what the chat template adds."""
    text: str
    """The same as the base reads it, special tokens written out."""


def one_prompt(context: Context, stages: Sequence[RenderedStage]) -> tuple[StagePrompt, ...]:
    """Return the training example whose prompt is of middle length, as every stage has it."""
    first = stages[0].records["train"]
    chosen = sorted(range(len(first)), key=lambda number: _length(first[number]))[len(first) // 2]
    example, tokenizer = context.task.train[chosen], context.base.tokenizer
    found = []
    for stage in stages:
        messages = tuple(stage.records["train"][chosen]["messages"])
        tokens = prompt_tokens(messages[:-1], tokenizer)
        text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        said = {"messages": messages, "tokens": len(tokens), "text": text}
        found.append(StagePrompt(example=example.id, line=example.line, **said))
    return tuple(found)


def _length(record: Record) -> int:
    return sum(len(message["content"]) for message in record["messages"])
