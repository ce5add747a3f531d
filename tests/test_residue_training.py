"""What stays of the prompt, where unrelated requests and the student's own answers are trained on, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.base.reference import MlxReference
from pilocal.errors import InputError
from pilocal.flow.opening import open_task
from pilocal.flow.plan import plan_run
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from pilocal.run_folder.rows import read_records
from tests.test_flow import flow
from tests.test_residue import LAW, make_staying
from tests.test_working import make_worked

SETTINGS = 'objective = "distill"\non_policy = true\non_policy_steps = 1\nmix = 0.25\n'

UNRELATED = ("hello", "what is 2?", "sing a song")


def make_mixed(folder: Path, base: Base, *, settings: str = SETTINGS, longest: str = "") -> Path:
    make_staying(folder, base)
    asked = [json.dumps({"query": query}) for query in (*UNRELATED, *([longest] if longest else []))]
    (folder / "unrelated.jsonl").write_text("\n".join(asked) + "\n")
    (folder / "mix.jsonl").write_text("\n".join(asked) + "\n")
    text = (folder / "task.toml").read_text()
    queries = 'mix_queries = "mix.jsonl"\n' if "mix =" in settings else ""
    text = text.replace("[training]", f"[training]\n{settings}{queries}")
    measured = '[evaluation]\nunrelated = "unrelated.jsonl"\nunrelated_tokens = 4\n'
    (folder / "task.toml").write_text(text + measured)
    return folder


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_mixed(tmp_path_factory.mktemp("mixed") / "task", tiny_base)
    flow(folder, "retention")
    return folder / "run"


def chats(folder: Path) -> list[list[Any]]:
    return [record["messages"][:-1] for record in read_records(folder, "train")]


def test_the_student_is_asked_and_trained_as_in_the_last_stage(finished: Path) -> None:
    asked = chats(finished / "stages" / "1")
    assert chats(finished / "on_policy") == asked
    assert {tuple(turn["role"] for turn in chat) for chat in asked} == {("system", "user", "assistant", "user")}


def test_unrelated_requests_are_learned_and_measured_after_what_stays(finished: Path, tiny_base: Base) -> None:
    mixed = chats(finished / "mix")
    (template,) = {chat[0]["content"] for chat in chats(finished / "stages" / "1")}
    assert [chat[-1]["content"] for chat in mixed] == list(UNRELATED)
    for chat in mixed:
        assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user"]
        assert chat[0]["content"] == template
    prompts = [prompt_tokens(chat, tiny_base.tokenizer) for chat in mixed]
    said = MlxReference(tiny_base, None).answer(
        prompts,
        ends=end_tokens(tiny_base.tokenizer),
        max_tokens=4,
        batch_size=16,
        progress=lambda *_, **__: None,
        name="",
    )
    kept = json.loads((finished / "retention" / "base.json").read_text())
    assert kept["answers"] == [list(tokens) for tokens in said]


def test_another_residue_asks_the_base_anew(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_mixed(tmp_path / "task", tiny_base, settings="mix = 0.25\n")
    flow(folder, "mix")
    assert not flow(folder, "mix")["mix"]
    (folder / "schedule.toml").write_text(LAW.replace("0.3", "0.5"))
    assert flow(folder, "mix")["mix"]
    assert len({str(chat[0]) for chat in chats(folder / "run" / "mix")}) == 1


@pytest.mark.parametrize("settings", ["mix = 0.25\n", ""])
def test_a_request_that_exceeds_the_context_after_what_stays_is_refused(
    settings: str, tiny_base: Base, tmp_path: Path
) -> None:
    def asked(words: int) -> int:
        return len(prompt_tokens([{"role": "user", "content": "word " * words}], tiny_base.tokenizer))

    words = next(words for words in range(1, 1024) if asked(words + 1) > tiny_base.context - 4)
    folder = make_mixed(tmp_path / "task", tiny_base, settings=settings, longest="word " * words)
    with (
        open_task(folder, folder / "schedule.toml", None) as context,
        pytest.raises(InputError, match=r"unrelated\.jsonl|mix\.jsonl"),
    ):
        plan_run(context, probe=False)


def test_a_last_stage_that_is_not_trained_has_a_student_and_a_teacher(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_worked(
        tmp_path / "task", tiny_base, settings='objective = "distill"\non_policy = true\non_policy_steps = 1\n'
    )
    stages = (
        "[[stage]]\ntau = 1.0\nshots = 1\nworking = 1.0\nshare = 1.0\n[[stage]]\ntau = 0.0\nshots = 0\nshare = 0.0\n"
    )
    (folder / "schedule.toml").write_text(stages)
    assert flow(folder, "on_policy")["on_policy"]
    run = folder / "run"
    adapter = [(run / part / "adapters.safetensors").read_bytes() for part in ("adapter", "on_policy", "stages/0")]
    assert adapter[0] == adapter[1] != adapter[2]
    said = {path.name for path in (run / "teacher").iterdir()}
    assert said == {"train", "valid", "train-working-1.0", "valid-working-1.0"}
    assert all(len(chat) == 1 for chat in chats(run / "on_policy"))
