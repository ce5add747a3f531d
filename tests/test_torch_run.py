"""A run on the PyTorch backend: resumable, exported and evaluated like any other, alone or in a team."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pilocal.base.base import Base
from pilocal.errors import InputError, PilocalError, RunError, TrainingError
from pilocal.flow.fitting import initial_adapter as starting_adapter
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.progress import Progress, silent
from pilocal.task import OPTIMIZERS, Lora, Training
from pilocal.task.schedule import Adaptive
from pilocal.training.backend import Backend, backend_of
from pilocal.training.torch_backend.trainer import TorchTrainer
from tests.forked import ROOT, pilocal
from tests.test_flow import NAMES, make_task
from tests.test_train import adapter_bytes, plans, random_rows, unexpected
from tests.test_train import fit as mlx_fit

LORA = Lora(rank=4, dropout=0.1)
TRAINING = Training(batch_size=4, learning_rate=1e-2, checkpoint_every=2, validate_every=3, seed=3)
SHARED = replace(TRAINING, batch_size=13, accumulate=2, learning_rate=1e-3)
"""Of 14 rows, so that the last step of an epoch has fewer rows than processes."""


def setup(base: Base, training: Training = TRAINING, lora: Lora = LORA, device: str = "cpu", **options: Any) -> Any:
    from pilocal.training.torch_backend.setup import Setup

    return Setup(base=base, lora=lora, training=training, device=device, **options)


def fit(
    base: Base,
    folder: Path,
    training: Training = TRAINING,
    lora: Lora = LORA,
    steps: tuple[int, ...] = (6, 5),
    **options: Any,
) -> Any:
    from pilocal.training.loop import train
    from pilocal.training.mlx.adapter import initial_adapter

    options = {"key": "key", "progress": silent, "warn": unexpected, **options}
    of_setup = {name: options.pop(name) for name in ("team", "peft") if name in options}
    initial = partial(initial_adapter, base, lora, training.seed)
    return train(setup(base, training, lora, initial=initial, **of_setup), plans(folder, steps), **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for i in "01" for line in (folder / i / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit(tiny_base, folder, peft=folder / "peft")
    return folder


STEP = """
import sys
from pathlib import Path

if sys.argv[2] == "mlx":
    import pilocal.training.mlx
from pilocal.training.torch_backend.adapter import draw
from pilocal.training.torch_backend.trainer import TorchTrainer
from pilocal.base.base import Base
from pilocal.task import Lora, Training
from tests.test_train import random_rows

trainer = TorchTrainer(Base.at(Path(sys.argv[1])), Lora(rank=4), Training(), None)
trainer.set_adapter({name: value + 0.01 for name, value in draw(trainer.shapes, 0).items()})
print(trainer.gradients(random_rows(3, 6, 20, 2, 16))[1]["model.layers.0.mlp.up_proj.lora_b"].tobytes().hex())
"""


def test_the_rounding_does_not_depend_on_whether_mlx_was_there_first(tiny_base: Base) -> None:
    def gradient(first: str) -> str:
        command = [sys.executable, "-c", STEP, str(tiny_base.folder), first]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert gradient("mlx") == gradient("torch") != ""


def stop_after(step: int) -> Progress:
    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == step:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("stop_at", [1, 3, 6, 7])
def test_an_interrupted_run_ends_with_the_same_adapter(
    whole_run: Path, tiny_base: Base, tmp_path: Path, stop_at: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path, progress=stop_after(stop_at))
    fit(tiny_base, tmp_path)
    assert adapter_bytes(tmp_path) == adapter_bytes(whole_run)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 12))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes(optimizer: str, tiny_base: Base, tmp_path: Path) -> None:
    training = replace(TRAINING, optimizer=optimizer)
    fit(tiny_base, tmp_path / "whole", training)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path / "cut", training, progress=stop_after(5))
    fit(tiny_base, tmp_path / "cut", training)
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")


def test_an_interrupt_finishes_the_step_and_saves(whole_run: Path, tiny_base: Base, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int, note: str = "") -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    rare, seen = replace(TRAINING, checkpoint_every=100), []
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path, rare, progress=interrupt)
    fit(tiny_base, tmp_path, rare, progress=lambda what, done, total, note="": seen.append(done))
    assert seen[0] in (4, 5)
    assert adapter_bytes(tmp_path) == adapter_bytes(whole_run)


def test_the_losses_and_files_of_two_stages_are_those_of_mlx(tiny_base: Base, tmp_path: Path) -> None:
    lora = replace(LORA, dropout=0.0)
    fit(tiny_base, tmp_path / "torch", lora=lora)
    mlx_fit(tiny_base, tmp_path / "mlx", TRAINING, lora=lora)
    ours, theirs = lines(tmp_path / "torch"), lines(tmp_path / "mlx")
    assert len(ours) == 11
    for line, other in zip(ours, theirs, strict=True):
        assert set(line) == set(other)
        for name in ("step", "trained_tokens", "prompt_tokens"):
            assert line[name] == other[name]
        assert line["learning_rate"] == pytest.approx(other["learning_rate"])
        for name in ("loss", "valid_loss"):
            if name in line:
                assert line[name] == pytest.approx(other[name], rel=1e-3)
    folders = [tmp_path / backend / "1" for backend in ("torch", "mlx")]
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    assert configs[0] == configs[1]
    tensors, expected = (load_file(folder / "adapters.safetensors") for folder in folders)
    assert {name: (value.shape, value.dtype) for name, value in tensors.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }


def test_the_final_adapter_is_there_in_pefts_format(whole_run: Path, tiny_base: Base) -> None:
    from pilocal.training.torch_backend.adapter import to_peft

    expected = to_peft(load_file(whole_run / "1" / "adapters.safetensors"))
    found = load_file(whole_run / "peft" / "adapter_model.safetensors")
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    config = json.loads((whole_run / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8.0, tiny_base.model)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    harm: str, whole_run: Path, tiny_base: Base, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path, progress=stop_after(5))
    newest = tmp_path / "0" / "checkpoint" / "step-0000004.safetensors"
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": bytearray()}[harm])
    warnings: list[str] = []
    fit(tiny_base, tmp_path, warn=warnings.append)
    assert warnings == [f"{newest}: damaged checkpoint; going on from the one before"]
    assert adapter_bytes(tmp_path) == adapter_bytes(whole_run)


def test_a_checkpoint_of_another_format_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path, progress=stop_after(3))
    (path,) = (tmp_path / "0" / "checkpoint").glob("step-*.safetensors")
    with safe_open(path, framework="numpy") as file:
        said = file.metadata()
    save_file(load_file(path), path, said | {"format": "torch-2"})
    with pytest.raises(RunError, match="a checkpoint of another version of pilocal; got 'torch-2'"):
        fit(tiny_base, tmp_path)


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_checkpoint(tiny_base: Base, tmp_path: Path) -> None:
    wild = replace(TRAINING, warmup=0.0, checkpoint_every=1, lr_schedule="constant")
    object.__setattr__(wild, "learning_rate", 1e36)  # far above what a task may say
    with pytest.raises(TrainingError, match="lower learning_rate"):
        fit(tiny_base, tmp_path, wild)
    assert (tmp_path / "0" / "checkpoint" / "step-0000001.safetensors").is_file()


def test_without_mlx_the_start_is_drawn_here_and_that_is_said(tiny_base: Base, tmp_path: Path) -> None:
    from pilocal.training.loop import train

    warnings: list[str] = []
    train(setup(tiny_base), plans(tmp_path), key="key", progress=silent, warn=warnings.append)
    assert warnings == [
        "MLX cannot be imported, so the adapter's start is drawn by NumPy: not the one that MLX trains from"
    ]
    assert lines(tmp_path)[-1]["step"] == 11


# The whole flow.


def flow(folder: Path, backend: Backend | None, last: str = "evaluate") -> dict[str, bool]:
    done: dict[str, bool] = {}
    listeners = Listeners(step=lambda result: done.update({result.name: not result.skipped}))
    with open_task(folder, folder / "schedule.toml", folder / "run", listeners, backend) as context:
        run_steps(context, step_named(last))
    return done


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task that was run by the command line, on the CPU."""
    task = make_task(tmp_path_factory.mktemp("flow") / "task", tiny_base.folder)
    options = ("--backend", "torch", "--device", "cpu", "--schedule", task / "schedule.toml")
    done = pilocal("run", task, *options)
    assert done.returncode == 0, done.stderr
    assert "serve it with" in done.stdout
    return task


def test_the_command_runs_the_whole_flow(finished: Path) -> None:
    run = finished / "run"
    assert json.loads((run / "run.json").read_text())["backend"] == {
        "name": "torch",
        "device": "cpu",
        "weights": None,
        "initial_adapter": None,
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["arms"]) >= {"internalized", "shipped", "direct_drop"}
    for name in ("adapter/adapters.safetensors", "adapter_peft/adapter_model.safetensors", "export/adapter.gguf"):
        assert (run / name).is_file()


def test_what_follows_the_training_goes_on_without_being_told_the_backend(finished: Path) -> None:
    assert flow(finished, None) == dict.fromkeys(NAMES, False)


def test_another_backend_redoes_the_training_and_what_depends_on_it(finished: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(finished, kept)
    redone = {"train", "direct_drop", "retention", "export", "evaluate"}
    try:
        assert {step for step, ran in flow(finished, Backend()).items() if ran} == redone
        assert flow(finished, Backend(name="torch", device="cpu"), "train")["train"]
    finally:
        shutil.rmtree(finished)
        shutil.copytree(kept, finished)


def test_mlx_keys_do_not_know_of_backends(finished: Path) -> None:
    def key(backend: Backend) -> tuple[str, list[Any]]:
        with open_task(finished, finished / "schedule.toml", finished / "run", backend=backend) as context:
            return step_named("train").key(context), context.backend.facts("float32")

    mlx, torch = key(Backend()), key(Backend(name="torch", device="cpu"))
    assert mlx[1] == []
    assert mlx[0] != torch[0]
    assert torch[1] == [{"backend": "torch", "device": "cpu", "precision": "float32", "initial_adapter": None}]


def test_it_starts_from_a_given_adapter(finished: Path, tmp_path: Path) -> None:
    given = finished / "run" / "adapter"
    backend = Backend(name="torch", device="cpu", initial_adapter=given)
    folder = tmp_path / "run"
    with open_task(finished, finished / "schedule.toml", folder, backend=backend) as context:
        start = starting_adapter(context)
        assert start is not None
        assert all(np.array_equal(start[n], v) for n, v in load_file(given / "adapters.safetensors").items())
        assert (
            step_named("train").key(context)
            != json.loads((finished / "run/run.json").read_text())["steps"]["train"]["key"]
        )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lora": 'kind = "dora"', "export": 'quant = "f16"'}, r"does not train magnitudes \(DoRA\); got 'dora'"),
        ({"training": "compile = true"}, "the PyTorch backend does not compile"),
    ],
)
def test_what_the_backend_does_not_do_is_refused_before_any_work(
    changes: dict[str, Any], line: str, tiny_base: Base, tmp_path: Path
) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    text = (task / "task.toml").read_text()
    for table, setting in changes.items():
        text = text.replace(f"[{table}]", f"[{table}]\n{setting}")
    (task / "task.toml").write_text(text)
    with pytest.raises(PilocalError, match=line):
        flow(task, Backend(name="torch", device="cpu"))
    assert not (task / "run" / "stages").exists()


@pytest.mark.parametrize("stop_at", [3, 5])
def test_an_adaptive_run_makes_mlxs_decisions_interrupted_or_not(stop_at: int, tiny_base: Base, tmp_path: Path) -> None:
    lora, adaptive = replace(LORA, dropout=0.0), Adaptive(margin=1e9, least=0.5)
    training = replace(TRAINING, validate_every=4)
    fit(tiny_base, tmp_path / "torch", training, lora, adaptive=adaptive)
    mlx_fit(tiny_base, tmp_path / "mlx", training, lora=lora, adaptive=adaptive)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path / "cut", training, lora, adaptive=adaptive, progress=stop_after(stop_at))
    fit(tiny_base, tmp_path / "cut", training, lora, adaptive=adaptive)
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "torch")
    ours, theirs, cut = (lines(tmp_path / name) for name in ("torch", "mlx", "cut"))
    decided = [line["decision"] for line in ours if "decision" in line]
    assert decided == [line["decision"] for line in cut if "decision" in line]
    assert [made["moves_on"] for made in decided] == [True]
    for line, other in zip(ours, theirs, strict=True):
        assert line["step"] == other["step"]
        assert line.get("decision", {}).keys() == other.get("decision", {}).keys()
    expected = [line["decision"]["next_valid_loss"] for line in theirs if "decision" in line]
    assert [made["next_valid_loss"] for made in decided] == pytest.approx(expected, rel=1e-3)


def test_patience_ends_the_last_stage_and_keeps_the_best_adapter(tiny_base: Base, tmp_path: Path) -> None:
    lora = Lora(rank=4)
    training = replace(TRAINING, learning_rate=5e-2, lr_schedule="constant", validate_every=1, patience=3)
    fit(tiny_base, tmp_path, training, lora, steps=(4, 60))
    losses = [json.loads(line)["valid_loss"] for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) < 60
    assert len(losses) - 1 - losses.index(min(losses)) == 3
    kept = TorchTrainer(tiny_base, lora, training, load_file(tmp_path / "1" / "adapters.safetensors"))
    loss, tokens = kept.evaluate(random_rows(9, 4))
    assert loss / tokens == pytest.approx(min(losses), rel=1e-5)
    before = adapter_bytes(tmp_path)
    fit(tiny_base, tmp_path, training, lora, steps=(4, 60), progress=lambda *said: pytest.fail("nothing is left to do"))
    assert adapter_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--device", "cpu"], "pilocal train: --device belongs to --backend torch"),
        (["--backend", "mlx", "--device", "cpu"], "pilocal train: --device belongs to --backend torch"),
        (["--initial-adapter", "x"], "pilocal train: --initial-adapter belongs to --backend torch"),
        (["--backend", "jax"], "pilocal train: Invalid value for '--backend': 'jax' is not one of"),
    ],
)
def test_options_that_make_no_sense_together_are_misuse(options: list[str], line: str) -> None:
    done = pilocal("train", "task", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(line)


def test_a_run_of_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    for kept in ({"name": "jax"}, {}, "torch"):
        with pytest.raises(RunError, match="made by another version of pilocal: its backend is unknown"):
            backend_of({"backend": kept}, tmp_path)
    assert backend_of({}, tmp_path) == Backend()


def test_an_initial_adapter_that_is_not_there_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    with pytest.raises(InputError, match=r"no adapters.safetensors; point at a folder"):
        flow(task, Backend(name="torch", device="cpu", initial_adapter=tmp_path))
