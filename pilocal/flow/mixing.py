"""The requests of `[training] mix`: unrelated ones, and the task's own behind the whole prompt."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.flow.context import Context
from pilocal.prompt.preamble import Request, bare
from pilocal.prompt.render import Record, render
from pilocal.prompt.tokens import Row, prompt_tokens
from pilocal.task import Example, Task
from pilocal.task.examples import load_queries
from pilocal.task.text import key_of
from pilocal.training.row_order import Stream

GENERAL = Path(__file__).with_name("general.jsonl")
"""The general requests."""

LONGEST = 64
"""Tokens of the base's answer that are looked at: long ones cost steps, and what changes shows early."""


def mix_limit(task: Task) -> int:
    """Return the longest answer to an unrelated request, in tokens."""
    return min(LONGEST, task.generation.max_tokens)


def mix_queries(task: Task) -> list[str]:
    """Return the unrelated requests, each once; of the general ones none that the task asks.

    Raises InputError or Faults for a file that cannot be used: one that is damaged, asks what the task asks, or has
    fewer requests than a step takes.
    """
    path = task.files.get("mix_queries", GENERAL)
    asked = {key_of(example.query) for split in (task.train, task.valid, task.test) for example in split}
    queries = {key_of(query): query for query in reversed(load_queries(path))}
    own = [query for key, query in queries.items() if key in asked]
    if own and path != GENERAL:
        got = f"{len(own)}, such as {own[-1]!r}"
        raise InputError(path, "requests that the task answers are not unrelated", got=got, fix="take them out")
    found = [query for key, query in queries.items() if key not in asked][::-1]
    if len(found) < task.training.mixed_rows:
        fix = "give more, or lower mix"
        what = f"mix = {task.training.mix:g} takes {task.training.mixed_rows} requests in every step"
        raise InputError(path, what, got=len(found), fix=fix)
    return found


def mix_records(task: Task, request: Request = bare) -> list[Record]:
    """Return the records that ask, each with an empty answer; raises as `mix_queries`.

    With mix_prompt, the unrelated requests are followed by at most as many of the training queries, evenly chosen, each
    behind the whole template.
    """
    records = [request(Example(id="", query=query, answer="")) for query in mix_queries(task)]
    if task.training.mix_prompt:
        chosen = task.train[:: math.ceil(len(task.train) / len(records))]
        records += [
            render(task.template, (), replace(example, answer="", unlearned=example.spoken)) for example in chosen
        ]
    return records


def mix_prompts(task: Task, base: Base, request: Request = bare) -> list[list[int]]:
    """Return the tokens of every request; raises InputError where one and its answer exceed the context."""
    prompts = [prompt_tokens(record["messages"][:-1], base.tokenizer) for record in mix_records(task, request)]
    room = base.context - mix_limit(task)
    longest = max(prompts, key=len)
    if len(longest) > room:
        own = prompts.index(longest) >= len(mix_queries(task))
        path = task.files["template"] if own else task.files.get("mix_queries", GENERAL)
        what, fix = f"a request has more than {room} tokens, which leaves no room for an answer", "shorten it"
        raise InputError(path, what, got=f"{len(longest)} tokens", fix=fix)
    return prompts


def unanswered(context: Context) -> tuple[Stream, ...]:
    """Return what every step has of the requests, before they are answered: rows as long as they may get.

    There are none if the task wants none. Raises as `mix_prompts`.
    """
    task = context.task
    if not task.training.mix:
        return ()
    prompts = mix_prompts(task, context.base, context.request)
    rows = [Row((*prompt, *prompt[-1:] * mix_limit(task)), len(prompt)) for prompt in prompts]
    return (Stream(rows, task.training.mixed_rows),)


def check_requests(context: Context) -> None:
    """Raise InputError for an unrelated request that exceeds the context after what stays, or with slots."""
    if not context.residue and not context.task.slots:
        return
    from pilocal.evaluate.retention import check_unrelated

    if context.task.training.mix:
        mix_prompts(context.task, context.base, context.request)
    check_unrelated(context.task, context.base, context.request)
