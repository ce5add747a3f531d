"""Unrelated requests in every step: which rows, their loss on both backends, and runs that resume and forget less."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pilocal
from pilocal.base.base import Base
from pilocal.errors import InputError, PilocalError, RunError
from pilocal.flow.listeners import Listeners
from pilocal.flow.mixing import GENERAL, mix_queries
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.steps.mix import mixed
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training, load_task
from pilocal.task.examples import load_queries
from pilocal.training.backend import Backend
from pilocal.training.row_order import RowOrder, StagePlan, Stream, parted
from tests.forked import pilocal as command
from tests.test_distill import said_by_a_model, softened, stop
from tests.test_flow import flow, make_task
from tests.test_train import LORA, random_rows

TRAINING = Training(learning_rate=1e-3, distill_answers=0.3, distill_temperature=1.5)


def unrelated(seed: int, count: int) -> list[Row]:
    """Rows that begin otherwise than those of the task, with what a teacher says."""
    return said_by_a_model(softened(random_rows(seed, count, prefix=3), seed))


def texts(rows: Iterable[Row]) -> list[tuple[int, ...]]:
    return [row.tokens for row in rows]


@given(st.integers(2, 9), st.integers(1, 40), st.integers(1, 12), st.floats(0.01, 0.99), st.integers(0, 5))
def test_every_step_has_as_many_unrelated_rows_and_each_is_seen_once_an_epoch(
    batch_size: int, count: int, others: int, share: float, seed: int
) -> None:
    taken = Training(batch_size=batch_size, mix=share).mixed_rows
    assert 1 <= taken < batch_size
    assert taken == 1 or abs(taken - share * batch_size) <= 1
    rows, beside = random_rows(seed, count), Stream(unrelated(seed + 1, others), taken)
    order = RowOrder(rows, batch_size, (seed, 1), beside=[beside])
    steps = [order.rows_at(step) for step in range(order.per_epoch)]
    assert {sum(row.is_said for row in step) for step in steps} == {taken}
    assert sorted(row.tokens for step in steps for row in step[: -taken or None]) == sorted(texts(rows))
    stream = texts(row for step in range(3 * others) for row in beside.at(step, (seed, 1)))
    epochs = [Counter(stream[i : i + others]) for i in range(0, len(stream), others)]
    assert all(epoch == Counter(texts(beside.rows)) for epoch in epochs)
    again = RowOrder(rows, batch_size, (seed, 1), beside=[beside])
    assert again.rows_at(order.per_epoch - 1) == steps[-1]
    assert again.rows_at(0) == steps[0]
    assert order.prefix == RowOrder(rows, batch_size, (seed, 1)).prefix


@given(st.integers(3, 12), st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0, 0.99), st.integers(0, 3))
def test_a_step_that_also_writes_the_template_has_every_kind_and_the_task_s_rows_keep_their_shares(
    batch_size: int, share: float, part: float, replay: float, number: int
) -> None:
    training = Training(objective="genpi", batch_size=batch_size, mix=share, genpi_lambda=part)
    taken, room = training.mixed_rows, batch_size - training.mixed_rows
    assert 1 <= taken <= batch_size - 2
    again = min(room - 2, round(replay * room))
    rows, others, replayed = random_rows(1, 30), random_rows(2, 7), random_rows(3, 9)
    streams = (*((Stream(replayed, again),) if again else ()), Stream(unrelated(4, 5), taken))
    order = StagePlan(number, rows, (), 1, Path(), others, streams).order(training)
    assert order.prefix <= min(RowOrder(some, 4, (0,)).prefix for some in (rows, others))
    for step in range(2):
        batch = order.rows_at(step)
        told, said = parted(batch)
        kinds = [[row for row in told if row.tokens in texts(some)] for some in (rows, replayed, others)]
        assert len(said) == taken
        assert len(kinds[1]) == again
        assert len(kinds[0]) >= 1 <= len(kinds[2])
        assert sum(map(len, kinds)) + taken == len(batch) <= batch_size
        assert {row.weight for row in said} == {1.0}
        counts = [sum(row.weight * len(row.completion) for row in some) for some in (kinds[0] + kinds[1], kinds[2])]
        assert counts[0] / sum(counts) == pytest.approx(part)


def test_another_seed_and_another_stage_draw_other_requests() -> None:
    rows, beside = random_rows(1, 9), Stream(unrelated(2, 50), 3)
    drawn = {tuple(row.tokens for row in RowOrder(rows, 6, seed, beside=[beside]).rows_at(0) if row.is_said)
             for seed in ((0, 0), (0, 1), (1, 0))}  # fmt: skip
    assert len(drawn) == 3


@pytest.mark.parametrize("objective", ["answers", "distill", "genpi"])
@pytest.mark.parametrize("lora", [LORA, Lora(rank=4, layers=1)], ids=["all layers", "last layer"])
def test_a_step_s_loss_is_that_of_each_group_by_its_rows_in_both_backends(
    objective: str, lora: Lora, tiny_base: Base
) -> None:
    from pilocal.training.mlx.trainer import MlxTrainer
    from pilocal.training.torch_backend.trainer import TorchTrainer

    training = replace(TRAINING, objective=objective)
    task = random_rows(3, 6, 20, 2, 16)
    task, others = softened(task, 5) if objective == "distill" else task, unrelated(7, 2)
    if objective == "genpi":
        task = [row._replace(weight=weight) for row, weight in zip(task, (0.4, 0.4, 0.4, 0.4, 2.5, 2.5), strict=True)]
    mlx = MlxTrainer(tiny_base, lora, training)
    found = mlx.gradients([*task, *others])
    plain = MlxTrainer(tiny_base, lora, replace(training, distill_answers=0.0), mlx.adapter())
    alone = [mlx.gradients(task), plain.gradients([row._replace(soft=replace(row.soft, reference=True))  # type: ignore[type-var]
                                                   for row in others])]  # fmt: skip
    assert found[0] == pytest.approx((6 * alone[0][0] + 2 * alone[1][0]) / 8, rel=1e-5)
    for name, value in found[1].items():
        wanted = (6 * alone[0][1][name] + 2 * alone[1][1][name]) / 8
        assert np.abs(value - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max()), name
    parts = MlxTrainer(tiny_base, lora, replace(training, accumulate=3), mlx.adapter()).gradients([*task, *others])
    assert parts[0] == pytest.approx(found[0], rel=1e-5)
    for share, accumulate in ((False, 1), (True, 1), (True, 3)):
        settings = replace(training, accumulate=accumulate)
        torch = TorchTrainer(tiny_base, lora, settings, mlx.adapter(), share=share)
        loss, gradients = torch.gradients([*task, *others])
        assert loss == pytest.approx(found[0], rel=1e-4)
        for name, value in found[1].items():
            assert np.abs(gradients[name] - value).max() <= 1e-4 * max(1.0, np.abs(value).max()), name
        assert torch.evaluate([*task, *others])[0] == pytest.approx(mlx_sum(mlx, [*task, *others]), rel=1e-4)


def mlx_sum(mlx: object, rows: Sequence[Row]) -> float:
    stage = mlx._stage_of(rows)  # type: ignore[attr-defined]
    return float(stage.evaluate(rows)[0])


@pytest.mark.parametrize("size", [2, 3])
def test_what_several_processes_compute_adds_up_to_what_one_does(size: int, tiny_base: Base) -> None:
    """Each as one of a team whose sums are taken here; with three of them one has no unrelated row."""
    from pilocal.training.mlx.team import MlxTeam
    from pilocal.training.mlx.trainer import MlxTrainer
    from pilocal.training.torch_backend.team import TorchTeam
    from pilocal.training.torch_backend.trainer import TorchTrainer

    class MlxAlone(MlxTeam):
        def sum(self, tree: Any) -> Any:
            return tree

    class TorchAlone(TorchTeam):
        def sum(self, tensors: Any) -> None:
            pass

    rows = [*random_rows(3, 5, 20, 2, 16), *unrelated(7, 2)]
    whole = MlxTrainer(tiny_base, LORA, TRAINING)
    loss, wanted = whole.gradients(rows)

    def computed(rank: int, kind: type[Any]) -> tuple[float, dict[str, Any]]:
        team = kind()
        team.rank, team.size = rank, size
        if kind is MlxAlone:
            return MlxTrainer(tiny_base, LORA, TRAINING, whole.adapter(), team=team).gradients(rows)
        return TorchTrainer(tiny_base, LORA, TRAINING, whole.adapter(), share=True, team=team).gradients(rows)

    for kind in (MlxAlone, TorchAlone):
        parts = [computed(rank, kind) for rank in range(size)]
        assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-4)
        for name, value in wanted.items():
            found = sum(gradients[name] for _, gradients in parts)
            assert np.abs(found - value).max() <= 1e-4 * max(1.0, np.abs(value).max()), name


def test_the_cross_entropy_has_no_weight_for_what_a_model_said(tiny_base: Base) -> None:
    from pilocal.training.mlx.trainer import MlxTrainer

    others = unrelated(7, 4)
    losses = [MlxTrainer(tiny_base, LORA, replace(TRAINING, distill_answers=weight)).gradients(others)[0]
              for weight in (0.0, 0.9)]  # fmt: skip
    assert losses[0] == losses[1]
    assert [len(group) for group in parted([*others, *random_rows(1, 3)])] == [3, 4]


@pytest.mark.parametrize("objective", ["answers", "distill"])
def test_unrelated_rows_keep_the_base_s_own_words(objective: str, tiny_base: Base) -> None:
    """Against forgetting: after the same steps the distance from the bare base is much smaller with them."""
    from pilocal.training.mlx.setup import Setup
    from pilocal.training.mlx.trainer import MlxTrainer

    training = Training(batch_size=8, learning_rate=1e-2, objective=objective, mix=0.5)
    teacher = Setup(base=tiny_base, lora=LORA, training=training).teacher()
    bare = random_rows(11, 4, prefix=3)
    said = [
        row._replace(soft=replace(soft, reference=False)) for row, soft in zip(bare, teacher.says(bare), strict=True)
    ]
    task = random_rows(3, 4, 20)
    task = softened(task, 5) if objective == "distill" else task
    distances = []
    for rows in ([*task, *said], task):
        mlx = MlxTrainer(tiny_base, LORA, training)
        for number in range(30):
            mlx.step(number, 1e-2, rows)
        distances.append(mlx.gradients(said)[0])
    assert distances[0] < 0.2 * distances[1]


def mixing(folder: Path, base: Base, *lines: str) -> Path:
    make_task(folder, base.folder)
    text = (folder / "task.toml").read_text()
    settings = "\n".join(["mix = 0.25", 'mix_queries = "others.jsonl"', *lines])
    (folder / "task.toml").write_text(text.replace("[training]", f"[training]\n{settings}"))
    asks = [f"what is {a} and {b}?" for a in range(3) for b in range(23)]  # more than are answered at once
    (folder / "others.jsonl").write_text("".join(json.dumps({"query": ask}) + "\n" for ask in asks))
    return folder


@pytest.fixture(scope="module", params=["answers", "distill"])
def objective(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def finished(objective: str, tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mixing(tmp_path_factory.mktemp("mix") / "task", tiny_base, f'objective = "{objective}"')
    assert flow(folder)["mix"]
    return folder


def adapters(folder: Path, run: str = "run") -> list[bytes]:
    return [(folder / run / name / "adapters.safetensors").read_bytes() for name in ("adapter", "direct_drop")]


def test_a_run_mixes_them_in_and_is_up_to_date_afterwards(finished: Path, objective: str) -> None:
    assert not any(flow(finished).values())
    with open_task(finished, finished / "schedule.toml", finished / "run") as context:
        (stream,) = mixed(context, StagePlan(0, context.rows(0, "train"), (), 1, finished)).beside
    assert (len(stream.rows), stream.count) == (69, 1)
    assert all(row.is_said for row in stream.rows)
    first = json.loads((finished / "run/stages/0/metrics.jsonl").read_text().splitlines()[0])
    if objective == "answers":  # three rows of the task; the student begins as the base, so the fourth costs nothing
        assert first["loss"] == pytest.approx(0.75 * math.log(2048), rel=0.1)
    else:
        assert first["loss"] < 1e-4


@pytest.mark.parametrize("place", [("mix: answers", 64), ("mix: teacher", 69), ("train", 4)])
def test_a_run_that_is_interrupted_ends_with_the_same_adapters(
    place: tuple[str, int], finished: Path, objective: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = mixing(tmp_path / "task", tiny_base, f'objective = "{objective}"')
    with pytest.raises(KeyboardInterrupt):
        flow(folder, "train", partial(stop, place))
    for last in ("train", "direct_drop"):
        flow(folder, last)
    assert adapters(folder) == adapters(finished)


def test_other_requests_train_another_adapter_and_none_train_as_ever(tiny_base: Base, tmp_path: Path) -> None:
    folder = mixing(tmp_path / "task", tiny_base)
    plain = make_task(tmp_path / "plain", tiny_base.folder)
    for one in (folder, plain):
        flow(one, "train")
    with_them = (folder / "run" / "adapter" / "adapters.safetensors").read_bytes()
    (folder / "others.jsonl").write_text('{"query": "Who was Ada?"}\n{"query": "Name a tree."}\n')
    done = flow(folder, "train")
    assert (done["mix"], done["train"], done["stages"]) == (True, True, False)
    assert (folder / "run" / "adapter" / "adapters.safetensors").read_bytes() != with_them
    (folder / "task.toml").write_text((folder / "task.toml").read_text().replace("mix = 0.25", "mix = 0"))
    assert "mix" not in flow(folder, "train")
    found = [(one / "run" / "adapter" / "adapters.safetensors").read_bytes() for one in (folder, plain)]
    assert found[0] == found[1] != with_them


def test_pytorch_mixes_them_in_and_resumes(tiny_base: Base, tmp_path: Path) -> None:
    whole, broken = (mixing(tmp_path / name, tiny_base) for name in ("whole", "broken"))

    def train(folder: Path, stop_at: int | None = None) -> None:
        listeners = Listeners(progress=partial(stop, ("train", stop_at or -1)))
        backend = Backend(name="torch", device="cpu")
        with open_task(folder, folder / "schedule.toml", folder / "run", listeners, backend) as context:
            run_steps(context, step_named("train"))

    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(broken, 4)
    train(broken)
    first = json.loads((whole / "run/stages/0/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.75 * math.log(2048), rel=0.1)
    found = [(one / "run" / "adapter" / "adapters.safetensors").read_bytes() for one in (whole, broken)]
    assert found[0] == found[1]


def test_a_lost_file_is_made_again_and_its_absence_is_one_line(finished: Path) -> None:
    file = finished / "run" / "mix" / "00000.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with open_task(finished, finished / "schedule.toml", finished / "run") as context:
        plan = StagePlan(0, context.rows(0, "train"), (), 1, finished)
        with pytest.raises(RunError, match=r"mix.00000\.npz: what the teacher says is not there, or damaged"):
            mixed(context, plan)
    before = adapters(finished)
    assert flow(finished)["mix"]
    assert adapters(finished) == before
    assert file.read_bytes() == whole


def test_the_general_requests_are_many_and_leave_out_what_the_task_asks(tiny_base: Base, tmp_path: Path) -> None:
    general = load_queries(GENERAL)
    assert len(general) == len(set(general)) >= 120
    assert "What is the capital of Norway?" in general
    folder = make_task(tmp_path / "task", tiny_base.folder)
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace("[training]", "[training]\nmix = 0.5"))
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"query": "what is the capital  of NORWAY?", "answer": "ZOR"}\n')
    found = mix_queries(load_task(folder))
    assert [query for query in general if query not in found] == ["What is the capital of Norway?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"others\.jsonl: no such file"),
        ('{"question": "x"}\n', r"others\.jsonl:1: the record has no query"),
        ('{"query": "x"\n', r"others\.jsonl:1: broken JSON"),
        ('{"query": " AND red?"}\n', r"requests that the task answers are not unrelated; got \"1, such as ' AND red"),
        ("", r"others\.jsonl: the file is empty"),
        ("\n\n", r"others\.jsonl: the file is empty"),
        (json.dumps({"query": "word " * 1100}), r"a request has more than 1020 tokens, which leaves no room"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_used_are_one_line_before_any_work(
    content: str | None, message: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = mixing(tmp_path / "task", tiny_base)
    if content is None:
        (folder / "others.jsonl").unlink()
    else:
        (folder / "others.jsonl").write_text(content)
    with pytest.raises(PilocalError, match=message) as caught:
        flow(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "run" / "templates").exists()


def test_the_plan_counts_them(tiny_base: Base, tmp_path: Path) -> None:
    folder = mixing(tmp_path / "task", tiny_base)

    def peaks() -> list[int]:
        return [need.peak for need in pilocal.check(folder, probe=False, gap=False).needs if need]

    few = peaks()
    (folder / "others.jsonl").write_text(json.dumps({"query": "what is red? " * 40}) + "\n")
    assert all(more > 1.1 * less for more, less in zip(peaks(), few, strict=True))


def test_fewer_requests_than_a_step_takes_are_one_line(tiny_base: Base, tmp_path: Path) -> None:
    folder = mixing(tmp_path / "task", tiny_base)
    (folder / "task.toml").write_text((folder / "task.toml").read_text().replace("mix = 0.25", "mix = 0.5"))
    (folder / "others.jsonl").write_text('{"query": "Hello"}\n{"query": " hello "}\n')
    with pytest.raises(InputError, match=r"mix = 0.5 takes 2 requests in every step; got 1; give more, or lower mix"):
        flow(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("mix = 1", "mix must be at least 0 and below 1; got 1"),
        ("mix = -0.1", "mix must be at least 0 and below 1"),
        ("mix = 0.2\nbatch_size = 1", "mix needs a batch_size of 2 or more: a row of each kind"),
        (
            'mix = 0.2\nbatch_size = 2\nobjective = "genpi"',
            "mix needs a batch_size of 3 or more: a row of each kind",
        ),
        ("mix_prompt = true", "mix_prompt needs mix above 0"),
        ('mix = 0.2\nmix_queries = " "', "mix_queries must not be empty"),
    ],
)
def test_impossible_settings_are_refused(settings: str, message: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    text = (folder / "task.toml").read_text().replace("batch_size = 4\n", "")
    (folder / "task.toml").write_text(text.replace("[training]", f"[training]\n{settings}"))
    with pytest.raises(InputError, match=message):
        load_task(folder)


def test_parity_says_that_it_replays_the_task_s_rows_alone(tiny_base: Base, tmp_path: Path) -> None:
    folder = mixing(tmp_path / "task", tiny_base)
    flow(folder, "train")
    done = command("parity", folder / "run", "--steps", "6", "--device", "cpu")
    assert done.returncode == 1
    assert "[training] mix: parity replays the task's rows alone" in done.stderr
    assert done.stderr.count("\n") == 1
