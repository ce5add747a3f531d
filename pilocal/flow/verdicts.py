"""What a check answers, each in a few words and a sentence: the first lines on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pilocal.flow.plan import Plan
from pilocal.flow.saving import MONEY, Prices, Saving
from pilocal.report.figures import clock, figure
from pilocal.task.text import counted

GIB = 2**30

NOT_KNOWN = "not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One answer."""

    about: str
    """The question in a word or two."""
    question: str
    answer: str
    why: str
    good: bool | None = None
    """None where it is neither good nor bad, or not known."""


def verdicts(plan: Plan, prices: Prices | None) -> list[Verdict]:
    """Return what the user wants to know before a training."""
    saved = plan.saving
    return [_saves(saved), _pays(saved, prices), _fits(plan), _takes(plan), _works(plan), _data(plan)]


def _saves(saving: Saving) -> Verdict:
    less = 1 - saving.after / saving.before
    return Verdict(
        about="saves",
        question="What will be saved?",
        answer=f"{less:.0%} of the prompt tokens" if less > 0 else "nothing",
        why=f"{figure(saving.after)} in every request instead of {figure(saving.before)}",
        good=less > 0,
    )


def _pays(saving: Saving, prices: Prices | None) -> Verdict:
    why = ["counted in tokens"]
    for name, *_, count in saving.lines(prices)[1:]:
        if name == MONEY or saving.seconds is not None:
            unit = "in money" if name == MONEY else "in time here"
            why.append(f"{unit} {_after(count)}")
    return Verdict(
        about="pays",
        question="When does it pay for itself?",
        answer=_after(saving.requests) + (" requests" if saving.requests else ""),
        why="; ".join(why),
        good=saving.requests is not None,
    )


def _after(count: int | None) -> str:
    return "never" if count is None else f"after {count:,}"


def _fits(plan: Plan) -> Verdict:
    may = "that the training may use"
    if plan.machine is not None:
        may = f"that Metal lends a training on a Mac with {gigabytes(plan.machine)}"
    why = f"{plan.peak / GIB:.2f} GiB at the peak, of {plan.memory / GIB:.1f} GiB {may}"
    return Verdict(
        about="fits",
        question="Does it fit into the memory?",
        answer="no" if plan.advice else "yes",
        why=f"{why}; {plan.advice}" if plan.advice else why,
        good=not plan.advice,
    )


def _takes(plan: Plan) -> Verdict:
    saving, untimed = plan.saving, "no step was timed here"
    if plan.machine is not None:
        untimed = "only a step on the machine itself tells"
    why = untimed if saving.seconds is None else "the training, told from one step that was taken here"
    return Verdict(
        about="takes",
        question="How long will it take?",
        answer=NOT_KNOWN if saving.seconds is None else clock(saving.seconds),
        why=f"{why}; export and evaluation come on top",
    )


def _works(plan: Plan) -> Verdict:
    gap, question = plan.gap, "Can it work?"
    if gap is None:
        how = "--gap asks it" if plan.machine is None else "--gap, without --machine, asks it"
        why = f"the base was not asked what the prompt is worth to it; {how}"
        return Verdict(about="can work", question=question, answer=NOT_KNOWN, why=why)
    costs = f"the answers cost the base {gap.full:.2f} nats per token with the prompt, {gap.bare:.2f} without"
    return Verdict(
        about="can work",
        question=question,
        answer="hardly" if gap.doubts else "yes",
        why="; ".join([*gap.doubts, costs]),
        good=not gap.doubts,
    )


def _data(plan: Plan) -> Verdict:
    count, rows = len(plan.warnings), plan.about.rows if plan.about else {}
    return Verdict(
        about="data",
        question="What is wrong with the data?",
        answer=f"{counted(count, 'thing')} to look at" if count else "nothing odd",
        why=", ".join(f"{number:,} {split}" for split, number in rows.items()) + " rows",
        good=not count,
    )


def gigabytes(machine: int) -> str:
    """Return bytes of unified memory as Apple sells them.

    >>> gigabytes(32 << 30)
    '32 GB'
    """
    return f"{machine / GIB:g} GB"


def further_hints(plan: Plan) -> Iterator[str]:
    """Yield the hints that no answer has said."""
    said = plan.gap.doubts if plan.gap else []
    yield from (hint for hint in plan.hints if hint not in said)
