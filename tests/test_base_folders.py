"""Folders of models as people have them: not fetched whole, in another form, or with the chat template elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base, find_base
from pilocal.errors import ModelError
from pilocal.prompt.tokens import prompt_tokens

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
ASKED: Any = [{"role": "user", "content": "what is red?"}]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(starter: Base, tmp_path: Path) -> Path:
    shutil.copytree(starter.folder, tmp_path / "base")
    return tmp_path / "base"


def _as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _as_adapter(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: (folder / WEIGHTS).write_text(POINTER),
            "a pointer of Git LFS, not the file; run `git lfs pull`",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text(POINTER), "a pointer of Git LFS, not the file"),
        (_as_pickle, "its weights are pickles, which can run code as they are read: take the model as safetensors"),
        (_as_adapter, "this is an adapter: name the model that it was made for"),
        (lambda folder: (folder / WEIGHTS).unlink(), "copy or download the model again"),
    ],
)
def test_a_folder_that_is_no_whole_model_says_what_it_is(
    folder: Path, change: Callable[[Path], object], said: str
) -> None:
    change(folder)
    with pytest.raises(ModelError) as caught:
        find_base(str(folder), Path())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chat_template_is_found_in_its_older_place(folder: Path, starter: Base) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    found = Base.at(folder)
    assert prompt_tokens(ASKED, found.tokenizer) == prompt_tokens(ASKED, starter.tokenizer)
    before = found.sha256
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text + "{# other #}"}))
    assert Base.at(folder).sha256 != before
    (folder / "chat_template.json").write_text("[]")
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        _ = Base.at(folder).layout


def test_a_list_of_chat_templates_has_its_default_taken(folder: Path, starter: Base) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": text}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    assert prompt_tokens(ASKED, Base.at(folder).tokenizer) == prompt_tokens(ASKED, starter.tokenizer)
