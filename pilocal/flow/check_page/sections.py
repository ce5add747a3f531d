"""The parts of a check's page, but for the prompts."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from pilocal.chart import Bars, bars_chart
from pilocal.flow.gap import EntryFacts, Gap, draw_census
from pilocal.flow.plan import Plan
from pilocal.flow.saving import Prices
from pilocal.flow.verdicts import GIB, Verdict, further_hints, gigabytes, verdicts
from pilocal.report.figures import clock, figure
from pilocal.report.markup import Html, Long, command, join, plain, section, table, tag, text
from pilocal.report.pictures import picture
from pilocal.training.backend import MLX
from pilocal.training.memory import Need

SHOWN = 300
"""Entries of the template, and lines on the data."""

LONGEST = 160
"""Characters of an entry that are shown."""

DRAWN = 30
"""Entries in the picture of the census."""


def answers(plan: Plan, prices: Prices | None) -> Html:
    """Return the answer to each question, with its reason."""
    boxes = [_answer(verdict) for verdict in verdicts(plan, prices)]
    return section("In short", tag("dl", join(*boxes), kind="figures wide"))


def _answer(verdict: Verdict) -> Html:
    kind = {True: "value good", False: "value bad", None: "value"}[verdict.good]
    said = tag("dd", verdict.answer, kind=kind), tag("dd", verdict.why, kind="more")
    return tag("div", tag("dt", verdict.question), *said)


def savings(plan: Plan, prices: Prices | None) -> Html:
    """Return what a request takes now and in the end."""
    rows = [
        (name, figure(before), figure(after), f"{1 - after / before:.0%}", "never" if count is None else f"{count:,}")
        for name, before, after, count in plan.saving.lines(prices)
    ]
    head = ("of a request", "now", "in the end", "less", "paid after, requests")
    read = f"The training reads {plan.saving.trained:,} tokens. It is paid for once requests have saved as much."
    notes = [read]
    if plan.saving.first_ms is None:
        notes.append("Milliseconds were not measured: they are for a base in GGUF, or one that was exported before.")
    if prices is None:
        notes.append("With --price, money per million prompt tokens, it is told in money as well.")
    shown = [tag("p", note, kind="note") for note in notes]
    return section("What a request saves", table("Mean over the training rows", head, rows), *shown)


def stages(plan: Plan) -> Html:
    """Return what every stage needs and takes."""
    rows = []
    for number, (stage, need) in enumerate(zip(plan.stages, plan.needs, strict=True)):
        costs = (f"{need.peak / GIB:.2f}", _last_cell(plan, need)) if need else ("", "")
        rows.append(
            (
                f"{number}",
                f"{stage.tau:.2f}",
                f"{stage.shots}",
                f"{stage.steps:,}",
                f"{stage.template_tokens:,}",
                f"{stage.ratio:.2f}",
                figure(stage.prompt_tokens),
                f"{stage.longest_row:,}",
                *costs,
            )
        )
    last = "time" if plan.machine is None else f"fits into {gigabytes(plan.machine)}"
    head = ("stage", "tau", "shots", "steps", "template", "kept", "prompt, mean", "longest row", "peak, GiB", last)
    note = (
        f"Template, prompt and row in tokens; kept: the share of the template. The base takes {plan.context:,} tokens."
    )
    working = [f"stage {number}: {stage.working:.0%}" for number, stage in enumerate(plan.stages) if stage.working]
    faded = [f"The working before the answers, {', '.join(working)}."] if working else []
    weights = [f"In memory {plan.weights}."] if plan.weights else []
    shown = [tag("p", line, kind="note") for line in (note, *faded, *weights)]
    return section("Stage by stage", _tokens(plan), table("What each stage needs and takes", head, rows), *shown)


def _last_cell(plan: Plan, need: Need) -> str:
    if plan.machine is not None:
        return "yes" if need.peak <= plan.memory else "no"
    return "" if need.seconds is None else clock(need.seconds)


def _tokens(plan: Plan) -> Html:
    names = [f"stage {number}" for number in range(len(plan.stages))]
    bars = Bars(title="mean over the training rows", names=names, values=[each.prompt_tokens for each in plan.stages])

    def draw(path: Path) -> None:
        bars_chart(path, [bars], title="Prompt tokens by stage", x="tokens")

    said = ", ".join(f"{name} {figure(value)}" for name, value in zip(names, bars.values, strict=True))
    return picture("The prompt, stage by stage.", draw, name="tokens", says=f"Prompt tokens by stage: {said}.")


def works(plan: Plan, prices: Prices | None) -> Html:
    """Return whether the base can use the prompt, and what each entry of the template is worth to it."""
    (verdict,) = [each for each in verdicts(plan, prices) if each.about == "can work"]
    said = tag("p", f"{verdict.answer[:1].upper()}{verdict.answer[1:]}: {verdict.why}.")
    if plan.gap is None:
        return section(verdict.question, said, _missing(plan))
    looked = f"{plan.gap.examples} validation examples were looked at, each with the whole prompt and bare."
    return section(verdict.question, said, tag("p", looked, kind="note"), *_census(plan.gap))


def _missing(plan: Plan) -> Html:
    line = command(shlex.join(_check(plan, "--gap")))
    return tag("p", line, " asks the base, and takes every entry of the template out in turn.", kind="missing")


def _census(gap: Gap) -> list[Html]:
    order = sorted(gap.entries, key=lambda facts: (facts.queries != 0, -abs(facts.nats)))
    if not order:
        return []
    names = [(plain(facts.entry), facts) for facts in order[:DRAWN]]
    drawn = [EntryFacts(entry=name, nats=facts.nats, queries=facts.queries) for name, facts in names]
    title = "What each entry of the template is worth to the base"
    some = Gap(examples=gap.examples, full=gap.full, bare=gap.bare, entries=tuple(drawn))
    caption = f"{title}. An entry that no training query names will not be learned."
    says = f"{title}; the figures are in the table of this section."
    rows = [
        (
            Long(text(facts.entry, LONGEST)),
            "" if facts.queries is None else f"{facts.queries:,}",
            f"{facts.nats:+.2f}",
        )
        for facts in order[:SHOWN]
    ]
    head = ("entry", "training queries", "worth, nats an answer")
    return [
        picture(caption, partial(draw_census, some, title=title), name="census", says=says),
        table("Entries, those that no training query names first, then by their worth", head, rows, tall=True),
        _more(len(order) - len(rows), "entries"),
    ]


def data(plan: Plan) -> Html:
    """Return how many rows there are, and what is odd about the files."""
    rows = [(split, f"{count:,}") for split, count in (plan.about.rows if plan.about else {}).items()]
    shown = [tag("li", warning) for warning in plan.warnings[:SHOWN]]
    said = "What is odd, each with its file:" if shown else "Nothing is odd about the task's files."
    more = _more(len(plan.warnings) - len(shown), "lines")
    listed = tag("ul", join(*shown)) if shown else Html()
    return section("The data", table("Rows", ("split", "rows"), rows), tag("p", said), listed, more)


def _more(count: int, what: str) -> Html:
    return tag("p", f"{count:,} more {what} are not shown.", kind="note") if count > 0 else Html()


def hints(plan: Plan) -> Html:
    """Return what could be had for less."""
    lines = [tag("li", hint) for hint in further_hints(plan)]
    return section("Hints", tag("ul", join(*lines))) if lines else Html()


def onward(plan: Plan) -> Html:
    """Return the commands that make the page again and that run the task."""
    machine = [] if plan.machine is None else ["--machine", gigabytes(plan.machine).replace(" ", "")]
    lines = [("This page", _check(plan, *machine, "--html", "check.html")), ("The run", _command(plan, "run"))]
    made = [join(tag("h3", name), tag("pre", command(shlex.join(words)))) for name, words in lines]
    return section("From here", *made)


def _check(plan: Plan, *more: str) -> list[str]:
    return [*_command(plan, "check"), *more]


def _command(plan: Plan, verb: str) -> list[str]:
    about = plan.about
    if about is None:
        return ["pilocal", verb, "TASK"]
    chosen = ["--schedule", str(about.schedule)] if about.schedule else []
    backend = ["--backend", about.backend] if about.backend != MLX else []
    return ["pilocal", verb, str(about.task), *chosen, *backend]
