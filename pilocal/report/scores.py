"""The score over prompt tokens, what is saved, and the arms side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.chart import Point, points_chart
from pilocal.evaluate.arms import BASE_FULL_PROMPT, BY_COMPARE, BY_NAME, INTERNALIZED, SHIPPED
from pilocal.evaluate.score import break_even
from pilocal.report.figures import between, figure, percent, score, times
from pilocal.report.markup import Html, Long, command, join, missing, plain, section, table, tag
from pilocal.report.pictures import picture, picture_of
from pilocal.report.record import Record
from pilocal.task.text import counted

DRAWN = 14
"""Arms in the first picture."""

MILLION = 1_000_000

Rows = Sequence[Mapping[str, Any]]


def scores(record: Record) -> Html:
    """Return the picture of every arm's score over its prompt tokens."""
    title = "Score over prompt tokens"
    arms = _arms(record)
    if not arms:
        line = record.compare_command if record.is_comparison else record.command("run")
        return section(title, missing("Nothing has been evaluated here yet.", line))
    names = [arm["title"] for arm in arms]
    ends = (BASE_FULL_PROMPT.title, SHIPPED.title)
    arrow = (names.index(ends[0]), names.index(ends[1])) if set(ends) <= set(names) else None
    points = [
        Point(name=plain(arm["title"]), x=arm["prompt_tokens"], y=arm["score"], low=low, high=high)
        for arm in arms
        for low, high in (arm["interval"],)
    ]
    found = record.metrics or record.comparison

    def draw(path: Path) -> None:
        heading = f"{found['metric']} on {found['n']:,} test queries, with 95% intervals"
        points_chart(path, points, title=heading, x="prompt tokens per request", y=found["metric"], arrow=arrow)

    said = "; ".join(f"{one.name}: {figure(one.x)} tokens, {score(one.y)}" for one in points)
    caption = "Further left is cheaper, further up is better. "
    caption += "The arrow leads from what you have today to what is served." if arrow else "Each point is one arm."
    return section(title, picture(caption, draw, name="scores", says=f"Scores over prompt tokens. {said}.", fits=True))


def _arms(record: Record) -> list[Mapping[str, Any]]:
    """Return every arm with its title: the run's own, then those that only the comparison has."""
    own = [{"title": BY_NAME[name].title, **arm} for name, arm in record.metrics.get("arms", {}).items()]
    compared: Rows = record.comparison.get("arms", ())
    known = BY_COMPARE if own else {}
    return [*own, *(arm for arm in compared if arm["arm"] not in known)][:DRAWN]


def savings(record: Record, price: float | None) -> Html:
    """Return what a request no longer costs: tokens, time and, with a price for a million prompt tokens, money."""
    metrics = record.metrics
    if not metrics:
        return Html()
    arms = metrics["arms"]
    full, shipped = arms[BASE_FULL_PROMPT.name], arms[SHIPPED.name]
    saved = full["prompt_tokens"] - shipped["prompt_tokens"]
    pi_score = metrics["pi_score"]
    tiles = [
        (
            "Prompt tokens per request",
            figure(shipped["prompt_tokens"]),
            f"instead of {figure(full['prompt_tokens'])}: {percent(metrics['prompt_token_reduction'])} fewer",
        ),
        (
            "Score of what is served",
            score(shipped["score"]),
            f"{score(full['score'])} with the full prompt; PI score {score(pi_score) or 'undefined'}",
        ),
        (
            "Speed of an answer",
            times(metrics["speedup"]),
            f"against a warm prefix cache {times(metrics['speedup_cached'])}",
        ),
        ("Tokens saved", figure(saved), f"per request; {figure(saved * MILLION / 1e6)} million per million requests"),
    ]
    if price is not None:
        rate = f"at {price:g} per million prompt tokens, in the currency of that price"
        tiles.append(("Money saved", f"{saved * price:,.2f}", f"per million requests, {rate}"))
    made = [
        tag("div", tag("dt", name), tag("dd", value, kind="value"), tag("dd", more, kind="more"))
        for name, value, more in tiles
    ]
    notes = [tag("p", _pays(record, saved, full, shipped), kind="note")]
    if price is None:
        how = command(record.command_on_run("report", "--price", "0.15"))
        notes.append(tag("p", "In money, by the price of a million prompt tokens: ", how, kind="note"))
    return section("What it saves", tag("dl", join(*made), kind="figures"), *notes)


def _pays(record: Record, saved: float, full: Mapping[str, Any], shipped: Mapping[str, Any]) -> str:
    lines = [line for part in record.parts for line in part.lines]
    if not lines:
        return "The logs of the training are gone, so nobody can say when it has paid for itself."
    seconds, tokens = sum(line.seconds for line in lines), sum(line.tokens for line in lines)
    requests = break_even(tokens, saved)
    said = f"The training read {tokens:,} tokens"
    said += f", as many as {counted(requests, 'request saves', 'requests save')}." if requests else "."
    spared = break_even(seconds, (full["latency_ms"] - shipped["latency_ms"]) / 1000)
    later = f"after {counted(spared, 'request')}" if spared else "never"
    return f"{said} Its {seconds:,.0f} seconds have paid for themselves {later}, against the full prompt read anew."


HEAD = ("arm", "score", "95% interval", "prompt tokens", "first token, ms", "answer, ms")


def arms(record: Record) -> Html:
    """Return the run's arms as a table, and what follows from them."""
    metrics = record.metrics
    if not metrics:
        return Html()
    rows = [(BY_NAME[name].title, *_cells(arm)) for name, arm in metrics["arms"].items()]
    notes = ["Times are medians in llama.cpp, one request at a time; arms without times are not timed."]
    if "same_answers" in metrics:
        notes.append(f"llama.cpp gives {percent(metrics['same_answers'])} of the answers exactly as the trainer does.")
    if stays := metrics.get("residue"):
        what = f"{counted(stays['template_tokens'], 'token')} of the template and {counted(stays['shots'], 'shot')}"
        notes.append(f"The bare query comes after {what} that stay in every request.")
    if stood_in := [arm["llama_cpp_kl"] for arm in metrics["arms"].values() if "llama_cpp_kl" in arm]:
        notes.append(f"For the base llama.cpp answered, {max(stood_in):.2g} nats per token from the trainer's program.")
    if written := metrics.get("prompt_generation"):
        scored = f"{score(written['f1'])}; the base's {score(written['base_f1'])}"
        notes.append(f"Token F1 of the template as the adapter writes it, by entry: {scored}.")
    if confidence := metrics.get("confidence"):
        notes.append(_falling_back(confidence))
    caption = f"{metrics['metric']} on {counted(metrics['n'], 'test query', 'test queries')}"
    return section("The arms", table(caption, HEAD, rows), *(tag("p", note, kind="note") for note in notes))


def _cells(arm: Mapping[str, Any]) -> tuple[str, ...]:
    costs = (figure(arm.get(name)) for name in ("prompt_tokens", "ttft_ms", "latency_ms"))
    return score(arm["score"]), between(arm["interval"]), *costs


def _falling_back(found: Mapping[str, Any]) -> str:
    if found["threshold"] is None:
        return "Falling back to the full prompt where the adapter is unsure would gain nothing."
    better = f"{score(found['score_with_fallback'])} instead of {score(found['score'])} on validation examples"
    return f"Falling back to the full prompt below {found['threshold']:.3f} nats per token scores {better}."


def comparison(record: Record) -> Html:
    """Return the arms of the comparison, over its seeds, with its curves."""
    title, table_of = "Every way side by side", record.comparison
    if not table_of:
        return section(title, missing("There is no comparison of this task yet.", record.compare_command))
    folder = record.comparison_folder
    rows = [
        (
            Long(arm["title"]),
            *_cells(arm),
            score(arm.get("pi_score")),
            figure(arm.get("training", {}).get("tokens")),
            _requests(arm, "requests"),
            _requests(arm, "requests_cached"),
        )
        for arm in table_of["arms"]
    ]
    head = (*HEAD, "PI score", "training tokens", "pays after, requests", "the same, warm cache")
    queries, seeds = counted(table_of["n"], "test query", "test queries"), ", ".join(map(str, table_of["seeds"]))
    caption = f"{table_of['metric']} on {queries}, seeds {seeds}, {counted(table_of['steps'], 'optimizer step')}"
    curves = [
        ("curve", "curve.svg", "Score of each arm over the number of training examples."),
        ("residue", "residue.svg", "Score over the tokens of the prompt that remain."),
    ]
    drawn = [picture_of(folder / file, what, name=key, rows=table_of[key]) for key, file, what in curves]
    return section(title, table(caption, head, rows), *drawn, _points(table_of["curve"], "examples"))


def _requests(arm: Mapping[str, Any], key: str) -> str:
    if "break_even" not in arm:
        return ""
    count = arm["break_even"].get(key)
    return "never" if count is None else f"{count:,}"


def _points(points: Rows, x: str) -> Html:
    """Return a curve's points as a table; nothing for none."""
    rows = [(point["arm"], f"{point[x]:,}", score(point["score"]), between(point["interval"])) for point in points]
    return table(f"Score over {x}", ("arm", x, "score", "95% interval"), rows) if rows else Html()


def summary(record: Record) -> str:
    """Return the run in a sentence."""
    metrics = record.metrics
    if record.is_comparison:
        return "A comparison of every way to answer the task's test queries."
    if not metrics:
        return "This run has not been evaluated yet; below is what it has so far."
    arms = metrics["arms"]
    full, shipped, trained = (arms[arm.name] for arm in (BASE_FULL_PROMPT, SHIPPED, INTERNALIZED))
    return (
        f"With {percent(metrics['prompt_token_reduction'])} fewer prompt tokens the served files score "
        f"{score(shipped['score'])} (in training's own program {score(trained['score'])}), "
        f"where the base with its full prompt scores {score(full['score'])}."
    )
