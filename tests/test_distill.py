"""Distillation: the distance from the teacher in both backends, the teacher's pass, and a run that learns from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import RunError
from pilocal.flow.opening import open_task
from pilocal.flow.steps.teacher import soft_rows
from pilocal.prompt.soft import Soft, soften
from pilocal.prompt.tokens import Row
from pilocal.run_folder.teacher import read_soft, write_soft
from pilocal.task import Training
from pilocal.task.tables import DIVERGENCES
from tests.forked import pilocal as command
from tests.test_flow import flow, make_task
from tests.test_train import LORA, random_rows

DISTILL = Training(objective="distill", learning_rate=1e-3)
VOCABULARY = 50


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def kl(of: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (np.exp(of) * (of - to)).sum(-1)
    return found


def expected(teacher: NDArray[np.float64], student: NDArray[np.float64], count: int, divergence: str) -> NDArray[Any]:
    """The distance by its definition, with all but the `count` likeliest tokens of the teacher as one."""
    rows = []
    for of, to in zip(teacher, student, strict=True):
        order = np.argsort(-of, kind="stable")
        rest = [np.log(np.exp(one[order[count:]]).sum()) for one in (of, to)] if count < len(of) else [[], []]
        rows.append([np.append(one[order[:count]], tail) for one, tail in zip((of, to), rest, strict=True)])
    t, s = (np.array([row[side] for row in rows]) for side in (0, 1))
    middle = np.logaddexp(t, s) - np.log(2)
    return {"forward": kl(t, s), "reverse": kl(s, t), "js": (kl(t, middle) + kl(s, middle)) / 2}[divergence]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("count", [1, 5, VOCABULARY, 2 * VOCABULARY])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_both_backends_compute_the_distance_and_the_same_gradient(
    temperature: float, count: int, divergence: str
) -> None:
    import mlx.core as mx
    import torch

    from pilocal.training.mlx.loss import distance as in_mlx
    from pilocal.training.torch_backend.loss import distance as in_torch

    rng = np.random.default_rng(count)
    teacher, logits = rng.normal(0, 3, (7, VOCABULARY)), rng.normal(0, 3, (7, VOCABULARY)).astype(np.float32)
    teacher[0, 4] = 60.0  # sure: the rest has no probability that float32 could tell from none
    soft = soften(log_softmax(teacher / temperature).astype(np.float32), count)
    wanted = expected(
        log_softmax(teacher / temperature), log_softmax(logits.astype(np.float64) / temperature), count, divergence
    )
    arrays = [mx.array(part) for part in (soft.ids_CK, soft.log_probs_CK, soft.tail_C)]

    def total(logits_NV: mx.array) -> mx.array:
        return in_mlx(logits_NV, arrays, temperature, divergence).sum()

    found = np.array(in_mlx(mx.array(logits), arrays, temperature, divergence))
    assert found == pytest.approx(wanted * temperature**2, rel=1e-4, abs=1e-4)
    leaf = torch.tensor(logits, requires_grad=True)
    there = in_torch(leaf, [soft], temperature, divergence)
    assert there.detach().numpy() == pytest.approx(found, rel=1e-4, abs=1e-5)
    there.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    gradient = np.array(mx.grad(total)(mx.array(logits)))
    assert np.isfinite(gradient).all()
    assert leaf.grad.numpy() == pytest.approx(gradient, rel=1e-3, abs=1e-5)
    assert np.abs(gradient).max() > 0.01


def test_a_student_that_is_the_teacher_has_no_distance_and_no_gradient() -> None:
    import mlx.core as mx

    from pilocal.training.mlx.loss import distance

    logits = np.random.default_rng(1).normal(0, 2, (5, VOCABULARY)).astype(np.float32)
    soft = soften(log_softmax(logits.astype(np.float64)).astype(np.float32), 8)
    arrays = [mx.array(part) for part in (soft.ids_CK, soft.log_probs_CK, soft.tail_C)]
    for divergence in DIVERGENCES:
        assert np.abs(np.array(distance(mx.array(logits), arrays, 1.0, divergence))).max() < 1e-5
        gradient = mx.grad(lambda x, by=divergence: distance(x, arrays, 1.0, by).sum())(mx.array(logits))
        assert np.abs(np.array(gradient)).max() < 1e-5


def softened(rows: list[Row], seed: int, count: int = 6, vocabulary: int = 2000) -> list[Row]:
    """The rows with what a random teacher says."""
    rng = np.random.default_rng(seed)
    return [
        row._replace(soft=soften(log_softmax(rng.normal(0, 4, (len(row.completion), vocabulary))).astype(np.float32),
                                 count))
        for row in rows
    ]  # fmt: skip


def said_by_a_model(rows: list[Row]) -> list[Row]:
    """The rows as what a model said, and no references."""
    return [row._replace(soft=replace(row.soft, reference=False)) for row in rows if row.soft is not None]


@pytest.mark.parametrize("answers", [0.0, 0.3])
def test_loss_and_gradients_of_a_batch_are_the_same_in_both_backends_shared_or_not(
    answers: float, tiny_base: Base
) -> None:
    from pilocal.training.mlx.trainer import MlxTrainer
    from pilocal.training.torch_backend.trainer import TorchTrainer

    training = replace(DISTILL, distill_answers=answers, distill_temperature=1.5)
    rows = softened(random_rows(3, 6, 20, 2, 16), 5)
    mlx = MlxTrainer(tiny_base, LORA, training)
    loss, wanted = mlx.gradients(rows)
    hard, _ = MlxTrainer(tiny_base, LORA, Training()).gradients([row._replace(soft=None) for row in rows])
    assert abs(loss - hard) > 0.01
    for share in (False, True):
        torch = TorchTrainer(tiny_base, LORA, training, mlx.adapter(), share=share)
        found_loss, found = torch.gradients(rows)
        assert found_loss == pytest.approx(loss, rel=1e-4)
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= 1e-4 * max(1.0, np.abs(value).max()), name
    parts = MlxTrainer(tiny_base, LORA, replace(training, accumulate=3), mlx.adapter()).gradients(rows)
    assert parts[0] == pytest.approx(loss, rel=1e-5)


def test_what_the_teacher_says_is_the_base_s_own_whether_prompts_are_read_once_or_anew(tiny_base: Base) -> None:
    from pilocal.base.reference import MlxReference
    from pilocal.training.mlx.teacher import MlxTeacher
    from pilocal.training.torch_backend.setup import Setup

    rows = random_rows(3, 9, 20, 2, 16)
    training = replace(DISTILL, batch_size=1, distill_top_k=3, distill_temperature=2.0)
    shared, whole = (MlxTeacher(load_base(tiny_base), training, share=share).says(rows) for share in (True, False))
    in_torch = Setup(base=tiny_base, lora=LORA, training=training, device="cpu").teacher().says(rows)
    reference = MlxReference(tiny_base, None)
    for row, *said in zip(rows, shared, whole, in_torch, strict=True):
        own = soften(log_softmax(reference.logits(row).astype(np.float64) / 2).astype(np.float32), 3)
        for soft in said:
            assert np.array_equal(soft.ids_CK, own.ids_CK)
            assert soft.log_probs_CK == pytest.approx(own.log_probs_CK, abs=1e-4)
            assert soft.tail_C == pytest.approx(own.tail_C, abs=1e-4)


@pytest.mark.parametrize("fixture", ["tiny_base", "tiny_gemma3_base", "tiny_gemma4_shared_base"])
def test_what_all_rows_begin_with_is_read_once_for_all_batches(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilocal.training.mlx import teacher
    from pilocal.training.torch_backend.setup import Setup
    from pilocal.training.torch_backend.trainer import TorchTrainer

    tiny_base: Base = request.getfixturevalue(fixture)
    rows = random_rows(5, 11, 40, 2, 16)
    training = replace(DISTILL, batch_size=1, distill_top_k=4, recompute=True)
    whole = teacher.MlxTeacher(load_base(tiny_base), training, share=False).says(rows)
    read = list[int]()
    for place in (teacher, TorchTrainer):

        def counted(model: Any, tokens: Any, *before: Any, of: Any = place.read_prefix) -> Any:
            read.append(len(tokens))
            return of(model, tokens, *before)

        monkeypatch.setattr(place, "read_prefix", counted)
    mlx = teacher.MlxTeacher(load_base(tiny_base), training)
    torch = Setup(base=tiny_base, lora=LORA, training=training, device="cpu").teacher()
    for found in (mlx, torch):
        for one, other in zip([*found.says(rows[:6]), *found.says(rows[6:])], whole, strict=True):
            assert np.array_equal(one.ids_CK, other.ids_CK)
            assert one.log_probs_CK == pytest.approx(other.log_probs_CK, abs=1e-4)
            assert one.tail_C == pytest.approx(other.tail_C, abs=1e-4)
        assert read == [40]
        read.clear()


def test_of_equally_likely_tokens_the_first_are_kept() -> None:
    rng = np.random.default_rng(2)
    log_probs = np.log(rng.integers(1, 6, (9, 50)) / 150).astype(np.float32)
    for count in (1, 7, 50, 60):
        found, order = soften(log_probs, count), np.argsort(-log_probs, axis=-1, kind="stable")[:, :count]
        assert np.array_equal(found.ids_CK, order)
        kept = np.exp(np.take_along_axis(log_probs, order, -1)).sum(-1)
        assert np.exp(found.tail_C) == pytest.approx(np.exp(log_probs).sum(-1) - kept, abs=1e-6)


def said(count: int) -> list[Soft]:
    return [row.soft for row in softened(random_rows(7, count), 1) if row.soft is not None]


def same(found: list[Soft] | None, wanted: list[Soft]) -> bool:
    parts = ("ids_CK", "log_probs_CK", "tail_C")
    return found is not None and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip(found, wanted, strict=True)
        for name in parts
    )


def test_what_was_said_is_read_as_it_was_written_and_damage_is_noticed(tmp_path: Path) -> None:
    path, soft = tmp_path / "train" / "0.npz", said(5)
    write_soft(path, soft, "key")
    found = read_soft(path, "key")
    assert same(found, soft)
    assert read_soft(path, "another key") is None
    assert read_soft(tmp_path / "none.npz", "key") is None
    whole = path.read_bytes()
    for at in range(40, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        found = read_soft(path, "key")
        assert found is None or same(found, soft)  # not every byte of a zip file is content
    path.write_bytes(whole[:100])
    assert read_soft(path, "key") is None


def test_rows_with_what_was_said_travel_to_the_other_processes() -> None:
    from pilocal.training.mlx.team import _pack, _unpack

    rows = [*softened(random_rows(3, 4), 5), *random_rows(4, 2), *said_by_a_model(softened(random_rows(5, 3), 6))]
    found = _unpack(np.concatenate([part for row in rows for part in _pack(row)]))
    for row, other in zip(rows, found, strict=True):
        assert row[:2] == other[:2]
        assert (row.soft is None) == (other.soft is None)
        assert row.is_said == other.is_said
        if row.soft and other.soft:
            assert same([other.soft], [row.soft])


def distilled(folder: Path, base: Base) -> Path:
    make_task(folder, base.folder)
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace("[training]", '[training]\nobjective = "distill"'))
    return folder


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = distilled(tmp_path_factory.mktemp("distill") / "task", tiny_base)
    assert flow(folder)["teacher"]
    return folder


def adapter(folder: Path) -> bytes:
    return (folder / "run" / "adapter" / "adapters.safetensors").read_bytes()


def test_a_run_distils_and_is_up_to_date_afterwards(finished: Path) -> None:
    assert not any(flow(finished).values())
    lines = [json.loads(line) for line in (finished / "run/stages/0/metrics.jsonl").read_text().splitlines()]
    # The student begins as the teacher, and reads the same prompt in stage 0.
    assert 0 <= lines[0]["loss"] < 1e-4
    later = [json.loads(line) for line in (finished / "run/stages/2/metrics.jsonl").read_text().splitlines()]
    assert later[0]["loss"] > 1e-3


def stop(place: tuple[str, int], what: str, done: int, total: int, note: str = "") -> None:
    """Interrupt the work at a place in it."""
    if (what, done) == place:
        raise KeyboardInterrupt


def test_a_distillation_that_is_interrupted_ends_with_the_same_adapter(
    finished: Path, tiny_base: Base, tmp_path: Path
) -> None:
    folder = distilled(tmp_path / "task", tiny_base)
    for what, at in (("teacher: train", 9), ("train", 4)):
        with pytest.raises(KeyboardInterrupt):
            flow(folder, "train", partial(stop, (what, at)))
    file = folder / "run" / "teacher" / "valid" / "00000.npz"
    file.write_bytes(file.read_bytes()[:50])
    flow(folder, "train")
    assert adapter(folder) == adapter(finished)


def test_the_answers_objective_asks_no_teacher(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    assert "teacher" not in flow(folder, "train")
    assert not (folder / "run" / "teacher").exists()


@pytest.fixture
def long_template(tiny_base: Base, tmp_path: Path) -> Path:
    """A task whose whole template is longer than the context, and whose stages show little of it."""
    folder = make_task(tmp_path / "task", tiny_base.folder)
    entries = "".join(f"- thing{i} KEL\n" for i in range(tiny_base.context // 3))
    (folder / "template.md").write_text(f"Answer with the code.\n- red ZOR\n- blue MIP\n{entries}Please be kind.\n")
    stages = "".join(f"[[stage]]\ntau = {tau}\nshots = 0\nshare = 0.5\n" for tau in (0.1, 0.0))
    (folder / "schedule.toml").write_text(stages)
    return folder


def test_a_prompt_that_is_too_long_for_the_teacher_alone_is_one_line(long_template: Path, tmp_path: Path) -> None:
    schedule = ("--schedule", long_template / "schedule.toml")
    done = command("check", long_template, *schedule, "--no-probe", "--gap")
    assert done.returncode == 0, done.stderr
    assert "it begins at tau 0.1, which is all that a full prompt has of it" in done.stdout + done.stderr
    assert re.search(r"hint: no census: the whole prompt is \d+ tokens over the model's context", done.stdout)
    text = (long_template / "task.toml").read_text()
    (long_template / "task.toml").write_text(text.replace("[training]", '[training]\nobjective = "distill"'))
    line = (
        r'objective = "distill": the longest row with the whole prompt is \d+ tokens over the model\'s context of \d+; '
    )
    for arguments in (("check", long_template), ("train", long_template, "--run", tmp_path / "run")):
        done = command(*arguments, *schedule)
        assert done.returncode == 1
        assert re.search(line, done.stderr) and "Traceback" not in done.stderr


def test_parity_says_that_it_replays_answers_alone(finished: Path) -> None:
    done = command("parity", finished / "run", "--steps", "6", "--device", "cpu")
    assert done.returncode == 1
    assert "[training] objective: parity replays the loss on answers" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_training_whose_teacher_s_words_are_gone_says_so(finished: Path) -> None:
    with open_task(finished, finished / "schedule.toml", finished / "run") as context:
        rows = context.rows(0, "train")
        assert all(row.soft for row in soft_rows(context, "train", rows))
        file = finished / "run" / "teacher" / "train" / "00000.npz"
        whole = file.read_bytes()
        file.write_bytes(b"")
        with pytest.raises(RunError, match="what the teacher says is not there, or damaged"):
            soft_rows(context, "train", rows)
        file.write_bytes(whole)
