"""The tables that commands print: each fits a terminal of 80 columns without a broken cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pilocal.evaluate.arms import BASE_FULL_PROMPT, BY_BENCH, BY_NAME, INTERNALIZED, SHIPPED
from pilocal.flow.artefacts import float_notes
from pilocal.flow.confidence import confidence_line

if TYPE_CHECKING:
    from pilocal.flow.formats import Order
    from pilocal.flow.gap import Gap
    from pilocal.flow.plan import Plan
    from pilocal.training.memory import Need

WIDTH = 80
"""Columns of the narrowest terminal that tables are made for."""

MIB, GIB = 2**20, 2**30

MOST_LOST = 5
"""Lines on entries that score worse than with the prompt."""

MOST_ENTRIES = 5
"""Lines of the census."""


def show(*parts: RenderableType) -> None:
    """Print on stdout; a terminal narrower than WIDTH wraps the lines itself, so that no figure is cut."""
    console = Console()
    console.width = max(WIDTH, console.width)
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)


def plan_table(plan: Plan) -> RenderableType:
    """Return the table of what each stage costs in tokens, memory and time."""
    notes = [
        "template, prompt (mean) and longest row in tokens; kept: the realised tau;",
        f"GiB: peak of memory. The model's context is {plan.context:,} tokens.",
    ]
    if any(stage.working for stage in plan.stages):
        rates = ", ".join(f"{stage.working:.2f}" for stage in plan.stages)
        notes.append(f"the working before the answers, stage by stage: {rates}")
    last = "time" if plan.machine is None else "fits"
    head = ("stage", "tau", "shots", "steps", "template", "kept", "prompt", "longest", "GiB", last)
    rows = [
        [
            str(number),
            f"{stage.tau:.2f}",
            str(stage.shots),
            str(stage.steps),
            f"{stage.template_tokens:,}",
            f"{stage.ratio:.2f}",
            _figure(stage.prompt_tokens),
            f"{stage.longest_row:,}",
            "" if need is None else f"{need.peak / GIB:.2f}",
            _last_cell(plan, need),
        ]
        for number, (stage, need) in enumerate(zip(plan.stages, plan.needs, strict=True))
    ]
    return text_table("Plan", head, rows, notes, left=0)


def _last_cell(plan: Plan, need: Need | None) -> str:
    """Return how long a stage takes here, or whether it fits into another machine."""
    if need is None:
        return ""
    if plan.machine is not None:
        return "yes" if need.peak <= plan.memory else "no"
    return "" if need.seconds is None else _clock(need.seconds)


def on_page(page: Path | None) -> str:
    """Return where all of a check stands: on its page, or on the one that an option would write.

    >>> on_page(Path("check.html")), on_page(None)
    ('all of them in check.html', 'all of them on the page of --html FILE')
    """
    return f"all of them in {page}" if page else "all of them on the page of --html FILE"


def gap_table(gap: Gap, picture: Path | None, page: Path | None = None) -> RenderableType:
    """Return the entries of the template with what they are worth, those that no query names first.

    `picture` and the check's `page` are named below, if there are such.
    """
    order = sorted(gap.entries, key=lambda facts: (facts.queries != 0, -abs(facts.nats)))
    rows = [
        [facts.entry[:52], "" if facts.queries is None else f"{facts.queries:,}", f"{facts.nats:+.2f}"]
        for facts in order[:MOST_ENTRIES]
    ]
    notes = ["queries: training queries that name the entry; nats: what answers lose without"]
    if len(order) > len(rows):
        notes.append(f"{len(order) - len(rows)} more entries, {on_page(page)}")
    if picture:
        notes.append(f"picture of all entries: {Path(*picture.parts[-2:])}")
    return text_table("Census of the template", ("entry", "queries", "nats"), rows, notes)


def metrics_table(metrics: Mapping[str, Any]) -> RenderableType:
    """Return the arms of metrics.json side by side, with what they add up to below."""
    title = f"{metrics['metric']} on {metrics['n']} test queries"
    rows = [
        [
            BY_NAME[arm].short,
            f"{row['score']:.3f}",
            "-".join(f"{bound:.3f}" for bound in row["interval"]),
            *(_figure(row.get(name)) for name in ("prompt_tokens", "ttft_ms", "latency_ms")),
        ]
        for arm, row in metrics["arms"].items()
    ]
    score = "undefined" if metrics["pi_score"] is None else f"{metrics['pi_score']:.3f}"
    notes = [
        "prompt: mean tokens; first, answer: ms to the first token, to the whole answer",
        f"PI score {score}; prompt tokens -{100 * metrics['prompt_token_reduction']:.1f}%; "
        f"{metrics['speedup']:.1f}x faster (warm prefix: {metrics['speedup_cached']:.1f}x)",
    ]
    if residue := metrics.get("residue"):
        what = f"{residue['template_tokens']:,} tokens of the template and {residue['shots']} shots"
        notes.append(f"bare query: after {what} that stay")
    if stood_in := [row["llama_cpp_kl"] for row in metrics["arms"].values() if "llama_cpp_kl" in row]:
        notes.insert(1, f"base: answered by llama.cpp, {max(stood_in):.2g} nats per token from the trainer's program")
    if written := metrics.get("prompt_generation"):
        least = min(written["entries"], key=lambda line: float(line["f1"]))
        notes.append(f"the template as the adapter writes it: token F1 {written['f1']:.3f} by entry")
        notes.append(f"(the base: {written['base_f1']:.3f}); least, {least['f1']:.3f}: {least['entry'][:40]!r}")
    return text_table(title, ("arm", "score", "95%", "prompt", "first", "answer"), rows, notes)


def proof_lines(metrics: Mapping[str, Any]) -> list[RenderableType]:
    """Return, as one part or none, which entries were learned, what changes elsewhere, and when a server falls back.

    It stands above the arms, so that these are the last lines on the screen.
    """
    lines = [*_entry_notes(metrics.get("entries", ())), *_retention_notes(metrics.get("retention"))]
    if confidence := metrics.get("confidence"):
        lines.append(confidence_line(confidence))
    return [Group(*map(Text, lines))] if lines else []


def _retention_notes(found: Mapping[str, Any] | None) -> list[str]:
    """Return the lines on what the adapter changes elsewhere; none for metrics of an earlier version."""
    if found is None:
        return []
    count, same = found["prompts"], round(found["prompts"] * found["same_answers"])
    lines = [f"{count} unrelated prompts: {found['kl']:.2g} nats per token from the base, {same} answers stay"]
    scores = found.get("scores", {})
    for name in (name for name in scores if name != "prompts"):
        said = f"base {scores[name]['base']:.3f}, adapter {scores[name]['adapter']:.3f}"
        lines.append(f"{name} on the {scores['prompts']} of them with an answer: {said}")
    return lines


def _entry_notes(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines on the entries of the template that requests need."""
    asked = [line for line in entries if line["entry"] is not None and line["requests"]]
    if not asked:
        return []
    lost = [line for line in asked if line[INTERNALIZED.name] < line[BASE_FULL_PROMPT.name]]
    lines = [f"{len(asked) - len(lost)} of {len(asked)} entries that requests need: as good as with the prompt"]
    lost.sort(key=lambda line: float(line[INTERNALIZED.name] - line[BASE_FULL_PROMPT.name]))
    for line in lost[:MOST_LOST]:
        scores = f"{line[INTERNALIZED.name]:.3f} for {line[BASE_FULL_PROMPT.name]:.3f}"
        lines.append(f"worse: {' '.join(line['entry'].split())[:32]!r}, {scores} ({line['requests']} requests)")
    if len(lost) > MOST_LOST:
        lines.append(f"and {len(lost) - MOST_LOST} more; metrics.json and entries.svg have all")
    return lines


def order_table(order: Order) -> RenderableType:
    """Return the stages in the order in which another trainer is to train them."""
    head = ("stage", "tau", "shots", "rows", "tokens", "epochs", "train")
    rows = [
        [
            str(line["stage"]),
            f"{line['tau']:.2f}",
            str(line["shots"]),
            f"{line['rows']:,}",
            f"{line['tokens']:,}",
            f"{line['epochs']:g}",
            line["train"],
        ]
        for line in order.stages
    ]
    return text_table("Order of training", head, rows)


def comparison_tables(table: Mapping[str, Any]) -> list[RenderableType]:
    """Return the tables of the arms, and that of the learning curve if there is one."""
    from pilocal.comparison.columns import SCORES, SLICES, TRAINING, curve_cells, narrow_cells, residue_cells
    from pilocal.comparison.markdown import design_line

    parts = narrow_cells(table)
    notes = {
        SCORES: [
            "PI: share of the full prompt's gain; prompt: mean tokens;",
            "first, answer: ms to the first token, to the whole answer",
        ],
        TRAINING: [
            "tokens, seconds: of the training; pays after: requests until it has cost less",
            "time than the full prompt; warm cache: than a warm prefix; in money: by --price",
        ],
        SLICES: ["template-only: the answer needs what no training answer shows"],
    }
    titles = {SCORES: f"{table['task']}: {table['metric']}", TRAINING: "Training", SLICES: "Slices of the test set"}
    shown = [text_table(titles[part], *grid, notes[part]) for part, grid in parts.items()]
    if table["curve"]:
        shown.append(text_table("Score over the number of training examples", *curve_cells(table)))
    if table["residue"]:
        title = f"Score of {table['residue'][0]['arm']} over what is left of the template"
        shown.append(text_table(title, *residue_cells(table)))
    return [*shown, Text(design_line(table))]


def synth_table(report: Mapping[str, Any]) -> RenderableType:
    """Return how many queries a synthesis made for each entry of the template that had too few."""
    rows = [
        [Text(row["entry"]).plain[:56], str(row["solved"]), str(row["queries"])]
        for row in report["entries"]
        if row["solved"] < report["per_entry"]
    ]
    made = ", ".join(f"{sum(origins.values())} for {split}" for split, origins in report["made"].items() if origins)
    notes = [
        "before: training queries that name the entry; now: with the new ones",
        f"new queries: {made}",
        *(f"dropped: {count}, {why}" for why, count in report["dropped"].items()),
    ]
    if "answers" in report:
        lengths = ", ".join(f"{count} of {answers}" for answers, count in report["answers"].items())
        notes.append(f"conversations by their number of answers: {lengths}"[:WIDTH])
    notes += [f"reasons: {count}, {why}" for why, count in report.get("reasons", {}).items()]
    if report["unnamed"]:
        notes.append(f"{len(report['unnamed'])} entries no query names, such as {report['unnamed'][0][:40]!r}")
    return text_table("Entries that had too few queries", ("entry", "before", "now"), rows, notes)


def artefacts_table(artefacts: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Return what was exported, and how far it lies from the trained adapter."""
    rows = []
    for form, entry in artefacts.items():
        line = [form, f"{entry.get('bytes', sum(entry['files'].values())) / 1e6:,.1f}", "", "", ""]
        if "kl" in entry:
            share = entry["kl"] / entry["kl_without"] if entry["kl_without"] else float("inf")
            line[2] = f"{entry['kl']:.2g}"
            line[3] = f"{share:.2g}" + ("" if entry["passes"] else " (refused)")
            line[4] = f"{entry['score']:.3f}" if "score" in entry else ""
        rows.append(line)
    head = ("form", "MB", "KL, nats per token", "of no adapter's", "score")
    return text_table("Exported", head, rows, float_notes(artefacts))


def bench_table(result: Mapping[str, Any]) -> RenderableType:
    """Return the arms of bench.json at each number of clients."""
    arms = result["arms"]
    head = ("arm", "clients", "first", "p90", "x", "answer", "p90", "req/s", "KV MiB")
    rows = [
        [
            BY_BENCH[name].short,
            count,
            _figure(row["ttft_ms"]["median"]),
            _figure(row["ttft_ms"]["p90"]),
            _figure(row["ttft_ratio"]),
            _figure(row["latency_ms"]["median"]),
            _figure(row["latency_ms"]["p90"]),
            f"{row['requests_per_second']:.2f}",
            _figure(row["kv_bytes"] / MIB),
        ]
        for count in arms[SHIPPED.bench]["clients"]
        for name, arm in arms.items()
        for row in (arm["clients"][count],)
    ]
    tokens = ", ".join(f"{BY_BENCH[name].short} {arm['prompt_tokens']:,.1f}" for name, arm in arms.items())
    notes = [
        "first, answer: ms to the first token, to the whole answer; median, 90th percentile;",
        "x: the first token's time over the bare query's.",
        f"{result['requests']} requests, {result['threads']} threads. Prompt tokens: {tokens}.",
    ]
    return text_table("Latency in llama.cpp", head, rows, notes, gap=0)


def parity_table(result: Mapping[str, Any]) -> RenderableType:
    """Return the stages of parity.json with their worst figures."""
    first, second = result["backends"]
    worst = max(result["stages"], key=lambda stage: stage["gradients"]["relative"])
    rows = []
    for stage in result["stages"]:
        last = result["steps"][stage["first_step"] + stage["steps"] - 2]["loss"]
        rows.append(
            [
                str(stage["stage"]),
                f"{stage['tau']:.2f}",
                str(stage["shots"]),
                str(stage["steps"]),
                f"{last[first]:.3g}",
                f"{last[second]:.3g}",
                *(f"{stage[figure]['relative']:.1e}" for figure in ("loss", "gradient_norm", "gradients")),
            ]
        )
    notes = [
        f"{first}, {second}: the loss at the stage's last step, in nats per token; loss, norm: the",
        "largest relative difference in the stage; gradient: that of the worst adapter",
        f"weight at the stage's first step, in stage {worst['stage']} of {worst['gradients']['tensor']}.",
        f"{second} on {result['device']}, {result['precision']}; tolerance {result['tolerance']:g}; adapters at the "
        f"end: {result['adapter_distance']:.1e} apart; losses: {result['loss_curve']['mean_relative']:.1e} in the mean",
    ]
    head = ("stage", "tau", "shots", "steps", first, second, "loss", "norm", "gradient")
    return text_table(f"{first} and {second}", head, rows, notes, left=0)


def parity_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the lines on what parity compares beside the steps."""
    if "forward" not in result:
        return [f"recorded with {', '.join(f'{name} {made}' for name, made in result['made_by'].items())}"]
    forward, tokens, conversion, log = (result[key] for key in ("forward", "tokenizers", "conversion", "run_log"))
    lines = [
        f"logits, stage {entry['stage']}, {entry['program']} against mlx: at most {entry['max_absolute']:.1e} apart, "
        f"KL {entry['kl']:.1e} nats per token ({entry['tokens']} tokens, {forward['adapter']} adapter)"
        for entry in forward["figures"]
    ]
    if not forward["exported"]:
        lines.append("llama.cpp and its tokenizer: the run has no export yet")
    if tokens:
        lines.append(f"tokenizers: {tokens['differing']} of {tokens['rows']} chats have other ids in llama.cpp")
    lines.append(
        f"adapter to PEFT and back: {conversion['differing']} of {conversion['tensors']} weights differ; scale "
        f"{conversion['scale']['mlx']:g}, alpha / rank {conversion['scale']['peft']:g}"
    )
    if log:
        lines.append(f"the run's own log: {log['differing']} of {log['steps']} steps had rows of another length")
    return lines


def text_table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    *,
    left: int = 1,
    gap: int = 1,
) -> RenderableType:
    """Return a table below its title, the first `left` columns to the left, `gap` + 1 spaces between two columns."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, gap, 0, 0), pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return Group(Text(title, style="bold"), table, *(Text(note, style="dim") for note in notes))


def _figure(value: float | None) -> str:
    """Return a number in at most seven characters up to 999,999; empty for None.

    >>> _figure(7.94), _figure(999.94), _figure(12345.6), _figure(None)
    ('7.9', '999.9', '12,346', '')
    """
    if value is None:
        return ""
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    >>> _clock(93784.2)
    '26:03:04'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
