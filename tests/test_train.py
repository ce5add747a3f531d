"""Training: the loss looks at completions alone, the shared prefix changes nothing, and runs repeat byte for byte."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import InputError, TrainingError
from pilocal.progress import Progress, silent
from pilocal.prompt.tokens import Row
from pilocal.task import OPTIMIZERS, Lora, Training
from pilocal.training.mlx.batches import Batches, make_batch
from pilocal.training.row_order import StagePlan, shared_prefix
from tests import forked
from tests.tiny import OTHERS

LORA = Lora(rank=4)


def random_rows(seed: int, count: int, prefix: int = 12, groups: int = 1, shots: int = 0) -> list[Row]:
    """Rows that all begin alike, and then with the shots of one of some groups."""
    rng = np.random.default_rng(seed)
    head = rng.integers(1, 2000, prefix).tolist()
    shots_of = [rng.integers(1, 2000, shots).tolist() for _ in range(groups)]
    rows = []
    for _ in range(count):
        prompt, completion = rng.integers(1, 2000, rng.integers(2, 9)), rng.integers(1, 2000, rng.integers(1, 5))
        shared = (*head, *shots_of[rng.integers(groups)])
        rows.append(Row((*shared, *prompt.tolist(), *completion.tolist()), len(shared) + len(prompt)))
    return rows


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 9), st.integers(0, 20))
def test_every_row_is_seen_once_an_epoch_tail_included(seed: int, count: int, batch_size: int, epoch: int) -> None:
    rows = random_rows(seed, count)
    batches = Batches(rows, batch_size, (seed, 0))
    seen = [batches.at(epoch * batches.per_epoch + i) for i in range(batches.per_epoch)]
    assert sum(batch.tokens_BT.shape[0] for batch in seen) == count
    assert sum(batch.trained_tokens for batch in seen) == sum(len(row.completion) for row in rows)


def test_the_batch_of_a_step_does_not_depend_on_what_was_asked_before() -> None:
    rows = random_rows(1, 30)
    walked = Batches(rows, 4, (7, 1))
    for step in range(20):
        last = walked.at(step)
    assert np.array_equal(last.tokens_BT, Batches(rows, 4, (7, 1)).at(19).tokens_BT)


def test_rows_of_like_length_share_a_batch() -> None:
    rng = np.random.default_rng(0)
    rows = [Row((1, *rng.integers(2, 99, n).tolist()), 1) for n in rng.integers(2, 400, 512)]
    own = sum(len(row.tokens) - 1 for row in rows)
    batches = Batches(rows, 8, (0, 0))
    padded = sum(batches.at(i).tokens_BT.size for i in range(batches.per_epoch))
    unsorted = sum(make_batch(rows[i : i + 8], 0).tokens_BT.size for i in range(0, len(rows), 8))
    assert padded < 1.15 * own < unsorted


def test_rows_with_the_same_shots_meet_but_never_fill_a_batch() -> None:
    rows = random_rows(2, 256, prefix=40, groups=4, shots=64)
    batches = Batches(rows, 8, (0, 0))
    computed = 0
    for step in range(batches.per_epoch):
        batch = batches.at(step)
        assert batch.prefix_P.size == 40
        assert batch.shots_GS.shape[1] == 64
        assert 2 <= len(batch.shots_GS) <= 4
        computed += batch.computed_tokens
        for row, group, own in zip(batch.rows, batch.groups_B, batch.tokens_BT, strict=True):
            laid = (*batch.prefix_P, *batch.shots_GS[group], *own)
            assert laid[: len(row.tokens) - 1] == row.tokens[:-1]
    ungrouped = sum(make_batch(rows[i : i + 8], 40, share=False).computed_tokens for i in range(0, 256, 8))
    assert computed < 0.35 * ungrouped


def test_few_different_shapes_for_any_lengths() -> None:
    from pilocal.training.mlx.batches import round_up

    lengths = range(1, 4097)
    widths = [round_up(length) for length in lengths]
    assert len(set(widths)) <= 16 + 5 * 16
    assert all(
        length <= width <= max(length + 7, 1.0625 * length + 1) for length, width in zip(lengths, widths, strict=True)
    )


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=9), min_size=1, max_size=5))
def test_the_common_prefix_is_common_and_leaves_each_row_a_prompt_token(token_lists: list[list[int]]) -> None:
    rows = [Row(tuple(tokens), len(tokens) - 1) for tokens in token_lists]
    length = shared_prefix(rows)
    assert len({row.tokens[:length] for row in rows}) == 1
    assert all(length < row.offset for row in rows)


def plain_loss(model: Any, rows: list[Row]) -> Any:
    """The textbook: full logits of every row on its own, no prefix shared, nothing gathered, nothing padded."""
    import mlx.core as mx
    import mlx.nn as nn

    total, count = mx.array(0.0), 0
    for row in rows:
        logits = model(mx.array(row.tokens[:-1])[None])[0, row.offset - 1 :]
        total = total + nn.losses.cross_entropy(logits, mx.array(row.completion)).sum()
        count += len(row.completion)
    return total / count


@pytest.mark.parametrize("fixture", ["tiny_base", "tiny_tied_base", "tiny_float_base", *OTHERS])
@settings(max_examples=5)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 5),
    prefix=st.integers(0, 30),
    groups=st.integers(1, 4),
    shots=st.sampled_from([0, 8, 40]),
    share=st.booleans(),
    recompute=st.booleans(),
    chunk=st.sampled_from([1 << 24, 2048, 5 * 2048]),
)
def test_loss_and_every_gradient_equal_the_plain_computation(
    request: pytest.FixtureRequest,
    fixture: str,
    seed: int,
    count: int,
    prefix: int,
    groups: int,
    shots: int,
    share: bool,
    recompute: bool,
    chunk: int,
) -> None:
    model = trainable(request.getfixturevalue(fixture))
    rows = random_rows(seed, count, prefix, groups, shots)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pilocal.training.mlx.loss.LOGITS_AT_ONCE", chunk)
        assert_exact(model, make_batch(rows, min(prefix, shared_prefix(rows)), share=share), recompute)


@pytest.mark.parametrize("fixture", ["sliding_base", "tiny_gemma3_base", "tiny_gemma4_shared_base"])
@pytest.mark.parametrize(("prefix", "shots"), [(0, 40), (9, 16), (60, 0), (60, 40)])
@pytest.mark.parametrize("recompute", [False, True])
def test_rows_share_exactly_what_windows_let_them_see(
    request: pytest.FixtureRequest, fixture: str, prefix: int, shots: int, recompute: bool
) -> None:
    """Windows of 16 and 24 tokens: shorter and longer than what is shared, and than a row."""
    batch = make_batch(random_rows(3, 6, prefix, 2, shots), prefix)
    assert batch.prefix_P.size == prefix
    assert batch.shots_GS.shape[1] == shots
    assert_exact(trainable(request.getfixturevalue(fixture)), batch, recompute)


@pytest.mark.parametrize("fixture", ["tiny_deep_base", "tiny_qwen3_base", "tiny_gemma3_base", "tiny_gemma4_base"])
@settings(max_examples=6)
@given(
    seed=st.integers(0, 10**6),
    prefix=st.sampled_from([0, 20]),
    groups=st.integers(1, 3),
    shots=st.sampled_from([0, 16]),
    layers=st.integers(1, 2),
    recompute=st.booleans(),
    room=st.sampled_from([0, 16_000, None]),
)
def test_what_lies_below_the_adapter_is_computed_once_and_changes_nothing(
    request: pytest.FixtureRequest,
    fixture: str,
    seed: int,
    prefix: int,
    groups: int,
    shots: int,
    layers: int,
    recompute: bool,
    room: int | None,
) -> None:
    from pilocal.training.mlx.frozen_layers import Below, first_adapted

    model = trainable(request.getfixturevalue(fixture), Lora(rank=4, layers=layers))
    assert first_adapted(model) == len(model.layers) - layers
    batch = make_batch(random_rows(seed, 5, prefix, groups, shots), prefix)
    below = Below(model, first_adapted(model), batch.prefix_P.tolist(), room)
    for _ in range(2):  # the second time from what was kept
        assert_exact(model, batch, recompute, below)
    assert (not below.kept) == (room == 0)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_base_in_bfloat16_trains_a_float32_adapter(kind: str, tiny_base: Base, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx.nn.utils import value_and_grad
    from mlx.utils import tree_flatten

    from pilocal.training.mlx.loss import completion_loss

    batch = make_batch(random_rows(5, 6, 20, 2, 16), 20)
    found = []
    for precision in ("float32", "bfloat16"):
        model = trainable(tiny_base, Lora(kind=kind, rank=4), precision)
        assert model.model.norm.weight.dtype == getattr(mx, precision)
        (loss, _), gradients = value_and_grad(model, completion_loss)(model, *batch.arrays())
        flat = dict(tree_flatten(gradients)).values()
        assert {value.dtype for value in flat} == {mx.float32} == {loss.dtype}
        found.append((loss.item(), mx.concatenate([value.flatten() for value in flat])))
    (loss, gradient), (rough_loss, rough) = found
    assert rough_loss == pytest.approx(loss, rel=0.02)
    assert float((gradient * rough).sum()) > 0.98 * float(mx.linalg.norm(gradient) * mx.linalg.norm(rough))
    training = Training(**{**as_dict(TRAINING), "precision": "bfloat16"})
    fit(tiny_base, tmp_path, training, steps=(6, 60), lora=Lora(kind=kind, rank=4))
    lines = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    weights: Any = mx.load(str(tmp_path / "1" / "adapters.safetensors"))
    assert {value.dtype for value in weights.values()} == {mx.float32}


def assert_exact(model: Any, batch: Any, recompute: bool = False, below: Any = None) -> None:
    import mlx.core as mx
    from mlx.nn.utils import value_and_grad
    from mlx.utils import tree_flatten

    from pilocal.training.mlx.loss import completion_loss

    def loss_of(model: Any, *arrays: Any) -> Any:
        return completion_loss(model, *arrays, first=below.first if below else 0, recompute=recompute)

    arrays = below.arrays(batch) if below else batch.arrays()
    (loss, tokens), gradients = value_and_grad(model, loss_of)(model, *arrays)
    expected, expected_gradients = value_and_grad(model, lambda m: plain_loss(m, batch.rows))(model)
    assert tokens.item() == sum(len(row.completion) for row in batch.rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = dict(tree_flatten(expected_gradients))
    assert len(wanted) >= 2 * 4
    for name, gradient in dict(tree_flatten(gradients)).items():
        scale = float(mx.abs(wanted[name]).max())
        assert float(mx.abs(gradient - wanted[name]).max()) <= 1e-5 * scale + 1e-9, name


def trainable(base: Base, lora: Lora = LORA, precision: str | None = None) -> Any:
    from pilocal.training.mlx.adapter import add_lora

    model = load_base(base, precision=precision)
    add_lora(model, lora, seed=0)
    return filled(model)


def filled(model: Any) -> Any:
    """Give the LoRA values that change the output."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    def fill(path: str, value: Any) -> Any:
        return mx.random.normal(value.shape) * 0.05 if path.endswith("lora_b") else value

    mx.random.seed(1)
    model.update(tree_map_with_path(fill, model.trainable_parameters()))
    return model


def plans(folder: Path, steps: tuple[int, ...] = (6, 5)) -> list[StagePlan]:
    from pilocal.training.row_order import StagePlan

    return [
        StagePlan(i, random_rows(i, 14, (12, 2, 0)[i]), random_rows(9, 4), count, folder / str(i))
        for i, count in enumerate(steps)
    ]


def unexpected(warning: str) -> None:
    raise AssertionError(warning)


def setup(base: Base, training: Training, lora: Lora = LORA, **options: Any) -> Any:
    from pilocal.training.mlx.setup import Setup

    return Setup(base=base, lora=lora, training=training, **options)


def fit(
    base: Base,
    folder: Path,
    training: Training,
    steps: tuple[int, ...] = (6, 5),
    lora: Lora = LORA,
    key: str = "key",
    progress: Progress = silent,
    warn: Callable[[str], None] = unexpected,
    team: Any = None,
    adaptive: Any = None,
) -> Any:
    from pilocal.training.loop import train

    made = setup(base, training, lora, **({"team": team} if team else {}))
    return train(made, plans(folder, steps), key=key, progress=progress, warn=warn, adaptive=adaptive)


TRAINING = Training(batch_size=4, learning_rate=1e-2, checkpoint_every=2, validate_every=3, seed=3)


def adapter_bytes(folder: Path) -> list[bytes]:
    return [(folder / str(i) / "adapters.safetensors").read_bytes() for i in (0, 1)]


@pytest.fixture(scope="module")
def whole_run(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit(tiny_base, folder, TRAINING, lora=Lora(rank=4, dropout=0.1))
    return folder


def test_a_compiled_step_is_the_same_and_is_compiled_once_a_shape(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilocal.training.mlx import step
    from pilocal.training.mlx.loss import completion_loss

    traced = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if "recompute" in kwargs:  # not a look at the validation loss
            traced.append(args)
        return completion_loss(*args, **kwargs)

    monkeypatch.setattr(step, "completion_loss", counted)
    logs = {}
    for compiled in (False, True):
        traced.clear()
        training = Training(**{**as_dict(TRAINING), "compile": compiled, "accumulate": 2})
        fit(tiny_base, tmp_path / str(compiled), training, steps=(20, 20), lora=Lora(rank=4))
        log = (tmp_path / str(compiled) / "1" / "metrics.jsonl").read_text().splitlines()
        logs[compiled] = [json.loads(line) for line in log]
        shapes = {tuple(array.shape for array in args[1:]) for args in traced}
        assert len(traced) == (len(shapes) if compiled else 2 * 40)
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in logs[True]] == pytest.approx([line[name] for line in logs[False]], rel=1e-3)


def test_two_runs_give_the_same_adapter_byte_for_byte(whole_run: Path, tiny_base: Base, tmp_path: Path) -> None:
    fit(tiny_base, tmp_path, TRAINING, lora=Lora(rank=4, dropout=0.1))
    assert adapter_bytes(tmp_path) == adapter_bytes(whole_run)


def test_another_seed_gives_another_adapter(whole_run: Path, tiny_base: Base, tmp_path: Path) -> None:
    fit(tiny_base, tmp_path, Training(**{**as_dict(TRAINING), "seed": 4}), lora=Lora(rank=4, dropout=0.1))
    assert adapter_bytes(tmp_path) != adapter_bytes(whole_run)


def as_dict(training: Training) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(training)


@pytest.mark.parametrize("stop_at", [1, 3, 6, 7, 11])
def test_an_interrupted_run_ends_with_the_same_adapter(
    whole_run: Path, tiny_base: Base, tmp_path: Path, stop_at: int
) -> None:
    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    lora = Lora(rank=4, dropout=0.1)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path, TRAINING, lora=lora, progress=stop)
    fit(tiny_base, tmp_path, TRAINING, lora=lora)
    assert adapter_bytes(tmp_path) == adapter_bytes(whole_run)
    for stage, steps in (("0", range(1, 7)), ("1", range(7, 12))):
        lines = (tmp_path / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(steps)


def fit_and_die(base: Path, folder: Path, moment: str, count: int, telling: Connection) -> None:
    """Train, in a process of its own, until a moment has come so many times; tell of each step."""
    forked.end_if_it_hangs()

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        left = count

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and moment == "fsync":  # written, not yet renamed
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if left == 0:  # renamed, nothing done since
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if moment == "fsync":
        os.fsync = dying(os.fsync)
    if moment == "replace":
        Path.replace = dying(Path.replace)  # type: ignore[method-assign]
    lora = Lora(rank=4, dropout=0.1)
    fit(Base.at(base), folder, KILLED, KILLED_STEPS, lora=lora, progress=lambda *said, **_: telling.send(said))


KILLED = Training(batch_size=4, learning_rate=1e-2, checkpoint_every=2, validate_every=5, seed=3)
KILLED_STEPS = (8, 7, 6)


def run_and_kill(base: Base, folder: Path, moment: str, number: int, delay: float) -> bool:
    """Start a run and kill it; return whether it died before it was done."""
    told, telling = forked.CONTEXT.Pipe(duplex=False)
    process = forked.CONTEXT.Process(target=fit_and_die, args=(base.folder, folder, moment, number, telling))
    process.start()
    telling.close()
    with told:
        if moment == "time":
            told.poll(None)  # the first step is done
            process.join(delay)
            process.kill()
        process.join()
    return process.exitcode == -signal.SIGKILL


def test_runs_that_are_killed_at_any_moment_end_with_the_same_adapter(tiny_base: Base, tmp_path: Path) -> None:
    fit(tiny_base, tmp_path / "whole", KILLED, KILLED_STEPS, lora=Lora(rank=4, dropout=0.1))
    wanted = {
        path.relative_to(tmp_path / "whole"): path.read_bytes()
        for path in sorted((tmp_path / "whole").rglob("adapters.safetensors"))
    }
    assert len(wanted) == 3
    sys.stdout.write(f"seed {(seed := int.from_bytes(os.urandom(8)))}\n")  # shown when the test fails
    rng = np.random.default_rng(seed)
    kills = dict.fromkeys(("time", "fsync", "replace"), 0)
    folder = tmp_path / "killed-0"
    while sum(kills.values()) < 14 or min(kills.values()) < 4:
        moment = min(kills, key=lambda name: kills[name] - 6 * (name == "time"))
        if run_and_kill(tiny_base, folder, moment, int(rng.integers(1, 8)), rng.uniform(0, 0.5)):
            kills[moment] += 1
        if (folder / "2" / "adapters.safetensors").exists() or sum(kills.values()) >= 14:
            fit(tiny_base, folder, KILLED, KILLED_STEPS, lora=Lora(rank=4, dropout=0.1))
            assert {name: (folder / name).read_bytes() for name in wanted} == wanted, kills
            folder = tmp_path / f"killed-{sum(kills.values())}"


def test_an_interrupt_saves_and_loses_no_step(whole_run: Path, tiny_base: Base, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int, note: str = "") -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    lora = Lora(rank=4, dropout=0.1)
    rare = Training(**{**as_dict(TRAINING), "checkpoint_every": 100})
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path, rare, lora=lora, progress=interrupt)
    seen = []
    fit(tiny_base, tmp_path, rare, lora=lora, progress=lambda what, done, total, note="": seen.append(done))
    assert seen[0] in (4, 5)  # a signal is taken between two instructions, before or after the next look at it
    assert adapter_bytes(tmp_path) == adapter_bytes(whole_run)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    harm: str, whole_run: Path, tiny_base: Base, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == 5:
            raise KeyboardInterrupt

    lora = Lora(rank=4, dropout=0.1)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path, TRAINING, lora=lora, progress=stop)
    checkpoints = sorted((tmp_path / "0" / "checkpoint").glob("step-*.safetensors"))
    assert [path.name for path in checkpoints] == ["step-0000002.safetensors", "step-0000004.safetensors"]
    data = bytearray(checkpoints[1].read_bytes())
    data[-100] ^= 1
    checkpoints[1].write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": bytearray()}[harm])
    warnings, seen = list[str](), list[int]()
    fit(
        tiny_base,
        tmp_path,
        TRAINING,
        lora=lora,
        progress=lambda what, done, total, note="": seen.append(done),
        warn=warnings.append,
    )
    assert seen[0] == 3
    assert warnings == [f"{checkpoints[1]}: damaged checkpoint; going on from the one before"]
    assert adapter_bytes(tmp_path) == adapter_bytes(whole_run)


def test_the_parts_of_a_batch_add_up_to_the_whole(tiny_base: Base, tmp_path: Path) -> None:
    for accumulate in (1, 3):
        training = Training(batch_size=7, learning_rate=1e-3, accumulate=accumulate)
        fit(tiny_base, tmp_path / str(accumulate), training, steps=(4, 4))
    logs = [
        [json.loads(line) for line in (tmp_path / part / "1" / "metrics.jsonl").read_text().splitlines()]
        for part in ("1", "3")
    ]
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in logs[0]] == pytest.approx([line[name] for line in logs[1]], rel=1e-4)


def test_patience_ends_the_last_stage_and_keeps_the_best_adapter(tiny_base: Base, tmp_path: Path) -> None:
    training = Training(
        batch_size=4, learning_rate=5e-2, lr_schedule="constant", validate_every=1, patience=3, checkpoint_every=4
    )
    fit(tiny_base, tmp_path, training, steps=(4, 60))
    lines = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["valid_loss"] for line in lines]
    assert len((tmp_path / "0" / "metrics.jsonl").read_text().splitlines()) == 4
    assert len(lines) < 60
    assert len(losses) - 1 - losses.index(min(losses)) == 3

    from pilocal.training.mlx.frozen_layers import Below
    from pilocal.training.mlx.step import BatchTrainer
    from pilocal.training.mlx.team import MlxTeam

    kept = load_base(tiny_base, tmp_path / "1")
    (batch,) = Batches(random_rows(9, 4), 4, (0,)).in_order()
    loss, tokens = BatchTrainer(kept, None, TRAINING, MlxTeam()).evaluate(batch, Below(kept, 0, ()))
    assert loss / tokens == pytest.approx(min(losses), rel=1e-5)
    before = adapter_bytes(tmp_path)
    fit(tiny_base, tmp_path, training, steps=(4, 60), progress=lambda *args: pytest.fail("nothing is left to do"))
    assert adapter_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("optimizer", "lr_schedule"),
    [*((optimizer, "cosine") for optimizer in OPTIMIZERS), ("adamw", "linear"), ("adamw", "constant")],
)
def test_every_optimizer_and_schedule_learns_and_resumes(
    optimizer: str, lr_schedule: str, tiny_base: Base, tmp_path: Path
) -> None:
    training = Training(batch_size=4, learning_rate=1e-2, optimizer=optimizer, lr_schedule=lr_schedule)
    training = Training(**{**as_dict(training), "checkpoint_every": 3})
    fit(tiny_base, tmp_path / "whole", training)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "1" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path / "cut", training, progress=stop)
    fit(tiny_base, tmp_path / "cut", training)
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tiny_base: Base, tmp_path: Path) -> None:
    fit(tiny_base, tmp_path, TRAINING, key="old")
    seen = []
    fit(tiny_base, tmp_path, TRAINING, key="new", progress=lambda what, done, total, note="": seen.append(done))
    assert seen == list(range(1, 12))


def test_the_loss_falls_and_validation_is_logged(tiny_base: Base, tmp_path: Path) -> None:
    fit(tiny_base, tmp_path, Training(batch_size=4, learning_rate=2e-2, validate_every=10), steps=(5, 40))
    lines = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.75 * lines[0]["loss"]
    assert [line["step"] for line in lines if "valid_loss" in line] == [10, 20, 30, 40, 45]


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_checkpoint(tiny_base: Base, tmp_path: Path) -> None:
    with patch("pilocal.task.tables.within", lambda _: ()), pytest.raises(TrainingError, match="lower learning_rate"):
        wild = Training(batch_size=4, learning_rate=1e36, warmup=0.0, checkpoint_every=1, lr_schedule="constant")
        fit(tiny_base, tmp_path, wild)
    assert [path.name for path in (tmp_path / "0" / "checkpoint").glob("step-*")] == ["step-0000001.safetensors"]


def test_more_layers_than_the_model_has_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model has 2 layers; got 9"):
        fit(tiny_base, tmp_path, TRAINING, lora=Lora(layers=9))


def test_an_unknown_linear_layer_is_refused_with_a_guess(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 'self_attn.q_prj'; did you mean self_attn.q_proj"):
        fit(tiny_base, tmp_path, TRAINING, lora=Lora(linears=("self_attn.q_prj",)))


def test_a_dora_on_some_linear_layers_trains_those_alone(tiny_base: Base, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load

    lora = Lora(kind="dora", rank=4, layers=1, linears=("self_attn.v_proj", "mlp.up_proj"))
    fit(tiny_base, tmp_path, Training(batch_size=4, learning_rate=2e-2), steps=(5, 40), lora=lora)
    weights: Any = mx.load(str(tmp_path / "1" / "adapters.safetensors"))
    modules = ("mlp.up_proj", "self_attn.v_proj")
    assert sorted(weights) == [f"model.layers.1.{m}.{part}" for m in modules for part in ("lora_a", "lora_b", "m")]
    lines = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    model = load(str(tiny_base.folder), adapter_path=str(tmp_path / "1"))[0]
    ours = load_base(tiny_base, tmp_path / "1")
    tokens = mx.array([[5, 6, 7]])
    assert float(mx.abs(model(tokens) - ours(tokens)).max()) < 0.05


def test_mlx_lm_alone_reads_the_adapter(whole_run: Path, tiny_base: Base) -> None:
    import mlx.core as mx
    from mlx_lm import load

    model = load(str(tiny_base.folder), adapter_path=str(whole_run / "1"))[0]
    ours = load_base(tiny_base, whole_run / "1")
    tokens = mx.array([[5, 6, 7]])
    assert float(mx.abs(model(tokens) - ours(tokens)).max()) < 0.05
    assert float(mx.abs(load_base(tiny_base)(tokens) - ours(tokens)).max()) > 0.5
