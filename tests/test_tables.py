"""The tables that commands print: whole cells and whole figures in a terminal of 80 columns."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pilocal.cli.tables import (
    artefacts_table,
    bench_table,
    comparison_tables,
    metrics_table,
    order_table,
    parity_table,
    plan_table,
)
from pilocal.evaluate.arms import ARMS, BY_BENCH, BY_COMPARE
from pilocal.flow.formats import Order
from pilocal.flow.plan import Plan
from pilocal.flow.rendering import StageBudget
from pilocal.flow.saving import Saving
from pilocal.task.schedule import DECAYS
from pilocal.training.memory import Need

SAVING = Saving(1000.0, 10.0, 10**6, None)


def printed(table: object) -> str:
    """Return what a terminal of 80 columns shows."""
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def whole(table: object, *texts: str) -> list[str]:
    """Return the lines of a table that is 80 columns wide at most, with every text in one piece."""
    lines = [line.rstrip() for line in printed(table).splitlines()]
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    for text in texts:
        assert [line for line in lines if text in line], text
    return lines


def row_of(lines: list[str], first: str) -> list[str]:
    """Return the cells of the row that begins with a text."""
    (line,) = [line for line in lines if line.strip().startswith(first)]
    return re.split(r" {2,}", line.strip())


METRICS = {
    "metric": "python_tests",
    "n": 12_345,
    "pi_score": -10.123,
    "prompt_token_reduction": 0.99999,
    "speedup": 1234.5,
    "speedup_cached": 123.4,
    "arms": {
        arm.name: {"score": 0.123, "interval": [0.101, 0.987], "prompt_tokens": 123_456.7}
        | ({"ttft_ms": 234_567.8, "latency_ms": 345_678.9} if arm.timed else {})
        for arm in ARMS
    },
}


def test_every_arm_stands_in_one_line_of_the_result() -> None:
    lines = whole(
        metrics_table(METRICS), "PI score -10.123; prompt tokens -100.0%; 1234.5x faster (warm prefix: 123.4x)"
    )
    for arm in ARMS:
        times = ["234,568", "345,679"] if arm.timed else []
        assert row_of(lines, arm.short) == [arm.short, "0.123", "0.101-0.987", "123,457", *times]


def test_the_result_and_how_to_serve_it_are_the_last_twelve_lines() -> None:
    assert len(printed(metrics_table(METRICS)).splitlines()) + len(["serve it with: ..."]) <= 12


def test_what_stays_of_the_prompt_is_told_below_the_arms() -> None:
    stays = {"residue": {"template_tokens": 123_456, "shots": 10}}
    whole(metrics_table(METRICS | stays), "bare query: after 123,456 tokens of the template and 10 shots that stay")


def test_a_score_that_divides_by_nothing_is_undefined() -> None:
    whole(metrics_table(METRICS | {"pi_score": None}), "PI score undefined;")


@pytest.mark.parametrize("prices", [None, {"prompt": 1.0, "training": 1.0}])
@pytest.mark.parametrize("slices", [{"taught": 120, "template-only": 0}, {"taught": 1200, "template-only": 1200}])
def test_a_comparison_stands_in_tables_below_one_another(prices: object, slices: dict[str, int]) -> None:
    score = {"score": 0.987, "interval": [0.987, 1.0]}
    rows = []
    for name in (*BY_COMPARE, "llmlingua2@0.33", *DECAYS):
        row = {"arm": name, **score, "pi_score": -1.234, "prompt_tokens": 12_345.6, "ttft_ms": 23_456.7}
        row |= {"latency_ms": 34_567.8, "slices": dict.fromkeys(slices, score)}
        if name in DECAYS:
            row["training"] = {"tokens": 123_456_789.0, "seconds": 123_456.0}
            row["break_even"] = {"requests": 1_234_567, "requests_cached": None, "requests_money": 1_234_567}
        rows.append(row)
    curve = [{"arm": arm, "examples": n, **score} for n in (25, 10_000) for arm in ("direct", "linear", "adaptive")]
    points = [
        {"arm": "inverse-exponential", "rate": rate, "template_tokens": 123_456, "prompt_tokens": 123_456.7, **score}
        for rate in (0, 0.0625)
    ]
    table = {"task": "text-to-query", "metric": "python_tests", "n": 2400, "seeds": [0, 1, 2], "steps": 1000}
    table |= {"prices": prices, "slices": slices, "arms": rows, "curve": curve, "residue": points}
    shown = comparison_tables(table)
    scores, training, *others = [whole(each) for each in shown]
    assert len(others) == 3 + bool(slices["template-only"])
    assert row_of(others[-2], "0.0625") == ["0.0625", "123,456", "123,456.7", "0.987 (0.987 to 1.000)"]
    assert row_of(scores, "full-prompt-cached")[1:] == [
        "0.987", "0.987 to 1.000", "-1.234", "12345.6", "23456.7", "34567.8",
    ]  # fmt: skip
    money = ["1,234,567"] if prices else []
    assert row_of(training, "inverse-exponential")[1:] == ["123,456,789", "123,456", "1,234,567", "never", *money]
    assert not [line for line in training if "full-prompt-cached" in line], "an arm that is not trained has no row"
    assert row_of(others[-3], "10000")[1:] == ["0.987 (0.987 to 1.000)"] * 3


def test_a_plan_shows_long_rows_and_long_times() -> None:
    budget = StageBudget(1.0, 5, 100_000, 123_456, 0.99, 123_456.7, 123_456)
    needs = [None, Need(peak=123 * 2**30, seconds=93_784.2)]
    lines = whole(
        plan_table(Plan(131_072, [budget, budget], needs, 2**30, None, SAVING)),
        "131,072 tokens",
    )
    assert row_of(lines, "1 ") == [
        "1", "1.00", "5", "100000", "123,456", "0.99", "123,457", "123,456", "123.00", "26:03:04",
    ]  # fmt: skip


def test_the_order_of_training_names_every_file() -> None:
    line = {"stage": 10, "tau": 0.6667, "shots": 5, "rows": 123_456, "tokens": 123_456_789, "epochs": 0.123457}
    lines = whole(order_table(Order(Path(), [line | {"train": "10/train.jsonl"}], [])))
    assert row_of(lines, "10 ") == ["10", "0.67", "5", "123,456", "123,456,789", "0.123457", "10/train.jsonl"]


def test_artefacts_show_what_was_refused() -> None:
    gated = {"bytes": 12_345_678_900, "kl": 0.00123, "kl_without": 1.0, "passes": False, "score": 0.9, "files": {}}
    lines = whole(artefacts_table({"lossless": gated, "ollama": {"files": {"Modelfile": 999}}}))
    assert row_of(lines, "lossless") == ["lossless", "12,345.7", "0.0012", "0.0012 (refused)", "0.900"]
    assert row_of(lines, "ollama") == ["ollama", "0.0"]


def test_artefacts_name_what_a_lossless_base_holds_as_floats() -> None:
    gated = {"bytes": 1, "kl": 0.1, "kl_without": 1.0, "passes": True, "files": {}}
    head, whole_base = (
        {f"layer.{i}": {"type": "F32", "bytes": 4_000_000, "bytes_in_base": 1_000_000} for i in range(count)}
        for count in (1, 200)
    )
    lines = whole(artefacts_table({"lossless": gated | {"floats": head}, "f16": gated | {"floats": {}}}))
    assert lines[-1] == "lossless: layer.0 in F32, 3.0 MB more than in the base."
    shown = " ".join(whole(artefacts_table({"lossless": gated | {"floats": whole_base}})))
    assert "lossless: layer.0, layer.1, layer.2, 197 more in F32, 600.0 MB more than in the base." in shown


def test_a_benchmark_shows_minutes_and_gibibytes() -> None:
    spread = {"median": 912_345.6, "p90": 987_654.3}
    row = {"ttft_ms": spread, "latency_ms": spread, "ttft_ratio": 123.4, "requests_per_second": 12.34}
    clients = {count: row | {"kv_bytes": 123_456 * 2**20} for count in ("1", "128")}
    arms = {arm: {"prompt_tokens": 12_345.6, "clients": clients} for arm in BY_BENCH}
    lines = whole(bench_table({"requests": 128, "threads": 16, "arms": arms}), "128 requests, 16 threads.")
    for arm in BY_BENCH.values():
        shown = [line.split() for line in lines if line.startswith(arm.short)]
        figures = ["912,346", "987,654", "123.4", "912,346", "987,654", "12.34", "123,456"]
        assert shown == [[*arm.short.split(), count, *figures] for count in ("1", "128")]


def test_parity_shows_every_figure() -> None:
    gradients: dict[str, Any] = {"relative": 1.23e-05, "tensor": "model.layers.31.mlp.down_proj.lora_a"}
    stage = {"stage": 3, "tau": 0.5, "shots": 5, "steps": 1000, "first_step": 1, "gradients": gradients}
    stage |= {figure: {"relative": 4.56e-05} for figure in ("loss", "gradient_norm")}
    steps = [{"loss": {"recorded": 0.00123, "torch": 12.3}}] * 1000
    result = {"backends": ["recorded", "torch"], "stages": [stage], "steps": steps, "device": "cuda"}
    result |= {"precision": "bfloat16", "tolerance": 1e-4, "adapter_distance": 1e-5}
    result["loss_curve"] = {"mean_relative": 1e-6}
    lines = whole(parity_table(result), gradients["tensor"])
    assert row_of(lines, "3 ") == ["3", "0.50", "5", "1000", "0.00123", "12.3", "4.6e-05", "4.6e-05", "1.2e-05"]
