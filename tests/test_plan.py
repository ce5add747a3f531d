"""The plan: what it predicts is what is measured, and its advice makes a training fit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import InputError
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.memory import Machine, Sizes, advise, base_bytes, predict, read_sizes
from pilocal.training.row_order import StagePlan
from tests.test_train import random_rows
from tests.tiny import OTHERS

TRAINING = Training(batch_size=8)
LORA = Lora(rank=4)


@pytest.mark.parametrize(("kind", "count"), [("llama", 3), ("qwen3_moe", 2)])
def test_the_predicted_memory_is_near_the_measured(kind: str, count: int) -> None:
    from tests.bench.memory import memory

    result = memory(count, seed=5, kind=kind)
    assert result["within_15_percent"] == count, result


def parts(tiny_base: Base, rows: list[Row], training: Training) -> tuple[Sizes, list[Any], int]:
    from pilocal.training.mlx.probe import survey

    config = tiny_base.config
    sizes = read_sizes(config, LORA)
    return sizes, [survey(sizes, StagePlan(0, rows, (), 1, Path()), training)], base_bytes(config, packed=False)


@pytest.mark.parametrize("fixture", ["tiny_base", *OTHERS])
def test_the_sizes_are_the_models(fixture: str, request: pytest.FixtureRequest) -> None:
    from mlx.utils import tree_flatten

    from pilocal.training.mlx.adapter import add_lora

    base = request.getfixturevalue(fixture)
    some = tuple(base.architecture.linears(base.config)[0])[::2]
    for lora in (LORA, Lora(kind="dora", rank=2, layers=1, linears=some)):
        model = load_base(base)
        config = base.config
        total = sum(value.nbytes for value in dict(tree_flatten(model.parameters())).values())
        assert base_bytes(config, packed=False) == total
        add_lora(model, lora, 0)
        trainable = sum(value.size for value in dict(tree_flatten(model.trainable_parameters())).values())
        assert read_sizes(config, lora).adapter == trainable


@pytest.mark.parametrize(("lora", "line"), [(Lora(layers=9), "2 layers; got 9"), (Lora(linears=("q",)), "got 'q'")])
def test_an_adapter_that_does_not_fit_is_found_without_a_probe(lora: Lora, line: str, tiny_base: Base) -> None:
    with pytest.raises(InputError, match=line):
        read_sizes(tiny_base.config, lora)


def test_a_probe_sets_the_scale_and_gives_times(tiny_base: Base) -> None:
    from pilocal.training.mlx.probe import take_probe

    sizes, works, base = parts(tiny_base, random_rows(1, 20, 200), TRAINING)
    machine = Machine(memory=1 << 34, base=base)
    blind = predict(machine, sizes, works, [10], TRAINING)[0]
    assert blind.seconds is None
    probe = take_probe(load_base(tiny_base), works[0].heaviest, LORA, TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pilocal.training.mlx.probe.LONG", 0.0)
        alone = take_probe(load_base(tiny_base), works[0].heaviest, LORA, TRAINING)
    assert 0.95 * probe.bytes < alone.bytes < 1.1 * (probe.bytes + 2 * 4 * sizes.adapter)  # its optimizer's state, too
    seen = predict(replace(machine, probe=probe), sizes, works, [10], TRAINING)[0]
    assert seen.peak == pytest.approx(base + 3 * 4 * sizes.adapter + probe.bytes, rel=1e-6)
    assert seen.seconds is not None
    assert 1 * probe.seconds < seen.seconds <= 10.01 * probe.seconds


def test_advice_is_what_makes_it_fit(tiny_base: Base) -> None:
    rows = [
        Row((*row.tokens[:1], *[7] * 300, *row.tokens[1:], 1 + number), row.offset + 300)
        for number, row in enumerate(random_rows(1, 24, 0))
    ]
    for row in rows[::2]:  # nothing is shared
        rows[rows.index(row)] = Row((9, *row.tokens[1:]), row.offset)
    sizes, works, base = parts(tiny_base, rows, TRAINING)
    sizes = replace(sizes, layers=16, adapted=16)

    def peak(**changes: Any) -> int:
        training = replace(TRAINING, **changes)
        return predict(Machine(memory=0, base=base), sizes, works, [1], training)[0].peak

    def advice(memory: int, **options: Any) -> Any:
        return advise(Machine(memory=memory, base=base), sizes, works, TRAINING, **options)

    assert advice(peak()) is None
    assert advice(peak() - 1).startswith("set [training] accumulate = 2: ")
    assert advice(peak(accumulate=4)).startswith("set [training] accumulate = 4: ")
    smallest = peak(accumulate=8, recompute=True)
    assert smallest < peak(accumulate=8)
    assert "recompute = true" in advice(smallest)
    assert "smaller base" in advice(smallest, may_recompute=False)
    assert "smaller base" in advice(smallest - 1)


@pytest.mark.parametrize("probe", [True, False])
def test_check_plans_every_stage(probe: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pilocal.cli import cli

    cli.main(["init", str(tmp_path / "task")], standalone_mode=False)
    capsys.readouterr()
    cli.main(["check", str(tmp_path / "task"), "--json", *([] if probe else ["--no-probe"])], standalone_mode=False)
    plan = json.loads(capsys.readouterr().out)
    assert plan["advice"] is None
    peaks = [stage["peak_memory"] for stage in plan["stages"]]
    assert peaks == sorted(peaks, reverse=True)
    assert 5e6 < peaks[-1] < peaks[0] < plan["memory"]
    assert all((stage["seconds"] is not None) == probe for stage in plan["stages"])


def test_pytorch_tells_the_times_from_one_step(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilocal.training.torch_backend import probe
    from pilocal.training.torch_backend.trainer import TorchTrainer

    trainer = TorchTrainer(tiny_base, LORA, replace(TRAINING, batch_size=2), None, share=True)
    clock = iter((10.0, 12.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    rows = [[Row((*range(1, length), end), 5) for end in (7, 8, 9, 6)] for length in (200, 20)]
    plans = [StagePlan(number, rows[number], (), steps, Path()) for number, steps in enumerate((3, 5))]
    long, short = probe.stage_seconds(trainer, read_sizes(tiny_base.config, LORA), plans)
    assert long == pytest.approx(3 * 2.0)  # all its steps are alike
    assert 0 < short < 5 * 2.0 / 5


WITHOUT_MLX = """
import sys
from pathlib import Path

sys.modules |= dict.fromkeys(("mlx", "mlx.core", "mlx_lm"))  # None: they cannot be imported
from pilocal.base.base import Base
from pilocal.progress import silent
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.row_order import StagePlan
from pilocal.training.torch_backend.setup import Setup

training = Training(batch_size=4)
setup = Setup(base=Base.at(Path(sys.argv[1])), lora=Lora(), training=training, device="cpu")
rows = [[Row(tuple(range(1, length)), 5) for length in (9, longest)] for longest in (200, 20)]
forecast = setup.plan([StagePlan(n, rows[n], (), 5, Path()) for n in (0, 1)], probe=True, progress=silent)
print(forecast.memory > 1 << 30, forecast.advice, *(need.peak for need in forecast.needs))
"""


def test_pytorch_is_planned_without_mlx(tiny_base: Base) -> None:
    command = [sys.executable, "-c", WITHOUT_MLX, str(tiny_base.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    much, advice, *peaks = done.stdout.split()
    assert (much, advice) == ("True", "None")
    assert 4e6 < int(peaks[1]) < int(peaks[0])
