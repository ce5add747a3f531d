"""What is shipped: the gate, what the adapter changes elsewhere, its strength, and its times with several clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilocal.evaluate.arms import BY_BENCH
from pilocal.report.figures import between, figure, percent, score, small
from pilocal.report.markup import Html, Long, join, missing, section, table, tag
from pilocal.report.pictures import picture_of
from pilocal.report.record import Record
from pilocal.task.text import byte_size, counted


def gate(record: Record) -> Html:
    """Return how far each shipped form lies from the trained adapter, and whether it may be served."""
    title, forms = "The gate: what is shipped is what was trained", record.forms
    if not forms:
        return section(title, missing("Nothing has been exported here yet.", record.command_on_run("export")))
    rows = [_form(name, form) for name, form in forms.items()]
    head = ("form", "size", "KL, nats per token", "without any adapter", "share", "verdict")
    caption = "Distance of each form from the trained adapter, on held-out rows"
    files = [f"{name}: {', '.join(form['files'])}" for name, form in forms.items()]
    return section(title, table(caption, head, rows), tag("p", f"Files in export/. {'; '.join(files)}.", kind="note"))


def _form(name: str, form: Mapping[str, Any]) -> tuple[object, ...]:
    total = byte_size(form.get("bytes", sum(form["files"].values())))
    if "kl" not in form:
        return name, total, "", "", "", "not measured"
    passes = tag("span", "passes" if form["passes"] else "refused", kind="good" if form["passes"] else "bad")
    share = percent(form["kl"] / form["kl_without"]) if form["kl_without"] else ""
    return name, total, small(form["kl"]), small(form["kl_without"]), share, passes


def retention(record: Record) -> Html:
    """Return what the adapter changes on unrelated prompts."""
    title, found = "What it changes elsewhere", record.retention
    if not found:
        return section(title, missing("Nobody has asked it unrelated prompts yet.", record.command("run")))
    rows: list[tuple[object, ...]] = [
        ("prompts", f"{found['prompts']:,}"),
        ("KL from the base, nats per token", small(found["kl"])),
        ("the largest of any token", small(found["kl_max"])),
        ("answers that stay the same", percent(found["same_answers"])),
        ("changed most", Long(f"{found['worst']['query']} ({small(found['worst']['kl'])} nats per token)")),
    ]
    scores = found.get("scores", {})
    for name in (name for name in scores if name != "prompts"):
        said = f"base {score(scores[name]['base'])}, adapter {score(scores[name]['adapter'])}"
        rows.append((f"{name} on {counted(scores['prompts'], 'prompt')} with an answer", said))
    return section(title, table("Unrelated prompts, base and adapter", ("figure", "value"), rows))


def strength(record: Record) -> Html:
    """Return the score over the adapter's strength; nothing where no comparison asks for it."""
    points = record.comparison.get("strengths", ())
    if not points:
        return Html()
    caption = "Score over the strength of the adapter; 1 is as trained, 0 is the base."
    drawn = picture_of(record.comparison_folder / "strength.svg", caption, name="strength")
    rows = [
        (point["schedule"], f"{point['strength']:g}", score(point["score"]), between(point["interval"]))
        for point in points
    ]
    return section("Strength", drawn, table(caption, ("schedule", "strength", "score", "95% interval"), rows))


def clients(record: Record) -> Html:
    """Return the times with several clients at once."""
    title, found = "Several clients at once", record.bench
    if not found:
        return section(title, missing("Nobody has timed it with several clients yet.", record.command_on_run("bench")))
    caption = f"Milliseconds in llama.cpp, of {counted(found['requests'], 'request')}, {found['threads']} threads"
    over = "Time to the first token over the number of clients."
    drawn = picture_of(record.run.path / "bench.svg", over, name="bench")
    rows = [
        (
            BY_BENCH[name].title,
            count,
            *(figure(row[part][rank]) for part in ("ttft_ms", "latency_ms") for rank in ("median", "p90")),
            f"{row['requests_per_second']:.2f}",
            byte_size(row["kv_bytes"]),
        )
        for name, arm in found["arms"].items()
        for count, row in arm["clients"].items()
    ]
    head = ("arm", "clients", "first token", "90% below", "answer", "90% below", "requests/s", "KV cache")
    return section(title, join(drawn, table(caption, head, rows)))
