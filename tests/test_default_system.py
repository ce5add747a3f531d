"""A system message that nobody wrote can be left out, in training and serving alike, or is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.base.chat import ChatSettings
from pilocal.errors import ModelError
from pilocal.prompt.default_system import find_default_system
from pilocal.prompt.tokens import layout_of, prompt_tokens
from tests.layouts import LAYOUTS, SMOLLM2, write_layout
from tests.vocabularies import smollm_like

OFF = ChatSettings(default_system=False)
SMALL = "<|im_start|>system\nYou are a small, helpful model.<|im_end|>\n"
DATED = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|>"
)
DEFAULTS = {
    "smollm 2": (SMALL, ""),
    "qwen 2.5": ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", ""),
    "llama 3.2": (f"<|begin_of_text|>{DATED}", "<|begin_of_text|>"),
}
"""How a chat without a system message begins, and how it does once that message is left out."""

USER, ANSWER, AGAIN, RULES = (
    {"role": role, "content": text}
    for role, text in (("user", "ask"), ("assistant", "say"), ("user", "more"), ("system", "Rules."))
)

INSIDE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<<SYS>>\\nBe honest.\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ bos_token + '[INST] <<SYS>>\\n' + message['content'] }}"
    "{{ '\\n<</SYS>>\\n\\n[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2's first chat template: the default stands at the head of the first query."""


def base_with(template: str, folder: Path, chat: ChatSettings = OFF) -> Base:
    smollm_like(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return replace(Base.at(folder), chat=chat)


def text(base: Base, *messages: dict[str, str]) -> str:
    return base.layout.text(list(messages))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_default_is_found_and_left_out(name: str, tmp_path: Path) -> None:
    folder = write_layout(LAYOUTS[name], tmp_path / "base")
    own, off = Base.at(folder), replace(Base.at(folder), chat=OFF)
    found = find_default_system(own.layout, own.tokenizer.bos_token or "")
    assert ((found.start, found.bare) if found else None) == DEFAULTS.get(name)
    for chat in ([USER], [USER, ANSWER, AGAIN]):
        expected = text(own, *chat)
        if found:
            assert expected.startswith(found.start)
            expected = found.bare + expected.removeprefix(found.start)
        assert text(off, *chat) == expected
    assert text(off, RULES, USER) == text(own, RULES, USER)
    if found:  # what is left is what stands behind the system message of a chat that has one
        assert text(off, RULES, USER).endswith(text(off, USER).removeprefix(found.bare))
    else:
        assert off.layout.template == own.layout.template


@pytest.mark.parametrize("around", ["{}", "\n{}", "{}\n", "{{%- set x = 1 %}}\n{}\n"])
def test_a_default_of_other_letters_and_lines_goes_too(around: str, tmp_path: Path) -> None:
    template = around.format(SMOLLM2.replace("small", "kleine, größte 日本 😀\\n\\n\\'\\\"{}%"))
    own = base_with(template, tmp_path / "base", ChatSettings())
    off = replace(own, chat=OFF)
    assert "日本" in text(own, USER)
    assert text(off, USER) == "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n"


def test_a_default_inside_the_first_query_is_left_out(tmp_path: Path) -> None:
    base = base_with(INSIDE, tmp_path / "base")
    bos = base.tokenizer.bos_token
    assert text(base, USER, ANSWER, AGAIN) == f"{bos}[INST] ask [/INST] say <|im_end|>{bos}[INST] more [/INST]"
    assert "Be honest" in text(replace(base, chat=ChatSettings()), USER)


def test_what_somebody_wrote_stays(tmp_path: Path) -> None:
    base = base_with(SMOLLM2, tmp_path / "base")
    said = {"role": "system", "content": "You are a small, helpful model."}
    assert text(base, said, USER).startswith(SMALL)
    quoting = {"role": "user", "content": f"What is {SMALL}{SMALL}?"}
    assert text(base, quoting) == f"<|im_start|>user\n{quoting['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert text(base, RULES, quoting).count(SMALL) == 2


def test_the_tokens_are_counted_and_the_base_is_known_by_them(tmp_path: Path) -> None:
    off = base_with(SMOLLM2, tmp_path / "base")
    own = replace(off, chat=ChatSettings())
    tokens = len(prompt_tokens([USER], own.tokenizer)) - len(prompt_tokens([USER], off.tokenizer))  # type: ignore[list-item]
    assert tokens > 8
    assert own.default_system_tokens == off.default_system_tokens == tokens
    assert len({own.sha256, off.sha256, replace(off, chat=ChatSettings(template=SMOLLM2)).sha256}) == 3
    plain = replace(own, chat=ChatSettings(template=SMOLLM2.replace("helpful", "")))
    assert 0 < plain.default_system_tokens < tokens


FIRST = "(' first' if loop.first else ' later' if message['role'] == 'user' else '')"


@pytest.mark.parametrize(
    "template",
    [
        SMOLLM2.replace("message['role'] + '", f"message['role'] + {FIRST} + '"),
        "Be kind.\n{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ],
)
def test_what_cannot_be_told_from_the_turns_is_refused(template: str, tmp_path: Path) -> None:
    base = base_with(template, tmp_path / "base")
    with pytest.raises(ModelError, match=r"default cannot be left out.*\[serving\] default_system = true") as refusal:
        _ = base.layout
    assert "\n" not in str(refusal.value)
    assert base.default_system_tokens == 0


def test_layouts_are_read_once(tmp_path: Path) -> None:
    tokenizer: Any = base_with(SMOLLM2, tmp_path / "base").tokenizer
    assert layout_of(tokenizer) is layout_of(tokenizer)
