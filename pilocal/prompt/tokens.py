"""From records to token rows, through the chat template: the only place where text becomes tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pilocal.errors import InputError
from pilocal.prompt.render import Message, Record

DATE_STRING = "26 Jul 2024"
"""Handed to chat templates that print a date (Llama 3.1's own default), so that a row is the same on every day."""

END_MARKS = (
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>", "<eos>", "[EOS]"),
    *("<end_of_turn>", "<|end|>", "<EOT>", "_<EOT>", "[EOT]", "<end_of_utterance>"),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "[e~["),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|file_sep|>"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
)
"""Added tokens at which llama.cpp ends an answer by their text, whatever a file says: ends of turns and of files."""


class Row(NamedTuple):
    """One record as tokens."""

    tokens: tuple[int, ...]
    """Prompt and completion."""
    offset: int
    """Index of the first completion token."""

    @property
    def completion(self) -> tuple[int, ...]:
        """The target tokens: the answer and the end of its turn."""
        return self.tokens[self.offset :]


def prompt_tokens(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Return the tokens of a chat up to where the model has to speak, with exactly one BOS."""
    return _apply(messages, tokenizer, add_generation_prompt=True)


def tokenize(record: Record, tokenizer: Any, where: str = "record") -> Row:
    """Return the row of a record; its completion is the answer and the end-of-turn token, nothing after it.

    Raises InputError when the chat template writes an answer differently inside a chat than after a prompt, so that
    no exact border between prompt and completion exists.
    """
    messages = record["messages"]
    whole = _apply(messages, tokenizer, add_generation_prompt=False)
    prompt = prompt_tokens(messages[:-1], tokenizer)
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        fix = "take a base whose chat template only appends"
        raise InputError(where, "the chat template rewrites the prompt once an answer follows", fix=fix)
    ends = end_tokens(tokenizer)
    stop = next((i for i in range(len(prompt), len(whole)) if whole[i] in ends), None)
    if stop is None:
        raise InputError(where, "the chat template does not end an answer", fix="take an instruct model as base")
    return Row(tuple(whole[: stop + 1]), len(prompt))


def end_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's EOS and the marks that llama.cpp stops at."""
    added = tokenizer.added_tokens_encoder
    ends = {added[mark] for mark in END_MARKS if mark in added}
    return frozenset(ends if tokenizer.eos_token_id is None else ends | {tokenizer.eos_token_id})


def token_counter(tokenizer: Any) -> Callable[[str], int]:
    """Return a function that counts the tokens of a plain text, without BOS."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return count


def chat_text(messages: Sequence[Message], tokenizer: Any, *, add_generation_prompt: bool = True) -> str:
    """Return a chat as the chat template writes it."""
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE_STRING
    )
    return text


def _apply(messages: Sequence[Message], tokenizer: Any, *, add_generation_prompt: bool) -> list[int]:
    text = chat_text(messages, tokenizer, add_generation_prompt=add_generation_prompt)
    # The template has written BOS already where the model wants one.
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens
