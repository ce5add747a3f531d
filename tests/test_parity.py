"""The same steps on MLX and on PyTorch: the figures, the reference that travels, and that an error does not pass."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file

from pilocal.base.base import Base
from pilocal.cli import main
from pilocal.errors import ModelError
from pilocal.parity import parity, report
from pilocal.parity.conversion import conversion_figures
from pilocal.parity.figures import compare_traces, exceeded
from pilocal.parity.reference import load_reference
from pilocal.parity.settings import Settings
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.mlx.trainer import MlxTrainer
from pilocal.training.torch_backend.adapter import from_peft
from pilocal.training.torch_backend.trainer import TorchTrainer
from tests.parity.record import FOLDER
from tests.test_chart import texts
from tests.test_flow import flow, make_task

STEPS = 7
"""Of the run and of its replay."""

NEAR = 1e-5
"""Losses are closer than that."""

TOLERANCE = 1e-4
"""What the command allows."""


@pytest.fixture(scope="module")
def run(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and exported run of three stages."""
    folder = make_task(tmp_path_factory.mktemp("parity") / "task", tiny_base.folder, steps=STEPS)
    flow(folder, "export")
    return folder / "run"


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `pilocal parity` in this process; return exit status, stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["pilocal", "parity", *map(str, arguments)])
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_replay_starts_where_the_run_did(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    state = json.loads((folder / "run.json").read_text())
    given = {"name": "torch", "device": "cpu", "weights": None, "initial_adapter": str(run / "adapter")}
    (folder / "run.json").write_text(json.dumps(state | {"backend": given}))
    status, _, err = command(capsys, folder, "--steps", STEPS, "--json", "--record", tmp_path / "kept")
    assert (status, err) == (0, "")
    _, recorded, _ = load_reference(tmp_path / "kept")
    expected = load_file(run / "adapter" / "adapters.safetensors")
    assert set(recorded.starts[0]) == set(expected)
    assert all(np.array_equal(value, expected[name]) for name, value in recorded.starts[0].items())


def test_bfloat16_is_held_to_the_loss_curve(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, run, "--steps", STEPS, "--precision", "bfloat16", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["precision"], result["tolerance"]) == ("bfloat16", 0.01)
    apart = [step["loss"]["relative"] for step in result["steps"]]
    assert result["loss_curve"]["mean_relative"] == pytest.approx(np.mean(apart))
    assert NEAR < result["loss_curve"]["mean_relative"] < 0.01
    assert max(stage["gradients"]["relative"] for stage in result["stages"]) > TOLERANCE
    status, _, err = command(capsys, run, "--steps", STEPS, "--precision", "bfloat16", "--tolerance", 1e-5)
    assert status == 1
    assert "the loss differs by" in err
    assert "in the mean of all steps, more than 1e-05" in err


def test_a_run_has_the_same_figures_on_both_backends(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, run, "--steps", STEPS, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert json.loads((run / "parity.json").read_text()) == result
    assert [stage["steps"] for stage in result["stages"]] == [3, 2, 2]
    assert [step["step"] for step in result["steps"]] == list(range(1, STEPS + 1))
    assert all(step["loss"]["relative"] <= NEAR for step in result["steps"])
    for stage in result["stages"]:
        assert len(stage["gradients"]["tensors"]) == 2 * 7 * 2
        assert stage["gradients"]["relative"] <= TOLERANCE
    assert result["learning_rates"]["relative"] < 1e-12
    assert result["tokenizers"] == {"rows": 18, "differing": 0, "first": None}
    assert result["conversion"]["differing"] == 0
    assert result["conversion"]["tensors"] == 28
    programs = {(entry["stage"], entry["program"]) for entry in result["forward"]["figures"]}
    assert programs == {(0, "torch"), (0, "llama.cpp"), (2, "torch"), (2, "llama.cpp")}
    assert all(
        entry["kl"] < (1e-2 if entry["program"] == "llama.cpp" else 1e-9) for entry in result["forward"]["figures"]
    )
    assert result["versions"]["torch"]
    assert {"mlx", "torch", "tolerance", "relative difference"} <= set(texts(run / "parity.svg"))


def test_the_replay_of_as_many_steps_is_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, run, "--steps", STEPS, "--json")
    assert status == 0
    result = json.loads(out)
    logged = [
        json.loads(line)
        for number in range(3)
        for line in (run / "stages" / str(number) / "metrics.jsonl").read_text().splitlines()
    ]
    assert [step["loss"]["mlx"] for step in result["steps"]] == pytest.approx([line["loss"] for line in logged], NEAR)
    assert [step["learning_rate"] for step in result["steps"]] == [line["learning_rate"] for line in logged]
    assert result["run_log"] == {"steps": STEPS, "differing": 0, "first": None, "first_loss": logged[0]["loss"]}


def test_a_program_gets_the_files_that_the_command_leaves(run: Path) -> None:
    (run / "parity.svg").unlink(missing_ok=True)
    result = parity(run, Settings(steps=3))
    assert result == json.loads((run / "parity.json").read_text())
    assert (result["tolerance"], result["exceeded"]) == (TOLERANCE, [])
    assert (run / "parity.svg").is_file()


def test_the_table_has_a_row_for_each_stage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, run, "--steps", 3)
    assert status == 0
    assert "mlx and torch" in out
    assert "tokenizers: 0 of 18 chats have other ids" in out
    assert "adapter to PEFT and back: 0 of 28 weights differ; scale 2, alpha / rank 2" in out


class AnotherScale(TorchTrainer):
    def __init__(self, base: Base, lora: Lora, training: Training, *rest: Any, **named: Any) -> None:
        super().__init__(base, replace(lora, scale=2.001), training, *rest, **named)


class AnotherOrder(TorchTrainer):
    kept: Sequence[Row] = ()

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        self.kept, rows = rows, self.kept or rows
        return super().step(number, rate, rows)


class AnotherMask(TorchTrainer):
    def gradients(self, rows: Sequence[Row]) -> tuple[float, dict[str, Any]]:
        return super().gradients([Row(row.tokens, row.offset - 1) for row in rows])

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        return super().step(number, rate, [Row(row.tokens, row.offset - 1) for row in rows])


class AnotherRate(TorchTrainer):
    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        return super().step(number, 1.1 * rate, rows)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (AnotherScale, "gradient norm at step 1 (stage 0) differs by 0.0005"),
        (AnotherOrder, "loss at step 2 (stage 0) differs by"),
        (AnotherMask, "loss at step 1 (stage 0) differs by"),
        (AnotherRate, "loss at step 2 (stage 0) differs by"),
    ],
)
def test_an_error_put_in_on_purpose_is_found(
    wrong: type, line: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "TorchTrainer", wrong)
    status, out, err = command(capsys, run, "--steps", 4, "--json")
    assert status == 1
    assert err.startswith(f"{run}: {line}")
    assert err.count("\n") == 1
    assert json.loads(out)["exceeded"][0].startswith(line)


def test_a_wrong_gradient_is_named_even_where_the_losses_agree(tiny_base: Base) -> None:
    replay, trace, _ = load_reference(FOLDER)
    other = replace_gradient(trace.gradients[1], factor=1.001)
    spoilt = type(trace)(trace.losses, trace.norms, trace.starts, [trace.gradients[0], other, trace.gradients[2]], {})
    stages, steps = compare_traces(replay, trace, spoilt, ("mlx", "torch"))
    assert exceeded(stages, steps, 1e-4) == [
        "gradient of model.layers.0.mlp.down_proj.lora_a at step 4 (stage 1) differs by 0.001"
    ]


def replace_gradient(gradients: Mapping[str, Any], factor: float) -> dict[str, Any]:
    name = sorted(gradients)[0]
    return {**gradients, name: factor * gradients[name]}


def test_what_was_recorded_of_a_run_is_a_reference(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, run, "--steps", 3, "--record", tmp_path / "kept")[0] == 0
    status, out, err = command(capsys, "--reference", tmp_path / "kept")
    assert (status, err) == (0, "")
    assert "recorded and torch" in out


def change_state(run: Path, **changes: Any) -> None:
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | changes))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"versions": {"pilocal": "0.0.1"}}, "the run was made by another version of pilocal; got '0.0.1'"),
        ({"base_sha256": "0"}, "the base is not the one that the run was made with"),
        ({"steps": {}}, "the run has no stages yet; `pilocal stages TASK --run DIR` first"),
        ({"schedule": None}, "no run has begun here"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_in_one_line(
    changes: dict[str, Any], line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "run.json").read_text()
    change_state(run, **changes)
    status, out, err = command(capsys, run)
    (run / "run.json").write_text(before)
    warned = line.startswith("the base is not the one")  # a base that moved is warned of, too
    assert (status, out, err.count("\n")) == (1, "", 1 + warned)
    assert line in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "rank = 2",
            "rank = 2\ndropout = 0.1",
            "[lora] dropout: random dropout cannot be replayed; got 0.1",
        ),
        ("rank = 2", "rank = 2", "--steps: there are 3 stages to pass through; got 2"),
    ],
)
def test_settings_that_cannot_be_replayed_are_refused_in_one_line(
    old: str, new: str, line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = run.parent / "task.toml"
    before = task.read_text()
    task.write_text(before.replace(old, new))
    status, out, err = command(capsys, run, "--steps", 2)
    task.write_text(before)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(line)


def test_a_changed_task_is_told_apart(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = run.parent / "template.md"
    before = template.read_text()
    template.write_text(before + "Be brief.\n")
    status, _, err = command(capsys, run)
    template.write_text(before)
    assert status == 1
    assert "the task has changed since its stages were made" in err


def test_a_run_without_training_is_replayed_all_the_same(
    tiny_base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    flow(folder, "stages")
    status, out, _ = command(capsys, folder / "run", "--steps", 3)
    assert status == 0
    assert "the run has no export yet" in out
    result = json.loads((folder / "run" / "parity.json").read_text())
    assert (result["run_log"], result["tokenizers"]) == (None, None)
    assert {entry["program"] for entry in result["forward"]["figures"]} == {"torch"}
    assert result["forward"]["adapter"] == "the replay's"


@pytest.mark.parametrize("arguments", [[], ["x", "--reference", "y"], ["--reference", "y", "--record", "z"]])
def test_a_run_or_a_reference_is_needed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = command(capsys, *arguments)
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["torch", "peft"])
def test_a_missing_package_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    status, _, err = command(capsys, "--reference", FOLDER)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{name} is not installed" in err


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    status, _, err = command(capsys, "--reference", FOLDER, "--device", "cuda")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("--device cuda: ")


def test_an_adapter_that_does_not_fit_is_refused(tiny_base: Base) -> None:
    mlx = MlxTrainer(tiny_base, Lora(rank=2), Training())
    adapter = mlx.adapter()
    name = sorted(adapter)[0]
    with pytest.raises(ModelError, match="do not fit"):
        mlx.set_adapter({**adapter, name: adapter[name][:-1]})
    with pytest.raises(ModelError, match="do not fit"):
        mlx.set_adapter({other: value for other, value in adapter.items() if other != name})


def test_a_conversion_that_loses_something_is_counted(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilocal.parity import conversion

    mlx = MlxTrainer(tiny_base, Lora(rank=2, scale=0.1), Training())
    adapter = mlx.adapter()
    figures = conversion_figures(tiny_base, adapter, mlx.config)
    assert (figures["differing"], figures["same_scale"]) == (0, True)
    back = from_peft
    monkeypatch.setattr(
        conversion,
        "from_peft",
        lambda tensors: {name: value * np.float32(1.001) for name, value in back(tensors).items()},
    )
    figures = conversion_figures(tiny_base, adapter, mlx.config)
    assert figures["differing"] == 14  # the other half is 0 at the start


def test_only_the_last_layers_are_replayed_where_only_they_are_adapted(tiny_deep_base: Base) -> None:
    rows = [Row((*range(3, 60), 100 + i, 7, 8, 9), 58) for i in range(4)]
    lora, training = Lora(rank=2, layers=1), Training(batch_size=4, precision="float32")
    mlx = MlxTrainer(tiny_deep_base, lora, training)
    torch = TorchTrainer(tiny_deep_base, lora, training, mlx.adapter())
    loss, gradients = mlx.gradients(rows)
    other_loss, other = torch.gradients(rows)
    assert loss == pytest.approx(other_loss, NEAR)
    assert set(gradients) == set(other)
    for name, value in gradients.items():
        np.testing.assert_allclose(other[name], value, atol=1e-6)


def exact_losses(logits: Any, targets: Any) -> tuple[Any, Any]:
    """Return -log p of the targets and the gradient of their sum, in float64."""
    wide = logits.astype(np.float64)
    rows = np.arange(len(targets))
    others = np.exp(wide - wide[rows, targets][:, None])
    others[rows, targets] = 0
    odds = others.sum(1)
    gradient = others / (1 + odds)[:, None]
    gradient[rows, targets] = -odds / (1 + odds)
    return np.log1p(odds), gradient


@pytest.mark.parametrize("lead", [-40.0, 0.0, 8.0, 20.0, 40.0])
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_the_loss_is_exact_however_sure_the_model_is(backend: str, lead: float) -> None:
    logits = np.random.default_rng(0).normal(size=(16, 2048)).astype(np.float32)
    targets = np.arange(16)
    logits[np.arange(16), targets] = lead
    if backend == "mlx":
        import mlx.core as mx

        from pilocal.training.mlx.loss import cross_entropy

        chosen, loss_of = mx.array(targets), cast(Any, cross_entropy)
        losses = np.array(loss_of(mx.array(logits), chosen))
        gradient = np.array(mx.grad(lambda each: loss_of(each, chosen).sum())(mx.array(logits)))
    else:
        import torch

        from pilocal.training.torch_backend.loss import cross_entropy as torch_cross_entropy

        given = torch.tensor(logits, requires_grad=True)
        found = torch_cross_entropy(given, torch.tensor(targets))
        found.sum().backward()  # type: ignore[no-untyped-call]
        losses, gradient = found.detach().numpy(), given.grad.numpy()  # type: ignore[union-attr]
    wanted, wanted_gradient = exact_losses(logits, targets)
    np.testing.assert_allclose(losses, wanted, rtol=2e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=2e-5)
