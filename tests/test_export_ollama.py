from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.base.tokenizer import load_tokenizer
from pilocal.errors import ExportError
from pilocal.export.card import Facts
from pilocal.export.chat_layout import probes, read_layout
from pilocal.export.fused import export_fused
from pilocal.export.ollama import write_ollama
from pilocal.prompt.tokens import end_tokens, layout_of
from pilocal.run_folder.shipped import Shipped
from tests.go_template import render

TURNS = (
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}QUERY{% else %}ANSWER{% endif %}{% endfor %}"
)
SYSTEM = "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% endif %}"
HEADERS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def brackets(query: str, answer: str) -> str:
    return SYSTEM + "{{ bos_token }}" + TURNS.replace("QUERY", query).replace("ANSWER", answer)


CHAT_TEMPLATES = {
    "llama 3": "{{ bos_token }}" + HEADERS,
    "llama 3.1, with a date": (
        "{{ bos_token }}{% if messages[0].role != 'system' %}{% set messages = [{'role': 'system', 'content': ''}] + "
        "messages %}{% endif %}"
        + HEADERS.replace(
            "{{ m.content | trim }}",
            "{% if loop.first %}Today Date: {{ date_string }}\n\n{% endif %}{{ m.content | trim }}",
        )
    ),
    "chatml": CHATML,
    "chatml, thoughts in the last": CHATML.replace(
        "{{ m.content }}",
        "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
    ),
    "chatml, its own system message": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
    ),
    "chatml, no system message": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
    "llama 2": brackets(
        "{% if not loop.first %}{{ bos_token }}{% endif %}[INST] {% if loop.first and system %}<<SYS>>\n{{ system }}\n"
        "<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]",
        " {{ m.content }} </s>",
    ),
    "mistral, system first": brackets(
        "[INST] {% if loop.first and system %}{{ system }}\n\n{% endif %}{{ m.content }} [/INST]",
        "{{ m.content }}</s>",
    ),
    "mistral, system last": brackets(
        "[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]",
        " {{ m.content }}</s>",
    ),
}
"""Chat templates in the layouts of the families that are supported."""

GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }
type Case struct {
	Template, System string
	Messages         []*Message
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	for _, c := range cases {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(c.Template))
		data := map[string]any{"System": c.System, "Messages": c.Messages, "Response": ""}
		if err := parsed.Execute(os.Stdout, data); err != nil {
			panic(err)
		}
		os.Stdout.Write([]byte{0})
	}
}
"""
"""Templates rendered with what Ollama hands them."""


@pytest.fixture
def tokenizer(starter: Base) -> Callable[[str], Any]:
    def make(chat_template: str) -> Any:
        loaded = load_tokenizer(starter.folder)  # one of its own, since it is changed
        loaded.chat_template = chat_template
        return loaded

    return make


def jinja(tokenizer: Any, chat: Any) -> str:
    return str(
        tokenizer.apply_chat_template(
            chat, chat_template=layout_of(tokenizer).template, tokenize=False, add_generation_prompt=True
        )
    )


def handed(chat: Sequence[Any]) -> dict[str, Any]:
    """What Ollama hands to a template."""
    system = "\n\n".join(message["content"] for message in chat if message["role"] == "system")
    return {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in chat]}


@pytest.mark.parametrize("family", CHAT_TEMPLATES)
def test_ollama_renders_what_the_chat_template_renders(family: str, tokenizer: Callable[[str], Any]) -> None:
    own = tokenizer(CHAT_TEMPLATES[family])
    adds_bos = "bos_token" in own.chat_template
    layout = read_layout(own, adds_bos=adds_bos)
    chats = list(probes())
    assert {len(chat) for chat in chats} == {1, 2, 3, 4, 5, 6}
    for chat in chats:
        expected = (own.bos_token if adds_bos else "") + layout.render(chat)
        assert jinja(own, chat) == expected
        assert render(layout.go(), handed(chat)) == layout.render(chat)


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("go"):
        pytest.skip("needs Go, whose text/template Ollama renders with")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO)
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", "render", "main.go"], cwd=folder, env=environment, check=True, timeout=250)
    return folder / "render"


def test_go_itself_renders_what_the_chat_template_renders(go: Path, tokenizer: Callable[[str], Any]) -> None:
    cases, expected = [], []
    for chat_template in CHAT_TEMPLATES.values():
        own = tokenizer(chat_template)
        adds_bos = "bos_token" in chat_template
        template = read_layout(own, adds_bos=adds_bos).go()
        for chat in probes():
            cases.append({"Template": template} | handed(chat))
            expected.append(jinja(own, chat).removeprefix(own.bos_token if adds_bos else ""))
    done = subprocess.run([go], input=json.dumps(cases).encode(), capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == expected
    assert len(expected) == 30 * len(CHAT_TEMPLATES)


@pytest.mark.parametrize(
    ("chat_template", "reason"),
    [
        ("{{ bos_token }}{{ messages[-1].content }}:", "rewrites the prompt"),
        (
            "{{ bos_token }}" + CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"),
            "does not show every",
        ),
        (HEADERS, "without the BOS"),
        (
            "{{ bos_token }}" + CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"),
            "rewrites the prompt",
        ),
        (
            "{{ bos_token }}" + CHATML.replace("{{ m.content }}", "{{ m.content | replace('light', 'lamp') }}"),
            "differs",
        ),
        ("{{ bos_token }}" + CHATML.replace("<|im_end|>", "<|im_end|>{{ loop.index }}"), "differs"),
        ("{{ bos_token }}" + CHATML.replace("<|im_end|>", "{{ '{}' }}"), "a brace"),
    ],
)
def test_a_chat_template_that_cannot_be_said_is_refused(
    chat_template: str, reason: str, tokenizer: Callable[[str], Any]
) -> None:
    with pytest.raises(ExportError, match=reason) as refusal:
        read_layout(tokenizer(chat_template), adds_bos=True)
    assert "\n" not in str(refusal.value)


def ship(folder: Path, starter: Base, *, adapter: str | None, fused: str | None) -> Shipped:
    export_fused(starter, None, folder / "base.gguf", "f16")
    if fused:
        shutil.copyfile(folder / "base.gguf", folder / fused)
    return Shipped(
        folder=folder,
        name="Smart home",
        base="base.gguf",
        adapter=adapter,
        fused=fused,
        base_sha256="",
        template="Be brief.",
        shots=0,
    )


@pytest.mark.parametrize("fused", [None, "shipped.gguf"])
def test_the_modelfile_names_the_files_and_the_ends(fused: str | None, starter: Base, tmp_path: Path) -> None:
    shipped = ship(tmp_path, starter, adapter=None if fused else "adapter.gguf", fused=fused)
    own = starter.tokenizer
    files = write_ollama(shipped, own, Facts(task="Smart home", base="starter"))
    assert files == [tmp_path / "Modelfile", tmp_path / "README.md"]
    text = files[0].read_text()
    lines = text.splitlines()
    assert (f"FROM ./{fused}" if fused else "FROM ./base.gguf") in lines
    assert ("ADAPTER ./adapter.gguf" in lines) == (fused is None)
    assert "PARAMETER temperature 0" in lines
    assert not [line for line in lines if line.startswith("SYSTEM")]
    stops = {line.split('"')[1] for line in lines if line.startswith("PARAMETER stop ")}
    assert {own.convert_tokens_to_ids(stop) for stop in stops} == end_tokens(own)
    assert "<|eot_id|>" in stops
    assert "ollama create smart-home -f Modelfile" in files[1].read_text()


def test_the_template_in_the_modelfile_gives_llama_cpp_the_trained_tokens(starter: Base, tmp_path: Path) -> None:
    """Ollama hands the rendered text to llama.cpp, which adds BOS."""
    shipped = ship(tmp_path, starter, adapter="adapter.gguf", fused=None)
    own = starter.tokenizer
    modelfile = write_ollama(shipped, own, Facts(task="a", base="starter"))[0].read_text()
    found = re.search(r'^TEMPLATE """(.*?)"""$', modelfile, flags=re.DOTALL | re.MULTILINE)
    assert found
    from llama_cpp import Llama

    model = Llama(str(tmp_path / "base.gguf"), vocab_only=True, verbose=False)
    for chat in probes():
        text = render(found[1], handed(chat))
        expected = own.encode(jinja(own, chat), add_special_tokens=False)
        assert model.tokenize(text.encode(), add_bos=True, special=True) == expected
    model.close()
