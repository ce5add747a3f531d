"""A base that is sharded over processes: the numbers of one process, and a part of every layer in each."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pilocal.base.base import Base
from pilocal.errors import PilocalError
from pilocal.progress import silent
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.backend import PACKED, UNPACKED, shards, torchrun_rank
from pilocal.training.follow import follow
from pilocal.training.torch_backend.memory import estimate
from pilocal.training.torch_backend.passes import Pass, passes
from tests.forked import Forked, pilocal
from tests.test_distill import said_by_a_model, softened
from tests.test_flow import make_task
from tests.test_team import ends, read_until, tell
from tests.test_torch_run import SHARED, lines
from tests.test_torch_run import setup as torch_setup
from tests.test_torch_team import environments, launched
from tests.test_train import plans, random_rows, unexpected

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""

LORA = Lora(rank=4)


def launch(function: Any, *arguments: object) -> list[Forked]:
    """Start two processes that share a base."""
    return [Forked(function, *arguments, **variables, **FSDP) for variables in environments()]


def steps() -> list[tuple[Training, list[Row]]]:
    """Return what differs between processes: numbers of rows, of parts, of kinds of rows, and what rows begin with."""
    together = random_rows(3, 9, 40, 2, 16)
    weighed = [row._replace(weight=2.0) for row in together[:2]] + together[2:5]
    return [
        (Training(), together[:3]),
        (Training(), together[:1]),
        (Training(accumulate=2), together[:5]),
        (Training(recompute=True), together[:3]),
        (Training(accumulate=2), weighed),
        (Training(), together[:3] + said_by_a_model(softened(random_rows(4, 3, 2), 5))),
    ]


def compute(base: Base, weights: str, team: Any = None) -> dict[str, Any]:
    """Return what a trainer computes of these steps, and the bytes of weights that it holds before and after."""
    from pilocal.training.torch_backend.adapter import draw
    from pilocal.training.torch_backend.trainer import TorchTrainer

    found: dict[str, Any] = {"losses": [], "valid": [], "norms": [], "held": []}
    for training, rows in steps():
        trainer = TorchTrainer(base, LORA, training, None, weights=weights, share=True, team=team)
        trainer.set_adapter({name: value + 0.01 for name, value in draw(trainer.shapes, 0).items()})
        found["held"].append(held(trainer.model))
        loss, gradients = trainer.gradients(rows)
        found["losses"].append(loss)
        found["norms"] += [float(np.abs(value).sum()) for value in gradients.values()]
        found["valid"].append(trainer.evaluate(rows)[0])
        found["held"].append(held(trainer.model))
    return found


def held(model: Any) -> int:
    parts = [value.to_local() if hasattr(value, "to_local") else value for value in model.parameters()]
    return sum({value.data_ptr(): value.untyped_storage().nbytes() for value in parts}.values())


def compute_in_team(folder: Path, weights: str) -> None:
    """Compute as one of two processes, and say what was found."""
    import torch

    from pilocal.training.torch_backend.team import TorchTeam

    torch.set_num_threads(1)
    team = TorchTeam.join("cpu")
    sys.stdout.write(json.dumps(compute(Base.at(folder), weights, team)))
    team.leave()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fixture", "weights"),
    [("tiny_gemma3_base", PACKED), ("tiny_biased_base", UNPACKED)],
)
def test_every_step_is_that_of_one_process_which_holds_twice_as_much(
    fixture: str, weights: str, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(fixture)
    one = compute(base, weights)
    for status, found, fault in ends(launch(compute_in_team, base.folder, weights)):
        assert status == 0, fault
        assert "Warning" not in fault
        two = json.loads(found)
        for name in ("losses", "valid", "norms"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
        whole, adapter = one["held"][0], 4 * sum(a * b for a, b in adapter_shapes(base))
        tied = base.config.get("tie_word_embeddings", True)
        ends_again = whole if tied else 0  # the two ends have the same weights, and a part each
        assert set(two["held"]) == {two["held"][0]}
        assert two["held"][0] - adapter < 0.55 * (whole - adapter) + ends_again // 4


def adapter_shapes(base: Base) -> list[tuple[int, int]]:
    from pilocal.training.torch_backend.trainer import TorchTrainer

    return list(TorchTrainer(base, LORA, Training(), None).shapes.values())


def fit_in_team(base: Path, folder: Path, weights: str) -> None:
    """Train as one of two processes, two stages with odd numbers of rows; the first one tells its steps."""
    import torch

    from pilocal.training.torch_backend.team import TorchTeam

    torch.set_num_threads(1)
    try:
        team = TorchTeam.join("cpu")
        if torchrun_rank():
            follow(torch_setup(Base.at(base), SHARED, LORA, weights=weights, team=team))
            return
        try:
            fit(Base.at(base), folder, weights=weights, team=team, progress=tell)
        finally:
            team.end()
    except PilocalError as error:
        sys.exit(str(error))


def fit(base: Base, folder: Path, *, progress: Any = silent, **of_setup: Any) -> None:
    from pilocal.training.loop import train
    from pilocal.training.torch_backend.adapter import draw

    made = torch_setup(base, SHARED, LORA, **of_setup)
    object.__setattr__(made, "initial", partial(draw, shapes_of(base), 5))
    stages = [replace(plan, valid=plan.valid[:3]) for plan in plans(folder)]
    train(made, stages, key="key", progress=progress, warn=unexpected)


def shapes_of(base: Base) -> dict[str, tuple[int, int]]:
    from pilocal.training.torch_backend.trainer import TorchTrainer

    return TorchTrainer(base, LORA, Training(), None, weights=PACKED).shapes


def curves(folder: Path) -> list[float]:
    return [line[name] for line in lines(folder) for name in ("loss", "valid_loss") if name in line]


@pytest.fixture(scope="module")
def alone(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by one process."""
    folder = tmp_path_factory.mktemp("sharded") / "alone"
    fit(tiny_base, folder, weights=UNPACKED)
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("weights", [UNPACKED, PACKED])
def test_a_killed_training_goes_on_sharded_or_whole(weights: str, alone: Path, tiny_base: Base, tmp_path: Path) -> None:
    """It has the losses of one process before the kill and after it, and the same checkpoints."""
    killed = launch(fit_in_team, tiny_base.folder, tmp_path / "run", weights)
    read_until(killed[0], "5")
    killed[1].send(signal.SIGKILL)
    (status, _, fault), (dead, _, _) = ends(killed)
    assert (status, dead) == (1, -signal.SIGKILL)
    assert "rank 0 of 2: another process of this training is gone" in fault
    assert "Traceback" not in fault
    if weights == PACKED:
        fit(tiny_base, tmp_path / "run", weights=weights)
    else:
        for status, _, fault in ends(launch(fit_in_team, tiny_base.folder, tmp_path / "run", weights)):
            assert status == 0, fault
    wanted, found = curves(alone), curves(tmp_path / "run")
    assert len(found) == len(wanted) > 11
    assert found == pytest.approx(wanted, rel=1e-5)
    one, two = (load_file(folder / "1" / "adapters.safetensors") for folder in (alone, tmp_path / "run"))
    assert all(np.abs(two[name] - value).max() < 1e-4 for name, value in one.items())


def ask(setup: Any, adapter: Path) -> dict[str, Any]:
    """Ask the base as a teacher, then with an adapter, and then train on."""
    rows, how = random_rows(3, 5, 40), {"ends": frozenset({2047}), "max_tokens": 4, "batch_size": 2}
    teacher, model = setup.teacher(), setup.reference(adapter)
    soft = teacher.says(rows)
    return {
        "said": [value for one in soft for value in one.log_probs_CK.ravel().tolist()],
        "losses": [value for one in teacher.losses(rows) for value in one.tolist()],
        "logits": model.logits(rows[0]).ravel().tolist(),
        "answers": model.answer([row.tokens for row in rows[:3]], progress=silent, name="answers", **how),
        "again": [value for one in teacher.losses(rows[:1]) for value in one.tolist()],
    }


def ask_in_team(base: Path, adapter: Path, folder: Path) -> None:
    import torch

    from pilocal.training.torch_backend.team import TorchTeam

    torch.set_num_threads(1)
    team = TorchTeam.join("cpu")
    made = torch_setup(Base.at(base), SHARED, LORA, weights=PACKED, team=team)
    if torchrun_rank():
        follow(made)
        return
    found = ask(made, adapter)
    fit(Base.at(base), folder, weights=PACKED, team=team)
    team.end()
    sys.stdout.write(json.dumps(found))


@pytest.mark.processes
def test_all_processes_answer_what_the_first_is_asked(
    alone: Path, tiny_base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    wanted = ask(torch_setup(tiny_base, SHARED, LORA, weights=PACKED), tiny_adapter)
    (status, found, fault), (other, nothing, _) = ends(launch(ask_in_team, tiny_base.folder, tiny_adapter, tmp_path))
    assert (status, other, nothing) == (0, 0, ""), fault
    answers = json.loads(found)
    assert answers.pop("answers") == wanted.pop("answers")
    for name, values in wanted.items():
        assert answers[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    assert curves(tmp_path) == pytest.approx(curves(alone), rel=1e-5)


ACCELERATE = [
    *("accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_machines", "1", "--num_processes", "2"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "PORT", "-m"),
]


@pytest.mark.processes
def test_accelerate_shards_a_whole_distillation(tiny_base: Base, tmp_path: Path) -> None:
    """The teacher reads the prompts before, and every process has a part of it."""
    task = make_task(tmp_path / "task", tiny_base.folder)
    text = (task / "task.toml").read_text()
    (task / "task.toml").write_text(text.replace("[training]", '[training]\nobjective = "distill"'))
    options = ["--backend", "torch", "--device", "cpu", "--schedule", task / "schedule.toml"]
    done = pilocal("train", task, *options)
    assert done.returncode == 0, done.stderr
    with launched(ACCELERATE, "train", task, *options, "--weights", "packed", "--run", tmp_path / "run") as process:
        fault = process.communicate(timeout=240)[1]
    assert process.returncode == 0, fault
    one, two = (
        [
            json.loads(line)["loss"]
            for path in sorted((run / "stages").glob("*/metrics.jsonl"))
            for line in path.read_text().splitlines()
        ]
        for run in (task / "run", tmp_path / "run")
    )
    assert len(one) == 7
    assert two == pytest.approx(one, rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_all_make_the_same_passes_and_every_row_counts_once(
    seed: int, count: int, processes: int, accumulate: int, share: bool
) -> None:
    rows = random_rows(seed, count, 40) + said_by_a_model(softened(random_rows(seed + 1, seed % 4, 2), 5))
    rows = [row._replace(weight=1.0 + (i < count // 2)) for i, row in enumerate(rows)]
    dealt = passes(rows, processes, accumulate, share=share, alike=True)
    for turn in zip(*dealt, strict=True):
        assert len({bool(each.prefix) for each in turn}) == 1
        assert any(counted(turn))
    found = [counted(own) for own in dealt]
    assert sorted(id(row) for own in found for some, _ in own for row in some) == sorted(map(id, rows))
    assert found == [counted(own) for own in passes(rows, processes, accumulate, share=share, alike=False)]


def counted(some: Iterable[Pass]) -> list[tuple[list[Row], float]]:
    """Return the rows of passes that count, and what their loss is divided by."""
    return [(each.rows, each.count) for each in some if math.isfinite(each.count)]


LLAMA_70B = {
    "model_type": "llama",
    **{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    **{"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    "quantization": {"bits": 4, "group_size": 64},
}


def test_seventy_billion_weights_in_four_bits_fit_two_gpus_of_40_gb() -> None:
    rest = (LLAMA_70B, LORA, Training(batch_size=4, recompute=True), "bfloat16", [random_rows(0, 8, 1000)], PACKED)
    one, two, four = (estimate(*rest, count) / 1e9 for count in (1, 2, 4))
    assert one > 40 > two > 70.6 * 4.5 / 8 / 2
    assert four < 0.6 * two
    assert estimate(*rest[:-1], UNPACKED, 2) > 2e9 * 70.6 / 2


@pytest.mark.parametrize(
    ("options", "variables", "line"),
    [
        (["--weights", "nf4"], {}, r"--weights nf4: what bitsandbytes has rounded is not sharded; leave --weights out"),
        ([], {"FSDP_OFFLOAD_PARAMS": "true"}, r"FSDP_OFFLOAD_PARAMS: shards stay .* leave --fsdp_offload_params out"),
    ],
)
def test_what_is_not_sharded_is_refused_by_check(
    options: list[str], variables: dict[str, str], line: str, tiny_base: Base, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    task = make_task(tmp_path / "task", tiny_base.folder)
    shared = environments()[0] | FSDP | variables
    done = pilocal("check", task, "--backend", "torch", "--device", "cpu", *options, **shared)
    assert done.returncode != 0
    assert re.search(line, done.stderr)


def test_check_tells_once_what_each_process_takes(tiny_base: Base, tmp_path: Path) -> None:
    task, options = make_task(tmp_path / "task", tiny_base.folder), ["--backend", "torch", "--device", "cpu", "--json"]
    first, second = (pilocal("check", task, *options, **each, **FSDP) for each in environments())
    alone = pilocal("check", task, *options, "--no-probe")
    assert (second.returncode, second.stdout) == (0, "")
    shared, whole = (json.loads(done.stdout) for done in (first, alone))
    for one, all_of_it in zip(shared["stages"], whole["stages"], strict=True):
        assert one["peak_memory"] < all_of_it["peak_memory"]
        assert one["seconds"] is None
    assert shared["gap"] is None


def test_without_fsdp_nothing_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (environments()[0] | {"FSDP_VERSION": "2", "ACCELERATE_USE_FSDP": "false"}).items():
        monkeypatch.setenv(name, value)
    assert shards() == 1
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert shards() == 2
    monkeypatch.delenv("WORLD_SIZE")
    assert shards() == 1
