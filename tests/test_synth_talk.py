"""Synthesis of conversations and reasons: who sees what, where a conversation ends, and the same bytes after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import pilocal.synth.files as files
import pilocal.synth.reasons as reasons
from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.flow.listeners import Listeners
from pilocal.flow.template_rows import REASON, WITH, WITHOUT
from pilocal.prompt.render import Message
from pilocal.prompt.sampling import Sampling
from pilocal.synth import synthesize
from pilocal.synth.conversation import BEGIN, END, Turn, converse, environment_prompt, shown_example, swapped
from pilocal.synth.reasons import NO_REASON, SAME
from pilocal.synth.teacher import Teacher
from pilocal.task import Example, load_task
from tests.test_synth import folder_bytes, template_only

Chats = Sequence[Sequence[Message]]
BEGUN: list[Turn] = [("user", "list the files"), ("assistant", "ls")]
EXAMPLE = Example(id="1", query="and now?", answer="pwd", history=(("user", "who am I?"), ("assistant", "whoami")))


class Speaker:
    """Says lines one after the other and remembers the chats that it was shown."""

    def __init__(self, *lines: str | None) -> None:
        self.lines, self.seen = iter(lines), list[list[tuple[str, str]]]()

    def __call__(self, chats: Chats) -> list[str | None]:
        self.seen += [[(turn["role"], turn["content"]) for turn in chat] for chat in chats]
        return [next(self.lines) for _ in chats]


def talk(agent: Speaker, environment: Speaker, answers: int = 9, example: Example | None = None) -> list[Turn]:
    (found,) = converse([BEGUN], answers, agent, environment, example)
    return found


def test_each_side_sees_itself_as_the_assistant_and_the_other_as_the_user() -> None:
    agent, environment = Speaker("rm a.txt", "echo done"), Speaker("a.txt b.txt", "it is gone")
    found = talk(agent, environment, 3)
    assert found == [*BEGUN, ("user", "a.txt b.txt"), ("assistant", "rm a.txt"), ("user", "it is gone"),
                     ("assistant", "echo done")]  # fmt: skip
    assert agent.seen == [found[:3], found[:5]]
    assert environment.seen[0] == [("user", BEGIN), ("assistant", "list the files"), ("user", "ls")]
    # What the agent said last is what the other side answers.
    assert environment.seen[1] == [*environment.seen[0], ("assistant", "a.txt b.txt"), ("user", "rm a.txt")]


def test_the_other_side_sees_an_example_from_where_it_stands() -> None:
    environment = Speaker(END)
    talk(Speaker(), environment, example=EXAMPLE)
    (seen,) = environment.seen
    assert seen[:6] == [
        ("user", BEGIN),
        ("assistant", "who am I?"),
        ("user", "whoami"),
        ("assistant", "and now?"),
        ("user", "pwd"),
        ("assistant", END),
    ]
    assert seen[6:] == [("user", BEGIN), ("assistant", "list the files"), ("user", "ls")]
    assert [role for role, _ in seen] == [("user", "assistant")[number % 2] for number in range(len(seen))]
    assert shown_example(None) == []
    assert len(swapped(BEGUN)) == 3


@pytest.mark.parametrize(
    ("said", "answered", "kept"),
    [
        ([END], [], []),
        ([f"Thanks! {END}"], [], []),
        ([None], [], []),
        ([" \n"], [], []),
        (["List  the FILES"], [], []),  # as before
        (["ls"], [], []),  # what the agent said
        (["next"], [None], []),
        (["next"], [" "], []),
        (["next"], ["LS"], []),
        (["next"], [f" {END}"], []),
        (["next"], [f"cd / {END} bye"], ["next", "cd /"]),
        (["next", "more"], ["cd /", END], ["next", "cd /"]),
        (["next", "next"], ["cd /"], ["next", "cd /"]),
        (["next", "more"], ["cd /", "cd /"], ["next", "cd /"]),
        ([" next\n", END], ["cd /\n"], ["next", "cd /\n"]),
    ],
)
def test_where_a_conversation_ends_nothing_without_an_answer_is_kept(
    said: list[str | None], answered: list[str | None], kept: list[str]
) -> None:
    agent, environment = Speaker(*answered), Speaker(*said)
    found = talk(agent, environment)
    assert [text for _, text in found[2:]] == kept
    assert found[-1][0] == "assistant"
    assert not any(END in text for _, text in found)
    for speaker, lines in ((agent, answered), (environment, said)):
        assert len(speaker.seen) == len(lines)  # nobody is asked in vain


def test_conversations_that_go_on_are_asked_together_and_the_others_never_again() -> None:
    environment, agent = Speaker(END, "b1", "c1", "b2"), Speaker("yes 1", None, "yes 2")
    found = converse([[("user", name), ("assistant", name * 2)] for name in "abc"], 3, agent, environment)
    assert [" ".join(text for _, text in one) for one in found] == ["a aa", "b bb b1 yes 1 b2 yes 2", "c cc"]
    assert len(environment.seen) == 3 + 1
    assert [len(one) for one in converse([BEGUN], 1, Speaker(), Speaker())] == [2]


def test_the_other_side_is_told_the_task_and_how_to_end() -> None:
    assert END in environment_prompt("Be brief.")
    assert "Be brief." in environment_prompt("Be brief.")
    assert "instructions" not in environment_prompt(" ")


def with_synth(folder: Path, lines: str) -> Path:
    path = folder / "task.toml"
    path.write_text(path.read_text().replace("per_entry = 3\n", f"per_entry = 3\n{lines}"))
    return folder


@pytest.fixture
def learnable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never end an answer: that is no reason to drop it, nor to wait for its end."""
    monkeypatch.setattr(Teacher, "objection", lambda self, answer: None)
    monkeypatch.setattr(files, "GENERATED_TOKENS", 8)


def interrupted(folder: Path, *places: tuple[str, int]) -> None:
    """Stop a synthesis at places in it, one after the other, and then let it end."""
    for place in places:

        def progress(what: str, done: int, total: int, note: str = "", place: tuple[str, int] = place) -> None:
            if (what, done) == place:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            synthesize(folder, listeners=Listeners(progress=progress))
    synthesize(folder)


@pytest.mark.usefixtures("learnable")
def test_every_answer_of_a_conversation_is_drawn_and_looked_at_by_the_metric(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for name, lines in (("drawn", "temperature = 1.0\n"), ("again", "temperature = 1.0\n"), ("greedy", "")):
        folder = with_synth(template_only(tmp_path / name, tiny_base), f"turns = 3\n{lines}")
        synthesize(folder)
        made[name] = [example for example in load_task(folder).train if example.history]
    assert made["drawn"] == made["again"] != made["greedy"]
    later = [example.answer for example in made["drawn"]]
    monkeypatch.setattr(Metric, "objection", lambda self, answer: "no" if answer in later else None)
    refused = with_synth(template_only(tmp_path / "refused", tiny_base), "turns = 3\ntemperature = 1.0\n")
    synthesize(refused)
    assert not {example.answer for example in load_task(refused).train}.intersection(later)


@pytest.mark.usefixtures("learnable")
@pytest.mark.parametrize("temperature", ["0.7", "0.0"])
def test_conversations_and_reasons_are_the_same_bytes_after_a_kill(
    temperature: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (files, reasons):
        monkeypatch.setattr(module, "CHUNK", 4)
    lines = f"turns = 3\nreasons = true\nreasons_temperature = {temperature}\n"
    whole, killed = (with_synth(template_only(tmp_path / name, tiny_base), lines) for name in ("whole", "killed"))
    report = synthesize(whole)
    interrupted(killed, ("synth", 4), ("synth", 8), ("reasons", 8))
    assert folder_bytes(killed / "synth") == folder_bytes(whole / "synth")
    records = [json.loads(line) for line in (whole / "synth" / "train.jsonl").read_text().splitlines()]
    assert sum(len(record.get("messages", ())) == 6 for record in records) > 5
    assert report["answers"].keys() <= {"1", "2", "3"}
    assert report["reasons"]["written"] > 5
    assert all({WITHOUT, WITH} <= record.keys() for record in records)
    task = load_task(whole)
    assert any(len(example.learned) == 2 for example in task.train)
    assert not any(WITH in line for line in (whole / "synth" / "test.jsonl").read_text().splitlines())


@pytest.mark.usefixtures("learnable")
def test_reasons_are_drawn_by_the_seed(tiny_base: Base, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = with_synth(template_only(tmp_path / name, tiny_base), f"reasons = true\nseed = {seed}\n")
        synthesize(folder)
        lines = (folder / "synth" / "reasons.jsonl").read_text().splitlines()[1:]
        found.append({json.loads(line)["reason"] for line in lines})
    assert found[0] == found[1]
    assert not found[0] & found[2] - {None}


def replies(without: str, prompted: str, reason: str) -> Callable[..., list[str]]:
    """Return what speaks for the base by what it is asked behind."""

    def reply(self: Teacher, chats: Chats, sampling: Sampling | None = None) -> list[str]:
        if self._title == "reasons":
            assert sampling == Sampling(0.7, (0, 0))
            assert all(text in chats[0][0]["content"] for text in (without, prompted, "code of the colour"))
            return [reason] * len(chats)
        return [prompted if self._template else without] * len(chats)

    return reply


@pytest.mark.parametrize(
    ("without", "reason", "field", "counted"),
    [
        ("a colour", "Only codes.", "Only codes.", {"written": 2}),
        ("ZOR ", "Only codes.", None, {"written": 0, SAME: 2}),
        ("a colour", " ", None, {"written": 0, NO_REASON: 2}),
        ("a colour", "so " * 300, None, {"written": 0, NO_REASON: 2}),
        ("a colour " * 5000, "Only codes.", None, {"written": 0, NO_REASON: 2}),  # no room to ask
    ],
)
def test_every_record_of_training_and_validation_gets_its_fields_and_keeps_its_own(
    without: str,
    reason: str,
    field: str | None,
    counted: dict[str, int],
    tiny_base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Teacher, "reply", replies(without, "ZOR", reason))
    folder = with_synth(template_only(tmp_path / "task", tiny_base), 'labelled = "mine.jsonl"\nreasons = true\n')
    mine: list[dict[str, Any]] = [
        {"query": "what is red?", "answer": "gold", "tests": ["x"]},
        {"query": "red?", "answer": "b", WITH: "my own"},
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in mine))
    report = synthesize(folder)
    first, second, *others = [json.loads(line) for line in (folder / "synth" / "train.jsonl").read_text().splitlines()]
    assert first.items() >= mine[0].items()
    assert (first[WITHOUT], first[WITH], first.get(REASON)) == (without, "ZOR", field)
    assert second.items() >= mine[1].items()
    assert all(record[WITH] == record["answer"] == "ZOR" for record in others)
    total = len(others) + 2 + len((folder / "synth" / "valid.jsonl").read_text().splitlines())
    assert report["reasons"] == {name: count and total for name, count in counted.items()}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("turns = 0", "turns must be at least 1"),
        ("reasons_temperature = -0.1", "reasons_temperature must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(line: str, said: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = with_synth(template_only(tmp_path / "task", tiny_base), f"{line}\n")
    with pytest.raises(InputError, match=said):
        synthesize(folder)


def test_answers_are_drawn_alike_for_the_same_seed_in_llama_cpp_and_mlx(runs: list[Path], starter: Base) -> None:
    from pilocal.base.reference import MlxReference
    from pilocal.llamacpp.engine import Engine
    from pilocal.progress import silent
    from pilocal.prompt.tokens import end_tokens, prompt_tokens
    from pilocal.run_folder.shipped import read_shipped

    prompts = [prompt_tokens([{"role": "user", "content": text}], starter.tokenizer) for text in ("a b", "dim it", "x")]
    ends = end_tokens(starter.tokenizer)

    def in_mlx(sampling: Sampling | None) -> list[list[int]]:
        how = {"ends": ends, "max_tokens": 12, "batch_size": 2, "progress": silent, "name": "x", "sampling": sampling}
        return MlxReference(starter, None).answer(prompts, **how)

    with Engine(read_shipped(runs[0]).base_path, 256) as engine:

        def in_llama(sampling: Sampling | None) -> list[list[int]]:
            how = {"warm": True, "progress": silent, "name": "x", "sampling": sampling}
            return engine.answer(prompts, ends=ends, max_tokens=12, **how).answers  # type: ignore[arg-type]

        for ask in (in_mlx, in_llama):
            drawn, greedy = ask(Sampling(2.0, (1, 2))), ask(None)
            assert ask(Sampling(2.0, (1, 2))) == drawn
            assert ask(Sampling(2.0, (1, 3))) != drawn
            assert drawn != greedy == ask(None)
            assert ask(Sampling(1e-4, (1, 2))) == greedy
