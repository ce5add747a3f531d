"""What each stage asks: one training example, with what the first stage has beyond it marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from pilocal.flow.check_page.marked import marked
from pilocal.flow.plan import Plan
from pilocal.flow.stage_prompts import StagePrompt
from pilocal.prompt.render import Message
from pilocal.report.markup import Html, box, join, section, tag, text

SYSTEM = "system"

TITLES = {SYSTEM: "template", "user": "user", "assistant": "assistant"}


def stage_prompts(plan: Plan, longest: int) -> Html:
    """Return every stage's prompt; texts of more than `longest` characters are cut."""
    if not plan.prompts:
        return Html()
    first = plan.prompts[0]
    said = (
        f"Training example {first.example}, on line {first.line} of its file, as every stage has it. "
        "What the first stage has beyond it is struck through, what is new is underlined."
    )
    shown = [_stage(plan, number, prompt, longest) for number, prompt in enumerate(plan.prompts)]
    last = plan.prompts[-1]
    exact = "The same prompt of the last stage as the base reads it, with what its chat template adds:"
    return section(
        "What each stage asks",
        tag("p", said),
        *shown,
        tag("h3", "What will be served"),
        tag("p", exact),
        tag("pre", text(last.text, longest), dir="auto"),
    )


def _stage(plan: Plan, number: int, prompt: StagePrompt, longest: int) -> Html:
    budget, first = plan.stages[number], plan.prompts[0]
    title = f"Stage {number}: tau {budget.tau:.2f}, {budget.shots} shots"
    share = f"{prompt.tokens:,} tokens" + (f" of {first.tokens:,}" if number else "")
    trained = "" if plan.needs[number] else " Nothing is trained in this stage."
    turns = [_turn(role, before, after, longest) for role, before, after in pairs(first.messages, prompt.messages)]
    held = box(tag("dl", join(*turns), kind="said turns"), title, "box tall")
    return join(tag("h3", title), tag("p", f"The prompt has {share}.{trained}", kind="note"), held)


def pairs(first: Sequence[Message], later: Sequence[Message]) -> Iterator[tuple[str, str, str]]:
    """Yield (role, text in the first stage, text now) of every turn of either; a text is empty where there is none.

    The template is the first turn, where there is one; shots go from the front, so that turns are told from their end.
    """
    before, after = _system(first), _system(later)
    if before or after:
        yield SYSTEM, before, after
    turns = [[message for message in messages if message["role"] != SYSTEM] for messages in (first, later)]
    both = list(zip_longest(*(reversed(some) for some in turns)))
    for was, now in reversed(both):
        yield (now or was)["role"], was["content"] if was else "", now["content"] if now else ""


def _system(messages: Sequence[Message]) -> str:
    return messages[0]["content"] if messages and messages[0]["role"] == SYSTEM else ""


def _turn(role: str, before: str, after: str, longest: int) -> Html:
    gone = [] if after else [tag("span", "(gone)")]
    return join(tag("dt", TITLES.get(role, role), *gone), tag("dd", marked(before, after, longest), dir="auto"))
