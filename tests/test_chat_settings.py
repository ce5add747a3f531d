"""A task's own chat template, and no default system message: part of the run, from the rows to what is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilocal.errors import InputError, ModelError, PilocalError
from pilocal.flow.opening import base_of, open_task
from pilocal.flow.plan import check
from pilocal.flow.run import Run, run_task
from pilocal.flow.steps import STEPS
from pilocal.llamacpp.chat import ChatTemplate
from pilocal.llamacpp.model import Model
from pilocal.prompt.tokens import prompt_tokens
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.shipped import read_shipped
from pilocal.task import load_task
from pilocal.training.backend import Backend
from tests.layouts import SMOLLM2
from tests.test_flow import make_task
from tests.tiny import make_base
from tests.vocabularies import CHATML_TEMPLATE, smollm_like

QUERY = [{"role": "user", "content": "blue"}]
OFF = "[serving]\ndefault_system = false\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a base whose chat template has a default system message."""
    folder = tmp_path_factory.mktemp("base")
    smollm_like(folder / "tokenizer")
    (folder / "tokenizer" / "chat_template.jinja").write_text(SMOLLM2)
    return make_base(folder / "base", folder / "tokenizer", rope_scaling=None).folder


def task_with(base: Path, folder: Path, *, top: str = "", tables: str = "") -> Path:
    task = make_task(folder, base)
    (task / "task.toml").write_text(top + (task / "task.toml").read_text() + tables)
    return task


def keys(task: Path) -> dict[str, str]:
    with open_task(task, task / "schedule.toml", None) as context:
        return {step.name: step.key(context) for step in STEPS if step.name in ("stages", "train", "export")}


def test_check_says_what_the_default_costs(base: Path, tmp_path: Path) -> None:
    task = task_with(base, tmp_path / "own")
    own = check(task, schedule=task / "schedule.toml", probe=False)
    task = task_with(base, tmp_path / "off", tables=OFF)
    off = check(task, schedule=task / "schedule.toml", probe=False)
    saved = own.stages[-1].prompt_tokens - off.stages[-1].prompt_tokens
    assert saved > 8
    assert own.stages[0].prompt_tokens == off.stages[0].prompt_tokens
    (hint,) = own.hints
    assert hint.startswith(f"{saved:.0f} tokens of every bare query are a system message")
    assert "[serving] default_system = false" in hint
    assert off.hints == (f"[serving] default_system = false makes every bare query {saved:.0f} tokens shorter",)


def test_what_is_trained_without_it_is_served_without_it(base: Path, tmp_path: Path) -> None:
    task = task_with(base, tmp_path / "task", tables=OFF)
    assert run_task(task, task / "schedule.toml", task / "run", until="export")
    served = read_shipped(task / "run")
    path = served.folder / served.base
    with Model(path, vocabulary_only=True) as model:
        tokens = ChatTemplate(model.tokenizer, path).tokens(QUERY)
        assert model.tokenizer.text(tokens).count(b"system") == 0
    kept = base_of(task / "run")
    assert kept.chat.facts == {"default_system": False}
    assert prompt_tokens(QUERY, kept.tokenizer) == tokens  # type: ignore[arg-type]
    assert RunDir(task / "run").state["chat"] == {"default_system": False}
    Run(task / "run").export("peft", "mlx")
    for form in ("peft", "mlx"):
        assert (served.folder / form / "chat_template.jinja").read_text() == kept.layout.template
    assert "this/folder/chat_template.jinja" in (served.folder / "peft" / "README.md").read_text()


def test_a_chat_template_of_the_task_s_replaces_the_base_s(base: Path, tmp_path: Path) -> None:
    task = task_with(base, tmp_path / "task", top='chat_template = "chat.jinja"\n')
    (task / "chat.jinja").write_text("A chat:\n" + CHATML_TEMPLATE)
    assert load_task(task).files["chat_template"] == task / "chat.jinja"
    with open_task(task, task / "schedule.toml", None) as context:
        text = context.base.tokenizer.decode(prompt_tokens(QUERY, context.base.tokenizer))  # type: ignore[arg-type]
    assert text == "A chat:\n<|im_start|>user\nblue<|im_end|>\n<|im_start|>assistant\n"


def test_a_changed_chat_template_trains_again(base: Path, tmp_path: Path) -> None:
    own = keys(task_with(base, tmp_path / "own"))
    off = keys(task_with(base, tmp_path / "off", tables=OFF))
    assert keys(task_with(base, tmp_path / "said", tables=OFF.replace("false", "true"))) == own
    task = task_with(base, tmp_path / "given", top='chat_template = "chat.jinja"\n')
    (task / "chat.jinja").write_text(CHATML_TEMPLATE)
    given = keys(task)
    (task / "chat.jinja").write_text(CHATML_TEMPLATE + "{# another #}")
    for step in own:
        assert len({own[step], off[step], given[step], keys(task)[step]}) == 4


def test_a_home_folder_is_found(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "chat.jinja").write_text(CHATML_TEMPLATE)
    task = task_with(base, tmp_path / "task", top='chat_template = "~/chat.jinja"\n')
    assert load_task(task).chat_template == CHATML_TEMPLATE


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"chat\.jinja: no such file"),
        ("", r"chat\.jinja: the file is empty"),
        ("{% if %}", r"chat\.jinja: the chat template is broken: .*; correct it"),
        ("{{ raise_exception('no') }}", r"chat\.jinja: the base's chat template refuses a chat of user: no"),
        (
            "{% for m in messages %}{{ m['content'] if loop.last else '' }}{% endfor %}",
            r"chat\.jinja: the chat template",
        ),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_line(
    content: str | None, line: str, base: Path, tmp_path: Path
) -> None:
    task = task_with(base, tmp_path / "task", top='chat_template = "chat.jinja"\n')
    if content is not None:
        (task / "chat.jinja").write_text(content)
    with pytest.raises(PilocalError, match=line) as refusal:
        check(task, schedule=task / "schedule.toml", probe=False)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ('[serving]\ndefault_system = "no"\n', "default_system must be true or false; got 'no'"),
        ("[serving]\ndefault = false\n", "unknown key default in .serving."),
    ],
)
def test_a_setting_that_is_none_is_one_line(tables: str, line: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line):
        load_task(task_with(base, tmp_path / "task", tables=tables))


def test_a_base_without_a_chat_template_gets_the_task_s(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "base"
    bare.mkdir()
    for path in base.iterdir():
        if path.name != "chat_template.jinja":
            (bare / path.name).symlink_to(path)
    task = task_with(bare, tmp_path / "task")
    with pytest.raises(ModelError, match=r'no chat template.*chat_template = "FILE" in task\.toml') as refusal:
        check(task, schedule=task / "schedule.toml", probe=False)
    assert "\n" not in str(refusal.value)
    task = task_with(bare, tmp_path / "given", top='chat_template = "chat.jinja"\n')
    (task / "chat.jinja").write_text(CHATML_TEMPLATE)
    assert check(task, schedule=task / "schedule.toml", probe=False).hints == ()


def test_a_run_from_before_has_the_base_s_own_chats(base: Path, tmp_path: Path) -> None:
    task = task_with(base, tmp_path / "task")
    run_task(task, task / "schedule.toml", task / "run", until="stages")
    state = json.loads((task / "run" / "run.json").read_text())
    assert state.pop("chat") == {}
    (task / "run" / "run.json").write_text(json.dumps(state))
    assert base_of(task / "run").chat.facts == {}


def test_check_names_the_faster_backend_for_a_cpu(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilocal.flow.plan.WIDE", 1)
    monkeypatch.setattr("pilocal.flow.plan.has_accelerator", lambda context: False)
    task = task_with(base, tmp_path / "task")
    for installed, advice in ((True, "MLX: --backend torch"), (False, "MLX: pip install 'pilocal[torch]'")):
        monkeypatch.setattr("pilocal.flow.plan.is_installed", lambda name, is_there=installed: is_there)
        assert any(advice in hint for hint in check(task, schedule=task / "schedule.toml", probe=False).hints)
    chosen = check(task, schedule=task / "schedule.toml", probe=False, backend=Backend(name="torch", device="cpu"))
    assert not any("--backend" in hint for hint in chosen.hints)


def test_check_names_the_faster_precision_where_the_processor_has_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_with(base, tmp_path / "task")

    def hints() -> str:
        backend = Backend(name="torch", device="cpu")
        return " ".join(check(task, schedule=task / "schedule.toml", probe=False, backend=backend).hints)

    monkeypatch.setattr("pilocal.flow.plan.processor_flags", lambda: frozenset({"amx_bf16"}))
    assert 'precision = "bfloat16" is faster' in hints()
    text = (task / "task.toml").read_text()
    (task / "task.toml").write_text(text.replace("[training]", '[training]\nprecision = "float32"'))
    assert "bfloat16" not in hints()
    (task / "task.toml").write_text(text)
    monkeypatch.setattr("pilocal.flow.plan.processor_flags", frozenset)
    assert "bfloat16" not in hints()
